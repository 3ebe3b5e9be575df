//! Everything that reads bytes of others, fed with broken ones: none may panic, and nothing signed may survive a change.
//!
//! A few thousand mutations of real inputs each time; for as long as `DUNLIN_FUZZ_SECONDS` says when it is set, with the
//! seed of `DUNLIN_FUZZ_SEED` or a new one, which a failure prints; `DUNLIN_FUZZ_ONLY` names one target.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_agent::core::policy::Policy;
use dunlin_agent::core::trust::Trust;
use dunlin_agent::exec::message::{Decision, FromExec, ToExec, Work};
use dunlin_wire::actuation::{Actuation, Declared, Source, Tier};
use dunlin_wire::bundle::BundleResult;
use dunlin_wire::envelope::{self, Audience, Envelope, Payload, VERSION};
use dunlin_wire::job::{Delivery, Job, Outcome, Report, Shell, Stream};
use dunlin_wire::keys::{Cert, KeySet, Kind, Scope};
use dunlin_wire::message::{Numbered, ToAgent, ToHub, Upload};
use dunlin_wire::seal::{Context, Sealed, decode};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::{ClaimId, Fence, FleetId, Key, frame, limits};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// Mutations of one input when no time is given.
const ROUNDS: u32 = 4_000;

/// Changes `bytes` in one to four places.
fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.u32(1..5) {
        let at = rng.usize(..bytes.len() + 1);
        match rng.u8(..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => bytes.insert(at, rng.u8(..)),
            3 => bytes.truncate(at),
            // Lengths and counts are varints: the largest ones are the most telling.
            4 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
            5 => {
                let piece = bytes[at..bytes.len().min(at + 40)].to_vec();
                let to = rng.usize(..bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            _ => drop(bytes.drain(at..bytes.len().min(at + rng.usize(..9)))),
        }
    }
}

/// Calls `check` with `input` and then with changed ones.
#[expect(clippy::disallowed_methods, reason = "how long to look is the caller's choice, and judges nothing")]
fn fuzz(name: &str, inputs: &[Vec<u8>], check: impl Fn(&[u8], bool)) {
    if std::env::var("DUNLIN_FUZZ_ONLY").is_ok_and(|only| only != name) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seed = number("DUNLIN_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let end = number("DUNLIN_FUZZ_SECONDS").map(|s| SystemTime::now() + Duration::from_secs(s));
    let mut rng = fastrand::Rng::with_seed(seed);
    println!("{name}: DUNLIN_FUZZ_SEED={seed}");
    let mut round = 0u64;
    loop {
        for input in inputs {
            check(input, true);
            let mut bytes = input.clone();
            mutate(&mut bytes, &mut rng);
            check(&bytes, bytes == *input);
        }
        round += 1;
        let over = match end {
            Some(end) => SystemTime::now() >= end,
            None => round >= u64::from(ROUNDS),
        };
        if over {
            println!("{name}: {} inputs", round * inputs.len() as u64);
            return;
        }
    }
}

fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap()
}

fn pair() -> (Ed25519KeyPair, Key) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let key = Key(pair.public_key().as_ref().try_into().unwrap());
    (pair, key)
}

fn cert() -> Cert {
    let (rules, users) = (vec!["r".into()], vec!["*".into()]);
    let scope = Scope { kinds: vec![Kind::Shell], rules, users, tags: vec!["lab".parse().unwrap()] };
    Cert { key: pair().1, name: "op".into(), fleet: FleetId([2; 16]), scope, not_after_ms: 300 }
}

fn signed(audience: Audience) -> Vec<u8> {
    let (pair, key) = pair();
    let argv = vec!["/bin/x".into(), "--y".into()];
    let shell = Shell { argv, cwd: Some("/d".into()), env: vec![("K".into(), "V".into())] };
    let payload = Payload {
        version: VERSION,
        work: envelope::Work::Shell(shell),
        rules: vec![],
        task: "t1".parse().unwrap(),
        fleet: FleetId([2; 16]),
        audience,
        timeout_ms: Some(1_000),
        user: None,
        delivery: Delivery::AtLeastOnce,
        attempts_max: 3,
        not_before_ms: 1,
        expires_ms: 300,
        nonce: [4; 16],
        issuer: key,
        reason: "why".into(),
    };
    let cert = Sealed::make(Context::Cert, &cert(), &pair);
    Envelope::sign(&payload, Some(cert), &pair).unwrap()
}

fn envelopes() -> Vec<Vec<u8>> {
    let tags = Audience::Tags(vec!["lab".parse().unwrap()]);
    vec![signed(tags), signed(Audience::Nodes(vec!["n1".parse().unwrap()]))]
}

#[test]
fn envelopes_survive_no_change() {
    let key = pair().1;
    let signed: Vec<_> =
        envelopes().iter().map(|e| Envelope::decode(e).unwrap().open(&key).unwrap()).collect();
    fuzz("envelope", &envelopes(), |bytes, same| {
        let envelope = Envelope::decode(bytes);
        let cert = envelope.as_ref().and_then(|e| Cert::open(e.cert.as_ref()?, &[key]));
        let taken = cert.and_then(|cert| envelope.as_ref()?.open(&cert.key));
        // A length can be written longer than it must be: another envelope, with the very same job in it.
        assert!(taken.as_ref().is_none_or(|taken| signed.contains(taken)), "{bytes:?}");
        assert!(taken.is_some() || !same, "{bytes:?}");
        let _ = envelope.and_then(|e| e.peek());
    });
}

