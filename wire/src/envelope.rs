//! Signed jobs: work that only an operator can make. Whoever carries one may delay or drop it, and nothing else.

use crate::ids::{FleetId, Key, NodeName, Tag, TaskId};
use crate::job::{Actuation, Delivery, HookDispatch, Job, OrchestratorRun, Shell, Wake};
use crate::limits;
use crate::seal::{Context, Sealed, Signature, decode};
use ring::signature::Ed25519KeyPair;
use serde::{Deserialize, Serialize};

/// The version of [`Payload`] that this build writes and reads.
pub const VERSION: u8 = 1;

/// The kinds of work that can be signed. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// One program with arguments. Under a rule with `shell = true` it is a free line for a shell.
    Shell(Shell),
    /// A program that moves an actuator.
    Actuation(Actuation),
    /// Steps behind the board's gate.
    OrchestratorRun(OrchestratorRun),
    /// A request to a hook.
    HookDispatch(HookDispatch),
    /// A wake of a hook.
    Wake(Wake),
}

impl From<Work> for Job {
    fn from(work: Work) -> Self {
        match work {
            Work::Shell(shell) => Job::Shell(shell),
            Work::Actuation(actuation) => Job::Actuation(actuation),
            Work::OrchestratorRun(run) => Job::OrchestratorRun(run),
            Work::HookDispatch(hook) => Job::HookDispatch(hook),
            Work::Wake(wake) => Job::Wake(wake),
        }
    }
}

impl TryFrom<Job> for Work {
    type Error = PayloadError;

    /// # Errors
    /// A signed job is not signed again.
    fn try_from(job: Job) -> Result<Self, PayloadError> {
        Ok(match job {
            Job::Shell(shell) => Work::Shell(shell),
            Job::Actuation(actuation) => Work::Actuation(actuation),
            Job::OrchestratorRun(run) => Work::OrchestratorRun(run),
            Job::HookDispatch(hook) => Work::HookDispatch(hook),
            Job::Wake(wake) => Work::Wake(wake),
            Job::Signed(_) => return Err(PayloadError("it is signed already".into())),
        })
    }
}

/// Whom a job is meant for. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Audience {
    /// Any of these nodes, by name.
    Nodes(Vec<NodeName>),
    /// Any of these devices, by their keys.
    Keys(Vec<Key>),
    /// Boards whose own configuration has all of these tags; never empty.
    Tags(Vec<Tag>),
}

/// What an operator signs. A board reads everything that it runs from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// [`VERSION`].
    pub version: u8,
    /// The work.
    pub work: Work,
    /// Rules under which it may run; empty leaves that to the board.
    pub rules: Vec<String>,
    /// The task that carries it.
    pub task: TaskId,
    /// The fleet.
    pub fleet: FleetId,
    /// Whom it is for.
    pub audience: Audience,
    /// Run timeout, in milliseconds; `None` leaves it to the rule.
    pub timeout_ms: Option<u64>,
    /// Whom it must run as: `slot`, `root`, or a name; `None` leaves that to the rule.
    pub user: Option<String>,
    /// What to do when the board dies.
    pub delivery: Delivery,
    /// Attempts that each board of the audience may make.
    pub attempts_max: u32,
    /// Not before this time, in milliseconds since the epoch.
    pub not_before_ms: u64,
    /// Not after this one.
    pub expires_ms: u64,
    /// Random: with the issuer it names this job.
    pub nonce: [u8; 16],
    /// The operator's key.
    pub issuer: Key,
    /// Why, for people.
    pub reason: String,
}

/// Why a job cannot be signed, or is not one: the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PayloadError(pub String);

impl Payload {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check(&self) -> Result<(), PayloadError> {
        let err = |text: String| Err(PayloadError(text));
        if self.version != VERSION {
            return err(format!("version {} is not {VERSION}", self.version));
        }
        if let Err(error) = Job::from(self.work.clone()).check_shape() {
            return err(error.to_string());
        }
        let named = match &self.audience {
            Audience::Nodes(nodes) => nodes.len(),
            Audience::Keys(keys) => keys.len(),
            Audience::Tags(tags) => tags.len(),
        };
        if named == 0 || named > limits::AUDIENCE_MAX {
            return err(format!("the audience must be 1 to {} of one kind", limits::AUDIENCE_MAX));
        }
        let long = |text: &String| text.is_empty() || text.len() > limits::TEXT_MAX;
        if self.rules.len() > limits::SCOPE_MAX || self.rules.iter().chain(&self.user).any(long) {
            return err(format!("rules: at most {} of {} bytes", limits::SCOPE_MAX, limits::TEXT_MAX));
        }
        if self.reason.len() > limits::TEXT_MAX {
            return err(format!("the reason must be at most {} bytes", limits::TEXT_MAX));
        }
        let timeouts = limits::TIMEOUT_MS_MIN..=limits::TIMEOUT_MS_MAX;
        if self.timeout_ms.is_some_and(|ms| !timeouts.contains(&ms)) {
            return err(format!("the timeout must be {} ms to {} ms", timeouts.start(), timeouts.end()));
        }
        if self.attempts_max == 0 || self.attempts_max > limits::ATTEMPTS_MAX {
            return err(format!("attempts must be 1 to {}", limits::ATTEMPTS_MAX));
        }
        let life = self.expires_ms.checked_sub(self.not_before_ms);
        if life.is_none_or(|ms| ms == 0 || ms > limits::SIGNED_LIFE_MS_MAX) {
            return err("it must expire after it begins, and within 366 days".into());
        }
        Ok(())
    }
}

/// A payload, the signature over it, and the certificate of who signed, unless the board has that from a key set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
    /// The signer's certificate.
    pub cert: Option<Sealed>,
    signature: Signature,
}

