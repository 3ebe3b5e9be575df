//! Whose signed jobs are taken, and whether this one is: signature, scope, audience, times, and whether it was here
//! before. Pure: keys, tables and times come in as values; what is remembered is kept by `exec::replay`.
//!
//! The hub is the adversary: it can hold back, reorder and repeat what operators signed, number attempts as it likes,
//! and name any task. So nothing of a signed job is read from what the hub says but the attempt's number, which can only
//! use up the attempts that the operator signed.

use dunlin_wire::envelope::{Audience, Envelope, Payload};
use dunlin_wire::job::{Delivery, Denial};
use dunlin_wire::keys::{Cert, KeySet};
use dunlin_wire::{FleetId, Key, NodeName, Tag, TaskId};
use serde::{Deserialize, Serialize};

/// Roots that a trust file may name.
pub const ROOTS_MAX: usize = 8;
/// How far the clock may have gone back behind the floor, in milliseconds: a correction, not another day.
pub const CLOCK_SLACK_MS: u64 = 60_000;

/// The trust file: `/etc/dunlin/trust.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Keys that certify operators and sign key sets.
    pub roots: Vec<Key>,
    /// The fleet and name of this board, when the file pins them; else those of its enrolment hold.
    pub fleet: Option<FleetId>,
    /// See `fleet`.
    pub node: Option<NodeName>,
    /// The device's key, for jobs that are signed for one.
    pub key: Option<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrust {
    schema: u32,
    roots: Vec<String>,
    fleet: Option<String>,
    node: Option<NodeName>,
    key: Option<String>,
}

impl Trust {
    /// Reads the text of a trust file.
    ///
    /// # Errors
    /// The line, the rule that is broken, and the fix.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawTrust = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            format!("line {line}: {}", e.message())
        })?;
        if raw.schema != 1 {
            return Err("`schema = 1` is required".into());
        }
        if raw.roots.is_empty() || raw.roots.len() > ROOTS_MAX {
            return Err(format!("roots must be 1 to {ROOTS_MAX} keys, as `dunlin key show` prints them"));
        }
        let root = |text: &String| {
            Key::from_hex(text).ok_or_else(|| {
                format!("root `{text}` is no key: 64 hexadecimal digits, and no point of small order")
            })
        };
        let fleet = raw.fleet.map(|text| {
            let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
            let id = bytes.and_then(|b| b.try_into().ok()).map(FleetId);
            id.ok_or_else(|| format!("fleet `{text}` is not 32 hexadecimal digits"))
        });
        Ok(Self {
            roots: raw.roots.iter().map(root).collect::<Result<_, _>>()?,
            fleet: fleet.transpose()?,
            node: raw.node,
            key: raw
                .key
                .map(|text| Key::from_hex(&text).ok_or(format!("key `{text}` is no key")))
                .transpose()?,
        })
    }

    /// Who this board is: what the file pins, else what it was enrolled as.
    pub fn board(&self, enrolled: Option<&Board>, tags: &[Tag]) -> Option<Board> {
        Some(Board {
            fleet: self.fleet.or_else(|| Some(enrolled?.fleet))?,
            node: self.node.clone().or_else(|| Some(enrolled?.node.clone()))?,
            key: self.key.or_else(|| enrolled?.key),
            tags: tags.to_vec(),
        })
    }
}

/// Who this board is, as its own files say.
#[derive(Debug, Clone)]
pub struct Board {
    /// Its fleet.
    pub fleet: FleetId,
    /// Its name.
    pub node: NodeName,
    /// Its key, where that is known.
    pub key: Option<Key>,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// The wall clock, and what it cannot be behind of. Milliseconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// What it says.
    pub now_ms: u64,
    /// The greatest of the build's time and what was accepted before.
    pub floor_ms: u64,
}

/// A signed job as the hub gave it.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The envelope.
    pub bytes: &'a [u8],
    /// The task it is said to be.
    pub task: &'a TaskId,
    /// The attempt it is said to be, from 1.
    pub attempt: u32,
}

/// A job that somebody may ask for.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What was signed.
    pub payload: Payload,
    /// By whom, and how far the key reaches.
    pub cert: Cert,
    /// Which job it is.
    pub digest: [u8; 32],
}

/// What is remembered of a signed job until it has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its end, in milliseconds since the epoch.
    pub expires_ms: u64,
    /// The greatest attempt that was started.
    pub attempt: u32,
    /// Which job it is: another one with the same nonce is none of its attempts.
    pub digest: [u8; 32],
}

