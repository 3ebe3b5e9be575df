//! What the hub says of each task beside what its jobs wrote themselves. Pure, and knows nothing of how either came to be.

use super::job::{Line, Word};
use std::collections::BTreeMap;
use std::fmt;

/// What a task was meant to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Succeeds, at once or late, silent or with so many bytes of output.
    Ok {
        /// Bytes of its standard output.
        bytes: usize,
    },
    /// Fails once, then succeeds.
    Retry,
    /// Always fails.
    Fail,
    /// Is started once at most.
    AtMostOnce,
}

/// A task that the hub acknowledged, and how it ended.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) task: String,
    pub(super) kind: Kind,
    /// `done`, `failed`, ...; nothing when the hub does not know it.
    pub(super) state: Option<String>,
    /// The code of each attempt's outcome, for whoever reads the verdict.
    pub(super) outcomes: String,
    /// Bytes of standard output that the hub has.
    pub(super) output: usize,
}

/// What must not be, by task and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, and not there any more, or not done, or done without its work.
    pub lost: Vec<String>,
    /// Two live attempts at once, a start behind a newer attempt's, or a second start of what may start once.
    pub doubled: Vec<String>,
    /// Not ended when everything was whole again for long enough.
    pub stuck: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.stuck.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, doubled, stuck } = self;
        write!(f, "lost {}, doubled {}, stuck {}", lost.len(), doubled.len(), stuck.len())
    }
}

/// Judges every task by the ledger's lines, which are in the order in which they were written.
pub(super) fn judge(tasks: &[Told], ledger: &[Line]) -> Verdict {
    let mut by_task = BTreeMap::<&str, Vec<&Line>>::new();
    for line in ledger {
        by_task.entry(&line.task).or_default().push(line);
    }
    let mut verdict = Verdict::default();
    for told in tasks {
        let lines = by_task.get(told.task.as_str()).map_or(&[][..], Vec::as_slice);
        if let Some(why) = doubled(told.kind, lines) {
            verdict.doubled.push(format!("{}: {why}", told.task));
        }
        let ended = matches!(told.state.as_deref(), Some("done" | "failed" | "cancelled"));
        if told.state.is_some() && !ended {
            verdict.stuck.push(format!("{}: {}", told.task, told.state.as_deref().unwrap_or_default()));
        } else if let Some(why) = lost(told, lines) {
            verdict.lost.push(format!("{}: {why}", told.task));
        }
    }
    verdict
}

fn doubled(kind: Kind, lines: &[&Line]) -> Option<String> {
    if let Some(line) = lines.iter().find(|line| line.word == Word::Double) {
        return Some(format!("attempt {} began while another ran", line.fence));
    }
    let mut newest = 0;
    for line in lines.iter().filter(|line| line.word == Word::Start) {
        if line.fence <= newest {
            return Some(format!("attempt {} began behind attempt {newest}", line.fence));
        }
        newest = line.fence;
    }
    // What its own lines say, should the lock ever not: nothing of an older attempt is behind a newer one's start.
    let mut newest = 0;
    for line in lines {
        if line.fence < newest {
            return Some(format!("attempt {} ended while attempt {newest} ran", line.fence));
        }
        newest = line.fence;
    }
    let starts = lines.iter().filter(|line| line.word == Word::Start).count();
    (kind == Kind::AtMostOnce && starts > 1)
        .then(|| format!("started {starts} times, at most once was asked for"))
}

fn lost(told: &Told, lines: &[&Line]) -> Option<String> {
    let Some(state) = told.state.as_deref() else { return Some("the hub does not know it".into()) };
    let worked = lines.iter().any(|line| line.word == Word::End);
    match (told.kind, state) {
        (Kind::Fail, "done") => Some("done, and its job always fails".into()),
        (Kind::Fail, _) => None,
        // May be given up when nobody knows whether it ran.
        (Kind::AtMostOnce, "failed") => None,
        (_, "done") if !worked => Some("done, and no job of it ended".into()),
        (Kind::Ok { bytes }, "done") if bytes != told.output => {
            Some(format!("{} of {bytes} bytes of output", told.output))
        }
        (_, "done") => None,
        (_, state) => Some(format!("{state}, and its job succeeds: {}", told.outcomes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, state: Option<&str>, ledger: &[(Word, u64)], want: [usize; 3]) {
        let told =
            Told { task: "t".into(), kind, state: state.map(Into::into), outcomes: String::new(), output: 5 };
        let line = |(at, (word, fence)): (usize, &(Word, u64))| Line {
            word: *word,
            task: "t".into(),
            fence: *fence,
            at: at as u64,
        };
        let lines: Vec<Line> = ledger.iter().enumerate().map(line).collect();
        let verdict = judge(&[told], &lines);
        let got = [verdict.lost.len(), verdict.doubled.len(), verdict.stuck.len()];
        assert_eq!(got, want, "{kind:?} {state:?} {ledger:?}: {verdict:?}");
        assert_eq!(verdict.is_good(), want == [0; 3]);
    }

    #[test]
    fn each_task_is_judged_by_its_own_lines() {
        use Word::{Double, End, Start};
        let ok = Kind::Ok { bytes: 5 };
        check(ok, Some("done"), &[(Start, 1), (End, 1)], [0, 0, 0]);
        check(ok, Some("done"), &[(Start, 1), (Start, 2), (End, 2)], [0, 0, 0]);
        check(ok, Some("done"), &[(Start, 1), (Start, 2), (End, 1), (End, 2)], [0, 1, 0]);
        check(ok, Some("done"), &[(Start, 2), (Start, 1), (End, 1)], [0, 1, 0]);
        check(ok, Some("done"), &[(Start, 1), (Double, 2), (End, 1)], [0, 1, 0]);
        check(ok, Some("done"), &[(Start, 1), (End, 1), (Start, 1), (End, 1)], [0, 1, 0]);
        check(ok, Some("done"), &[(Start, 1)], [1, 0, 0]);
        check(ok, None, &[(Start, 1), (End, 1)], [1, 0, 0]);
        check(ok, Some("failed"), &[(Start, 1), (End, 1)], [1, 0, 0]);
        check(ok, Some("running"), &[(Start, 1)], [0, 0, 1]);
        check(Kind::Ok { bytes: 6 }, Some("done"), &[(Start, 1), (End, 1)], [1, 0, 0]);
        check(Kind::Retry, Some("done"), &[(Start, 1), (End, 1), (Start, 2), (End, 2)], [0, 0, 0]);
        check(Kind::Fail, Some("failed"), &[(Start, 1), (End, 1)], [0, 0, 0]);
        check(Kind::Fail, Some("done"), &[(Start, 1), (End, 1)], [1, 0, 0]);
        check(Kind::AtMostOnce, Some("failed"), &[(Start, 1)], [0, 0, 0]);
        check(Kind::AtMostOnce, Some("done"), &[(Start, 1), (Start, 2), (End, 2)], [0, 1, 0]);
    }
}