impl Envelope {
    /// Signs a payload; the bytes that travel.
    ///
    /// # Errors
    /// A bound of the payload, or of all of it together.
    pub fn sign(
        payload: &Payload,
        cert: Option<Sealed>,
        key: &Ed25519KeyPair,
    ) -> Result<Vec<u8>, PayloadError> {
        payload.check()?;
        let payload =
            postcard::to_stdvec(payload).expect("payloads always encode: they have no unsized parts");
        let signature = Signature::make(Context::Job, &payload, key);
        let envelope = Self { payload, cert, signature };
        let bytes =
            postcard::to_stdvec(&envelope).expect("envelopes always encode: they have no unsized parts");
        if bytes.len() > limits::ENVELOPE_MAX {
            return Err(PayloadError(format!("over {} bytes in all", limits::ENVELOPE_MAX)));
        }
        Ok(bytes)
    }

    /// Reads an envelope; nobody has looked at its signature then.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        decode(bytes, limits::ENVELOPE_MAX)
    }

    /// What is said to be signed: to see who is said to have signed it, and for display.
    pub fn peek(&self) -> Option<Payload> {
        decode::<Payload>(&self.payload, self.payload.len()).filter(|payload| payload.check().is_ok())
    }

    /// What `key` signed.
    pub fn open(&self, key: &Key) -> Option<Payload> {
        let verifies = self.signature.verifies(Context::Job, &self.payload, key);
        verifies.then(|| self.peek())?.filter(|payload| payload.issuer == *key)
    }

    /// SHA-256 of the payload: which job this is.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &self.payload).as_ref());
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Cert, Scope};
    use proptest::prelude::*;
    use ring::signature::KeyPair;

    fn pair(seed: u8) -> (Ed25519KeyPair, Key) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let key = Key(pair.public_key().as_ref().try_into().unwrap());
        (pair, key)
    }

    fn payload() -> Payload {
        Payload {
            version: VERSION,
            work: Work::Shell(Shell { argv: vec!["/bin/x".into(), "y".into()], cwd: None, env: vec![] }),
            rules: vec!["r".into()],
            task: "t1".parse().unwrap(),
            fleet: FleetId([2; 16]),
            audience: Audience::Tags(vec!["gpu".parse().unwrap()]),
            timeout_ms: Some(1_000),
            user: None,
            delivery: Delivery::AtLeastOnce,
            attempts_max: 3,
            not_before_ms: 1,
            expires_ms: 2,
            nonce: [4; 16],
            issuer: pair(3).1,
            reason: "why".into(),
        }
    }

    fn signed() -> Vec<u8> {
        let (operator, key) = pair(3);
        let cert = Cert {
            key,
            name: "op".into(),
            fleet: FleetId([2; 16]),
            scope: Scope { rules: vec!["*".into()], ..Scope::default() },
            not_after_ms: 9,
        };
        let cert = Sealed::make(Context::Cert, &cert, &pair(5).0);
        Envelope::sign(&payload(), Some(cert), &operator).unwrap()
    }

    /// What a board makes of it that trusts the root.
    fn taken(bytes: &[u8]) -> Option<Payload> {
        let envelope = Envelope::decode(bytes)?;
        let cert = Cert::open(envelope.cert.as_ref()?, &[pair(5).1])?;
        envelope.open(&cert.key)
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = signed();
        assert_eq!(taken(&bytes), Some(payload()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(taken(&flipped), None, "bit {bit}");
        }
        assert_eq!(taken(&[&bytes[..], &[0]].concat()), None, "one byte more");
    }

    proptest! {
        #[test]
        fn nothing_but_what_was_signed_is_taken(
            at in 0usize..4096, bytes in prop::collection::vec(any::<u8>(), 1..9), cut in 0usize..4096,
        ) {
            let original = signed();
            let mut changed = original.clone();
            let at = at % changed.len();
            for (n, byte) in bytes.iter().enumerate() {
                if let Some(place) = changed.get_mut(at + n) {
                    *place = *byte;
                }
            }
            prop_assert!(changed == original || taken(&changed).is_none());
            prop_assert_eq!(taken(&original[..cut % original.len()]), None);
        }
    }

    #[test]
    fn who_signs_is_who_is_named() {
        let (other, key) = pair(9);
        let bytes = Envelope::sign(&payload(), None, &other).unwrap();
        assert_eq!(Envelope::decode(&bytes).unwrap().open(&key), None, "the payload names another issuer");
    }

    #[test]
    fn bounds_are_checked_before_and_after() {
        let check = |change: fn(&mut Payload)| {
            let mut payload = payload();
            change(&mut payload);
            let bytes = postcard::to_stdvec(&payload).unwrap();
            let signature = Signature::make(Context::Job, &bytes, &pair(3).0);
            let envelope = Envelope { payload: bytes, cert: None, signature };
            let taken = envelope.open(&pair(3).1).is_some();
            assert_eq!(taken, payload.check().is_ok());
            taken
        };
        assert!(check(|_| {}));
        assert!(!check(|p| p.version = 2));
        assert!(!check(|p| p.attempts_max = 0));
        assert!(!check(|p| p.attempts_max = 11));
        assert!(!check(|p| p.expires_ms = p.not_before_ms));
        assert!(!check(|p| p.expires_ms = u64::MAX));
        assert!(!check(|p| p.audience = Audience::Tags(vec![])));
        assert!(!check(|p| p.rules = vec!["r".into(); 33]));
        assert!(!check(|p| p.reason = "x".repeat(256)));
        assert!(!check(|p| p.timeout_ms = Some(0)));
    }
}