/// Whether `offer` is a job that an operator signed for this board and for now. Whether it was here before says
/// [`attempt`], what it may do says the policy.
///
/// # Errors
/// The closed reason; and who is said to have signed, as far as that was readable.
pub fn verify(
    offer: Offer<'_>,
    trust: &Trust,
    keys: Option<&KeySet>,
    board: &Board,
    clock: Clock,
) -> Result<Verified, (Denial, Option<Key>)> {
    let envelope = Envelope::decode(offer.bytes).ok_or((Denial::SignatureInvalid, None))?;
    let issuer = envelope.peek().ok_or((Denial::SignatureInvalid, None))?.issuer;
    check(offer, &envelope, issuer, (trust, keys), board, clock).map_err(|denial| (denial, Some(issuer)))
}

fn check(
    offer: Offer<'_>,
    envelope: &Envelope,
    issuer: Key,
    (trust, keys): (&Trust, Option<&KeySet>),
    board: &Board,
    clock: Clock,
) -> Result<Verified, Denial> {
    if keys.is_some_and(|set| set.revoked.contains(&issuer)) {
        return Err(Denial::KeyRevoked);
    }
    let own = envelope.cert.as_ref().and_then(|sealed| Cert::open(sealed, &trust.roots));
    let known = || keys?.certs.iter().find(|cert| cert.key == issuer).cloned();
    let cert = own.filter(|cert| cert.key == issuer).or_else(known).ok_or(Denial::KeyUnknown)?;
    let payload = envelope.open(&cert.key).ok_or(Denial::SignatureInvalid)?;
    if cert.fleet != board.fleet || !cert.scope.reaches(&board.tags) {
        return Err(Denial::KeyScope);
    }
    if payload.fleet != board.fleet || payload.task != *offer.task || !is_for(&payload.audience, board) {
        return Err(Denial::Audience);
    }
    if clock.now_ms + CLOCK_SLACK_MS < clock.floor_ms {
        return Err(Denial::ClockUntrusted);
    }
    // What was forgotten had expired at the floor, so a clock that went back must not make it valid again.
    let now_ms = clock.now_ms.max(clock.floor_ms);
    if now_ms > cert.not_after_ms {
        // A certificate that has ended is none.
        return Err(Denial::KeyUnknown);
    }
    if now_ms < payload.not_before_ms {
        return Err(Denial::NotYetValid);
    }
    if now_ms > payload.expires_ms {
        return Err(Denial::Expired);
    }
    if offer.attempt == 0 || offer.attempt > payload.attempts_max {
        return Err(Denial::AttemptsExhausted);
    }
    Ok(Verified { digest: envelope.digest(), payload, cert })
}

fn is_for(audience: &Audience, board: &Board) -> bool {
    match audience {
        Audience::Nodes(nodes) => nodes.contains(&board.node),
        Audience::Keys(keys) => board.key.is_some_and(|key| keys.contains(&key)),
        // None of them would be everybody.
        Audience::Tags(tags) => {
            !tags.is_empty() && tags.iter().all(|tag| board.tags.iter().any(|held| tag.matches(held)))
        }
    }
}

/// What is to be remembered when this attempt of a job starts, given what is remembered of it now.
///
/// A greater attempt is a retry: the hub decides that the one before was lost, and may lie, so that each board of the
/// audience runs the job `attempts_max` times at most. Where the operator allows no second start there is none,
/// whatever its number.
///
/// # Errors
/// `Replayed`.
pub fn attempt(seen: Option<Seen>, job: &Verified, attempt: u32) -> Result<Seen, Denial> {
    let again = |seen: Seen| {
        let once = job.payload.delivery == Delivery::AtMostOnce;
        once || seen.digest != job.digest || attempt <= seen.attempt
    };
    if seen.is_some_and(again) {
        return Err(Denial::Replayed);
    }
    Ok(Seen { expires_ms: job.payload.expires_ms, attempt, digest: job.digest })
}

/// Takes a key set in the place of the one in force.
///
/// # Errors
/// Why it stays as it is.
pub fn renew(bytes: &[u8], trust: &Trust, held: Option<&KeySet>) -> Result<KeySet, String> {
    let set = KeySet::open(bytes, &trust.roots)
        .ok_or("no root of the trust file signed this key set, or it was altered")?;
    let version = held.map_or(0, |held| held.version);
    if set.version <= version {
        return Err(format!(
            "version {} of the key set is not newer than {version}, which is in force",
            set.version
        ));
    }
    Ok(set)
}