#[test]
fn key_sets_survive_no_change() {
    let (pair, key) = pair();
    let set = KeySet { version: 3, certs: vec![cert()], revoked: vec![Key([9; 32])] };
    let input = bytes(&Sealed::make(Context::Keys, &set, &pair));
    fuzz("key set", &[input], |bytes, same| {
        let taken = KeySet::open(bytes, &[key]);
        assert!(taken.as_ref().is_none_or(|taken| *taken == set), "{bytes:?}");
        assert!(taken.is_some() || !same, "{bytes:?}");
        let _ = KeySet::peek(bytes);
    });
}

#[test]
fn tickets_and_results_survive_no_change() {
    let (pair, key) = pair();
    let (hub, fleet) = (key, FleetId([2; 16]));
    let ticket = Ticket { addrs: vec!["h:1".into()], hub, fleet, invite: [1; 16], secret: [2; 16] };
    fuzz("ticket", &[ticket.sign(&pair).into_bytes()], |bytes, _| {
        let read = Ticket::parse(&String::from_utf8_lossy(bytes));
        assert!(read.is_err() || read == Ok(ticket.clone()), "{bytes:?}");
    });
    let result = BundleResult {
        node: "n1".parse().unwrap(),
        key,
        fleet,
        task: "t1".parse().unwrap(),
        job: [1; 32],
        at_ms: 3,
        report: Report::without_process(Outcome::Ok),
        stdout: b"out".to_vec(),
        stderr: vec![],
    };
    fuzz("result", &[result.sign(&pair).into_bytes()], |bytes, _| {
        let read = BundleResult::parse(&String::from_utf8_lossy(bytes));
        assert!(read.is_none_or(|read| read == result), "{bytes:?}");
    });
}

#[test]
fn files_of_the_board_are_refused_in_words() {
    let trust =
        format!("schema = 1\nroots = [\"{}\"]\nfleet = \"{}\"\nnode = \"n\"\n", pair().1, FleetId([2; 16]));
    fuzz("trust file", &[trust.into_bytes()], |bytes, _| {
        if let Err(error) = Trust::parse(&String::from_utf8_lossy(bytes)) {
            assert!(!error.is_empty());
        }
    });
    let policy = dunlin_tests::fleet::POLICY.replace("@DIR@", "/w");
    fuzz("policy", &[policy.into_bytes()], |bytes, _| {
        let files = [("p.toml".to_owned(), String::from_utf8_lossy(bytes).into_owned())];
        if let Err(error) = Policy::parse(&files) {
            assert!(error.line >= 1);
        }
    });
}

#[test]
fn frames_end_in_a_message_or_an_error() {
    let fence = Fence(7);
    let messages = [
        ToHub::Claim { ids: vec![ClaimId(1), ClaimId(300)] },
        ToHub::Heartbeat { fences: vec![fence], sample: None },
        ToHub::Keys { version: 3 },
        ToHub::Upload(Upload::Outcome {
            task: "t1".parse().unwrap(),
            fence,
            report: Box::new(Report::without_process(Outcome::Ok)),
        }),
    ];
    let mut input = Vec::new();
    for (seq, message) in messages.into_iter().enumerate() {
        frame::push(&mut input, &Numbered { seq: seq as u64, message }, limits::FRAME_MAX).unwrap();
    }
    fuzz("frames", &[input], |bytes, _| {
        let mut decoder = frame::Decoder::new(limits::FRAME_MAX);
        for piece in bytes.chunks(11) {
            decoder.push(piece);
            while let Ok(Some(_)) = decoder.next::<Numbered>() {}
        }
    });
    let watch = ToAgent::Watch { fence, stream: Stream::Stderr, credit: 70_000 };
    let job = Job::Actuation(Actuation {
        shell: Shell { argv: vec!["/bin/x".into()], cwd: None, env: vec![] },
        declared: Declared {
            target: "actuator:p".parse().unwrap(),
            tier: Tier::T3,
            evidence: vec![Source::Sensor],
            verified_by: vec![Source::Human],
        },
    });
    let to = [bytes(&ToAgent::Keys(vec![1, 2])), bytes(&ToAgent::Moved), bytes(&watch), bytes(&job)];
    fuzz("to the agent", &to, |bytes, _| {
        let _ = postcard::from_bytes::<ToAgent>(bytes);
        let job = postcard::from_bytes::<Job>(bytes);
        let _ = job.map(|job| job.check_shape());
    });
    let tail = Upload::Tail { fence, stream: Stream::Stdout, offset: 300, bytes: vec![7; 40] };
    fuzz("upload", &[bytes(&tail)], |bytes, _| drop(postcard::from_bytes::<Upload>(bytes)));
}

#[test]
fn messages_of_the_executor_are_read_or_refused() {
    let (task, fence) = ("t1".parse().unwrap(), Fence(7));
    let job = Job::Signed(envelopes().remove(0));
    let work = Work { task, fence, attempt: 1, job, timeout_ms: None };
    let to = [
        bytes(&ToExec::Prepare(Box::new(work))),
        bytes(&ToExec::Start { fence, lease_until: 9 }),
        bytes(&ToExec::Keys(vec![1; 90])),
    ];
    fuzz("to the executor", &to, |bytes, _| drop(decode::<ToExec>(bytes, limits::FRAME_MAX)));
    let report = Box::new(Report::without_process(Outcome::Ok));
    let from = [
        bytes(&FromExec::Prepared { fence, decision: Decision::Deny(report.clone()) }),
        bytes(&FromExec::Ended { fence, report, kept: [vec![1; 50], vec![]] }),
    ];
    fuzz("from the executor", &from, |bytes, _| drop(decode::<FromExec>(bytes, limits::FRAME_MAX)));
}
