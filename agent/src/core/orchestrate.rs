//! The order of an orchestrator run: the board's gate, the task's steps, the board's reviewer. Pure.
//!
//! A step can only be had from [`Sequence::next`], which gives none before every part of the gate has ended well in this very
//! sequence. So whoever asks for a run, the hub or an uplink that somebody took over, cannot leave the gate out.

use dunlin_wire::job::{NoGo, Outcome, Shell};
use serde_json::json;
use std::collections::VecDeque;

/// What a part is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It decides whether any step is started.
    Gate,
    /// The task's own work.
    Step,
    /// It decides whether what was done is good.
    Reviewer,
}

/// One process of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is for.
    pub role: Role,
    /// What to run.
    pub shell: Shell,
}

/// A run as far as it is.
#[derive(Debug, Clone)]
pub struct Sequence {
    left: VecDeque<Part>,
    why: Option<NoGo>,
    summary: String,
}

impl Sequence {
    /// `gate` and `reviewer` are the board's, each an argv; `steps` the task's.
    pub fn new(gate: &[Vec<String>], steps: &[Shell], reviewer: &[String]) -> Self {
        let own = |argv: &[String]| Shell { argv: argv.to_vec(), cwd: None, env: vec![] };
        let gate = gate.iter().map(|argv| Part { role: Role::Gate, shell: own(argv) });
        let steps = steps.iter().map(|shell| Part { role: Role::Step, shell: shell.clone() });
        let reviewer = Part { role: Role::Reviewer, shell: own(reviewer) };
        Self { left: gate.chain(steps).chain([reviewer]).collect(), why: None, summary: String::new() }
    }

    /// All parts that are left, to be looked at.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.left.iter()
    }

    /// What to run now; nothing when the run is decided.
    pub fn next(&self) -> Option<&Part> {
        self.left.front()
    }

    /// What [`Sequence::next`] gave has ended so.
    pub fn ended(&mut self, outcome: &Outcome) {
        let Some(part) = self.left.pop_front() else { return };
        if *outcome == Outcome::Ok {
            return;
        }
        let (why, what) = match part.role {
            Role::Gate => (NoGo::SecurityGateFailed, "the security gate"),
            Role::Step => (NoGo::StepFailed, "a step"),
            Role::Reviewer => (NoGo::ReviewerNoGo, "the reviewer"),
        };
        self.left.clear();
        self.why = Some(why);
        self.summary = format!("{what} ended {outcome}");
    }

    /// How the run ended, and its result: the text of a JSON object.
    pub fn verdict(&self) -> (Outcome, String) {
        let blocked = |why| u8::from(self.why == Some(why));
        let word = if self.why.is_some() { "NO_GO" } else { "GO" };
        let result = json!({
            "goNoGo": word,
            "decision": word,
            "code": self.why.map_or("GO".to_owned(), |why| why.as_str().to_ascii_uppercase()),
            "security": { "passed": self.why != Some(NoGo::SecurityGateFailed) },
            "codeCriticalFindings": blocked(NoGo::ReviewerNoGo),
            "securityCriticalFindings": blocked(NoGo::SecurityGateFailed),
            "blockers": self.why.map(NoGo::as_str).into_iter().collect::<Vec<_>>(),
            "summary": if self.why.is_none() { "gate, steps and reviewer passed" } else { &self.summary },
        });
        (self.why.map_or(Outcome::Ok, |why| Outcome::NoGo { why }), result.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(gates: usize, steps: usize) -> Sequence {
        let argv = |name: &str| vec![name.to_owned()];
        let step = Shell { argv: argv("step"), cwd: None, env: vec![] };
        Sequence::new(&vec![argv("gate"); gates], &vec![step; steps], &argv("review"))
    }

    #[test]
    fn no_step_is_had_before_the_whole_gate_passed_whatever_happens() {
        // Every way that up to six parts can end.
        for ends in 0..(1u32 << 6) {
            let mut run = sequence(2, 3);
            let (mut passed, mut failed, mut at) = (0, false, 0);
            while let Some(part) = run.next() {
                assert!(!failed, "nothing runs after a failure");
                assert!(part.role != Role::Step || passed == 2, "{ends:b}: a step after {passed} gates");
                let ok = ends & (1 << at) != 0;
                passed += u32::from(ok && part.role == Role::Gate);
                failed = !ok;
                run.ended(if ok { &Outcome::Ok } else { &Outcome::AgentInternal });
                at += 1;
            }
            assert_eq!(run.verdict().0 == Outcome::Ok, ends == 0b11_1111, "{ends:b}");
        }
    }

    #[test]
    fn the_result_names_what_stood_in_the_way() {
        for (good, code, security, review) in [
            (0, "SECURITY_GATE_FAILED", 1, 0),
            (1, "STEP_FAILED", 0, 0),
            (2, "REVIEWER_NO_GO", 0, 1),
            (3, "GO", 0, 0),
        ] {
            let mut run = sequence(1, 1);
            (0..good).for_each(|_| run.ended(&Outcome::Ok));
            run.ended(&Outcome::Exit { code: 1 });
            let result: serde_json::Value = serde_json::from_str(&run.verdict().1).unwrap();
            assert_eq!(result["code"], code, "{result}");
            assert_eq!(result["goNoGo"], if good == 3 { "GO" } else { "NO_GO" });
            assert_eq!(
                (&result["securityCriticalFindings"], &result["codeCriticalFindings"]),
                (&json!(security), &json!(review))
            );
            assert_eq!(result["blockers"].as_array().unwrap().len(), usize::from(good < 3));
        }
    }
}
