//! Rules that drive an actuator, and what must be declared for them to run. Default deny: a rule that says no more than what
//! it drives wants the best evidence there is, verified by a person.

use super::Rule;
use dunlin_wire::Tag;
use dunlin_wire::actuation::{Declared, Source, Tier, is_actuator};
use dunlin_wire::job::Denial;
use serde::Deserialize;

/// What a rule drives, and what it wants for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actuator {
    /// What it moves: `actuator:pump:P1`.
    pub target: Tag,
    /// The least tier.
    pub tier: Tier,
    /// Who must have verified it, all of them.
    pub verified_by: Vec<Source>,
}

impl Actuator {
    /// Whether somebody must have signed it, whatever `[signing]` says: unsigned, that it was verified would be the hub's word
    /// alone.
    pub fn needs_signature(&self) -> bool {
        self.tier > Tier::T1 || !self.verified_by.is_empty()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawActuator {
    target: Tag,
    tier: Option<String>,
    verified_by: Option<Vec<String>>,
}

/// The actuator of a rule.
pub(super) fn compile(raw: &RawActuator) -> Result<Actuator, String> {
    if !is_actuator(&raw.target) || raw.target.as_str().contains('*') {
        let target = &raw.target;
        return Err(format!("actuator.target `{target}` must be one actuator, like \"actuator:pump:P1\""));
    }
    let tier = raw.tier.as_deref().map_or(Some(Tier::T3), Tier::parse);
    let by = |word: &String| Source::parse(word).filter(|by| *by != Source::Llm);
    let verified_by = match &raw.verified_by {
        None => Some(vec![Source::Human]),
        Some(words) => words.iter().map(by).collect(),
    };
    Ok(Actuator {
        target: raw.target.clone(),
        tier: tier.ok_or("actuator.tier must be T0, T1, T2 or T3")?,
        verified_by: verified_by.ok_or("actuator.verified_by may name sensor and human")?,
    })
}

/// Whether what is declared lets `rule` move what it drives.
pub(super) fn decide(rule: &Rule, declared: Option<&Declared>) -> Result<(), Denial> {
    let (actuator, declared) = match (&rule.actuator, declared) {
        (None, None) => return Ok(()),
        (Some(_), None) => return Err(Denial::ActuationUndeclared),
        (None, Some(_)) => return Err(Denial::ActuationTarget),
        (Some(actuator), Some(declared)) => (actuator, declared),
    };
    if let Some(denial) = declared.refusal() {
        return Err(denial);
    }
    if declared.target != actuator.target {
        return Err(Denial::ActuationTarget);
    }
    if declared.tier < actuator.tier {
        return Err(Denial::ActuationTier);
    }
    let all = actuator.verified_by.iter().all(|by| declared.verified_by.contains(by));
    if all { Ok(()) } else { Err(Denial::ActuationUnverified) }
}

#[cfg(test)]
mod tests {
    use super::super::{Policy, Request, Signed, decide, own};
    use super::*;
    use dunlin_wire::keys::{Kind, Scope};

    fn policy(signing: &str) -> Policy {
        let text = format!(
            r#"
            schema = 1
            [signing]
            require = "{signing}"
            [[rule]]
            id = "pump"
            program = "/opt/pump"
            actuator = {{ target = "actuator:pump:P1" }}
            [[rule]]
            id = "vent"
            program = "/opt/vent"
            actuator = {{ target = "actuator:vent", tier = "T2", verified_by = ["sensor"] }}
            [[rule]]
            id = "lamp"
            program = "/opt/lamp"
            actuator = {{ target = "actuator:lamp", tier = "T1", verified_by = [] }}
            [[rule]]
            id = "read"
            program = "/opt/read"
            "#
        );
        Policy::parse(&[("p.toml".to_owned(), text)]).unwrap()
    }

    fn declared(text: &str) -> Option<Declared> {
        let words: Vec<&str> = text.split(' ').collect();
        let [target, tier, evidence, verified_by] = words[..] else { return None };
        let sources = |list: &str| list.split(',').filter_map(Source::parse).collect();
        Some(Declared {
            target: format!("actuator:{target}").parse().unwrap(),
            tier: Tier::parse(tier).unwrap(),
            evidence: sources(evidence),
            verified_by: sources(verified_by),
        })
    }

    /// Each case: who signed (`actuation`: a key that may; `shell`: one that may not; nobody), the program, what is declared,
    /// and what comes of it.
    #[test]
    fn every_case_comes_out_as_it_says() {
        let human = "pump:P1 T3 sensor,llm human";
        for (signing, by, program, text, want) in [
            ("privileged", "actuation", "pump", human, "pump"),
            ("always", "actuation", "pump", human, "pump"),
            // The hub says all that a signed job would; nobody signed it.
            ("privileged", "", "pump", human, "signature_missing"),
            ("never", "", "pump", human, "signature_missing"),
            ("privileged", "shell", "pump", human, "key_scope"),
            ("privileged", "actuation", "pump", "", "actuation_declaration_required"),
            ("never", "", "lamp", "", "actuation_declaration_required"),
            // Whoever signed, and whatever is said to be verified.
            ("privileged", "actuation", "pump", "pump:P1 T3 llm human", "llm_only_actuation_blocked"),
            ("never", "", "lamp", "lamp T1 llm -", "llm_only_actuation_blocked"),
            ("privileged", "actuation", "pump", "pump:P1 T2 sensor human", "actuation_tier"),
            ("privileged", "actuation", "vent", "vent T3 sensor sensor", "actuation_tier"),
            ("never", "", "lamp", "lamp T2 sensor -", "actuation_tier"),
            ("privileged", "actuation", "vent", "vent T2 sensor sensor", "vent"),
            ("privileged", "actuation", "vent", "vent T3 sensor human", "actuation_unverified"),
            ("privileged", "actuation", "pump", "pump:P2 T3 human human", "actuation_target"),
            ("privileged", "actuation", "read", "lamp T3 human human", "actuation_target"),
            // A lamp is worth the hub's word, where the board says so.
            ("never", "", "lamp", "lamp T1 sensor -", "lamp"),
            ("privileged", "", "lamp", "lamp T1 sensor -", "signature_missing"),
            ("never", "", "lamp", "lamp T0 sensor -", "actuation_tier"),
            ("never", "", "read", "", "read"),
        ] {
            let policy = policy(signing);
            let kind = if by == "actuation" { Kind::Actuation } else { Kind::Shell };
            let scope =
                Scope { kinds: vec![kind], rules: vec!["*".into()], users: vec!["*".into()], tags: vec![] };
            let signed = Signed { scope: &scope, rules: &[], user: None };
            let declared = declared(text);
            let request = Request {
                argv: &[format!("/opt/{program}")],
                declared: declared.as_ref(),
                signed: (!by.is_empty()).then_some(signed),
                ..Request::default()
            };
            let got = decide(&policy, request).map_or_else(|d| d.to_string(), |a| a.rule.id.clone());
            assert_eq!(got, want, "{signing} {by} {program} {text}");
        }
    }

    #[test]
    fn the_board_s_own_gate_moves_nothing() {
        let denied = own(&policy("never"), &["/opt/lamp".to_owned()]).unwrap_err();
        assert_eq!(denied, Denial::ActuationUndeclared);
    }

    #[test]
    fn an_actuator_that_cannot_be_meant_is_refused() {
        for (actuator, want) in [
            ("{ target = \"actuator:*\" }", "must be one actuator"),
            ("{ target = \"pump\" }", "must be one actuator"),
            ("{ target = \"actuator:p\", tier = \"T4\" }", "T0, T1, T2 or T3"),
            ("{ target = \"actuator:p\", verified_by = [\"llm\"] }", "sensor and human"),
            ("{ target = \"actuator:p\", verfied_by = [] }", "unknown field"),
        ] {
            let text = format!("schema = 1\n[[rule]]\nid = \"r\"\nprogram = \"/x\"\nactuator = {actuator}\n");
            let error = Policy::parse(&[("p".to_owned(), text)]).unwrap_err().to_string();
            assert!(error.contains(want), "{actuator}: {error}");
        }
    }
}
