//! Work that moves something in the world: a program under a rule that drives an actuator, and what is declared of it. What
//! nobody may declare is refused here, by whoever submits, by the hub and by the board; what this board wants declared, and
//! whom it believes, is its policy's.

use crate::ids::Tag;
use crate::job::{Denial, ShapeError, Shell};
use crate::outcome::words;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Sources, and who verified, that one declaration can name.
const SOURCES_MAX: usize = 8;
/// What a tag of an actuator begins with.
const PREFIX: &str = "actuator:";

words! {
    /// How good the evidence is on which an actuation rests. Ordered; append only.
    Tier {
        /// A conclusion, a language model's for example.
        T0 = "T0",
        /// An observation that nobody verified.
        T1 = "T1",
        /// An observation that a sensor or somebody verified.
        T2 = "T2",
        /// Somebody verified the evidence for this very action.
        T3 = "T3",
    }
}

words! {
    /// Where evidence comes from, or who verified it. Append only.
    Source {
        /// A language model: it concludes, and verifies nothing.
        Llm = "llm",
        /// A sensor.
        Sensor = "sensor",
        /// A person.
        Human = "human",
    }
}

/// What is declared of an actuation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// What it moves: `actuator:pump:P1`.
    pub target: Tag,
    /// How good the evidence is.
    pub tier: Tier,
    /// Where it comes from.
    pub evidence: Vec<Source>,
    /// Who verified it; may be empty.
    pub verified_by: Vec<Source>,
}

/// Payload of [`crate::job::Job::Actuation`]: that it is one is its declared type of action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actuation {
    /// What is run.
    pub shell: Shell,
    /// What is declared of it.
    pub declared: Declared,
}

impl Actuation {
    pub(crate) fn check_shape(&self) -> Result<(), ShapeError> {
        let err = |field, rule: &str| Err(ShapeError { field, rule: rule.into() });
        let Declared { target, evidence, verified_by, .. } = &self.declared;
        if !is_actuator(target) || target.as_str().contains('*') {
            return err("payload.target", "must be one actuator, like actuator:pump:P1");
        }
        if evidence.is_empty() || evidence.len() > SOURCES_MAX {
            return err("payload.evidence", "must name 1 to 8 of llm, sensor and human");
        }
        if verified_by.len() > SOURCES_MAX || verified_by.contains(&Source::Llm) {
            return err(
                "payload.verifiedBy",
                "must name at most 8 of sensor and human: a model verifies nothing",
            );
        }
        self.shell.check_shape()
    }
}

/// Whether a tag names an actuator, or all of some kind.
pub fn is_actuator(tag: &Tag) -> bool {
    tag.as_str().len() > PREFIX.len() && tag.as_str().starts_with(PREFIX)
}

/// `actuator:pump T3, evidence llm+sensor, verified by human`: for records.
impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |sources: &[Source]| sources.iter().map(|s| s.as_str()).collect::<Vec<_>>().join("+");
        let by = if self.verified_by.is_empty() { "nobody".into() } else { list(&self.verified_by) };
        write!(f, "{} {}, evidence {}, verified by {by}", self.target, self.tier, list(&self.evidence))
    }
}

impl Declared {
    /// The best tier that what is declared can bear.
    fn tier_max(&self) -> Tier {
        let verified = |by| self.verified_by.contains(&by);
        match () {
            () if self.is_llm_only() => Tier::T0,
            () if verified(Source::Human) => Tier::T3,
            () if verified(Source::Sensor) => Tier::T2,
            () => Tier::T1,
        }
    }

    fn is_llm_only(&self) -> bool {
        self.evidence.iter().all(|source| *source == Source::Llm)
    }

    /// Why no board takes it, whatever its policy and whoever signed.
    pub fn refusal(&self) -> Option<Denial> {
        if self.is_llm_only() {
            Some(Denial::LlmOnlyActuation)
        } else if self.tier > self.tier_max() {
            Some(Denial::ActuationTier)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_bears_no_more_than_its_evidence() {
        use Source::{Human, Llm, Sensor};
        let llm = Some(Denial::LlmOnlyActuation);
        let tier = Some(Denial::ActuationTier);
        for (declared, evidence, verified_by, want) in [
            (Tier::T0, &[Llm][..], &[][..], llm),
            (Tier::T3, &[Llm, Llm], &[Human], llm),
            (Tier::T0, &[], &[Human], llm),
            (Tier::T0, &[Sensor], &[], None),
            (Tier::T1, &[Llm, Sensor], &[], None),
            (Tier::T2, &[Sensor], &[], tier),
            (Tier::T2, &[Sensor], &[Sensor], None),
            (Tier::T3, &[Sensor, Human], &[Sensor], tier),
            (Tier::T3, &[Llm, Human], &[Human], None),
        ] {
            let target = "actuator:pump".parse().unwrap();
            let (evidence, verified_by) = (evidence.to_vec(), verified_by.to_vec());
            let declared = Declared { target, tier: declared, evidence, verified_by };
            assert_eq!(declared.refusal(), want, "{declared:?}");
        }
    }

    #[test]
    fn an_actuation_names_one_actuator_and_some_evidence() {
        let shell = Shell { argv: vec!["/x".into()], cwd: None, env: vec![] };
        let check = |target: &str, evidence: &[Source], verified_by: &[Source]| {
            let declared = Declared {
                target: target.parse().unwrap(),
                tier: Tier::T0,
                evidence: evidence.to_vec(),
                verified_by: verified_by.to_vec(),
            };
            Actuation { shell: shell.clone(), declared }.check_shape().err().map(|e| e.field)
        };
        let sensor = &[Source::Sensor][..];
        assert_eq!(check("actuator:pump:P1", sensor, &[]), None);
        assert_eq!(check("actuator:*", sensor, &[]), Some("payload.target"));
        assert_eq!(check("actuator:", sensor, &[]), Some("payload.target"));
        assert_eq!(check("pump", sensor, &[]), Some("payload.target"));
        assert_eq!(check("actuator:pump", &[], &[]), Some("payload.evidence"));
        assert_eq!(check("actuator:pump", &[Source::Llm; 9], &[]), Some("payload.evidence"));
        assert_eq!(check("actuator:pump", sensor, &[Source::Llm]), Some("payload.verifiedBy"));
    }
}
