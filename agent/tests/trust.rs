//! Every reason of the signing group, each beside a neighbour that is allowed.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_agent::core::policy::{Policy, Request, Signed, decide};
use dunlin_agent::core::trust::{
    Board, CLOCK_SLACK_MS, Clock, Offer, Trust, Verified, attempt, renew, verify,
};
use dunlin_wire::envelope::{Audience, Envelope, Payload, VERSION, Work};
use dunlin_wire::job::{Delivery, Denial, Shell};
use dunlin_wire::keys::{Cert, KeySet, Kind, Scope};
use dunlin_wire::seal::{Context, Sealed};
use dunlin_wire::{FleetId, Key, TaskId};
use ring::signature::{Ed25519KeyPair, KeyPair};

const NOW: u64 = 1_800_000_000_000;
const ROOT: u8 = 1;
const OPERATOR: u8 = 2;

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn key(seed: u8) -> Key {
    Key(pair(seed).public_key().as_ref().try_into().unwrap())
}

/// One job for one board, with everything that can be wrong about it.
struct World {
    payload: Payload,
    cert: Cert,
    signed_by: u8,
    certified_by: u8,
    bring_cert: bool,
    keys: Option<KeySet>,
    board: Board,
    clock: Clock,
    task: TaskId,
    attempt: u32,
    flip: Option<usize>,
}

impl World {
    fn new() -> Self {
        let fleet = FleetId([7; 16]);
        let any = || vec!["*".to_owned()];
        let scope = Scope {
            kinds: vec![Kind::Shell],
            rules: any(),
            users: any(),
            tags: vec!["site:*".parse().unwrap()],
        };
        let task: TaskId = "t1".parse().unwrap();
        let payload = Payload {
            version: VERSION,
            work: Work::Shell(Shell { argv: vec!["/x".into()], cwd: None, env: vec![] }),
            rules: vec![],
            task: task.clone(),
            fleet,
            audience: Audience::Nodes(vec!["heron".parse().unwrap()]),
            timeout_ms: None,
            user: None,
            delivery: Delivery::AtLeastOnce,
            attempts_max: 2,
            not_before_ms: NOW - 1_000,
            expires_ms: NOW + 1_000,
            nonce: [9; 16],
            issuer: key(OPERATOR),
            reason: String::new(),
        };
        let tags = vec!["gpu".parse().unwrap(), "site:oslo".parse().unwrap()];
        Self {
            payload,
            cert: Cert { key: key(OPERATOR), name: "op".into(), fleet, scope, not_after_ms: NOW + 5_000 },
            signed_by: OPERATOR,
            certified_by: ROOT,
            bring_cert: true,
            keys: None,
            board: Board { fleet, node: "heron".parse().unwrap(), key: Some(key(50)), tags },
            clock: Clock { now_ms: NOW, floor_ms: NOW - 10_000 },
            task,
            attempt: 1,
            flip: None,
        }
    }

    fn verify(&self) -> Result<Verified, Denial> {
        let cert = Sealed::make(Context::Cert, &self.cert, &pair(self.certified_by));
        let cert = self.bring_cert.then_some(cert);
        let mut bytes = Envelope::sign(&self.payload, cert, &pair(self.signed_by)).unwrap();
        if let Some(from_end) = self.flip {
            let at = bytes.len() - 1 - from_end;
            bytes[at] ^= 1;
        }
        let offer = Offer { bytes: &bytes, task: &self.task, attempt: self.attempt };
        let trust = Trust { roots: vec![key(90), key(ROOT)], fleet: None, node: None, key: None };
        verify(offer, &trust, self.keys.as_ref(), &self.board, self.clock).map_err(|(denial, _)| denial)
    }
}

/// What comes of the job after `change`.
fn check(change: impl FnOnce(&mut World), want: Option<Denial>) {
    let mut world = World::new();
    change(&mut world);
    assert_eq!(world.verify().err(), want);
}

fn set(version: u64, certs: Vec<Cert>, revoked: Vec<Key>) -> KeySet {
    KeySet { version, certs, revoked }
}

#[test]
fn what_nobody_trusted_signed_is_refused() {
    check(|_| {}, None);
    check(|w| w.flip = Some(0), Some(Denial::SignatureInvalid));
    check(|w| w.signed_by = 3, Some(Denial::SignatureInvalid));
    // A certificate by nobody, or of somebody else; one from the key set is as good as one that is brought.
    check(|w| w.certified_by = OPERATOR, Some(Denial::KeyUnknown));
    check(|w| w.cert.key = key(4), Some(Denial::KeyUnknown));
    check(|w| w.bring_cert = false, Some(Denial::KeyUnknown));
    check(
        |w| {
            w.bring_cert = false;
            w.keys = Some(set(1, vec![w.cert.clone()], vec![]));
        },
        None,
    );
    check(|w| w.cert.not_after_ms = NOW, None);
    check(|w| w.cert.not_after_ms = NOW - 1, Some(Denial::KeyUnknown));
    check(|w| w.keys = Some(set(1, vec![], vec![key(4)])), None);
    check(|w| w.keys = Some(set(1, vec![], vec![key(OPERATOR)])), Some(Denial::KeyRevoked));
    check(|w| w.keys = Some(set(1, vec![w.cert.clone()], vec![key(OPERATOR)])), Some(Denial::KeyRevoked));
}

#[test]
fn what_was_signed_for_others_is_refused() {
    let nodes = |names: &[&str]| Audience::Nodes(names.iter().map(|n| n.parse().unwrap()).collect());
    let tags = |names: &[&str]| Audience::Tags(names.iter().map(|n| n.parse().unwrap()).collect());
    check(|w| w.payload.audience = nodes(&["crane", "heron"]), None);
    check(|w| w.payload.audience = nodes(&["crane"]), Some(Denial::Audience));
    check(|w| w.payload.audience = Audience::Keys(vec![key(50)]), None);
    check(|w| w.payload.audience = Audience::Keys(vec![key(51)]), Some(Denial::Audience));
    check(|w| w.payload.audience = tags(&["gpu", "site:*"]), None);
    check(|w| w.payload.audience = tags(&["gpu", "lab"]), Some(Denial::Audience));
    check(|w| w.payload.fleet = FleetId([8; 16]), Some(Denial::Audience));
    check(|w| w.task = "t2".parse().unwrap(), Some(Denial::Audience));
    // What the key reaches is the key's scope, not the job's audience.
    check(|w| w.cert.scope.tags = vec!["*".parse().unwrap()], None);
    check(|w| w.cert.scope.tags = vec!["site:bergen".parse().unwrap()], Some(Denial::KeyScope));
    check(|w| w.cert.scope.tags = vec![], Some(Denial::KeyScope));
    check(|w| w.cert.fleet = FleetId([8; 16]), Some(Denial::KeyScope));
}

#[test]
fn times_are_the_board_s_own() {
    check(|w| w.payload.not_before_ms = NOW, None);
    check(|w| w.payload.not_before_ms = NOW + 1, Some(Denial::NotYetValid));
    check(|w| w.payload.expires_ms = NOW, None);
    check(|w| w.payload.expires_ms = NOW - 1, Some(Denial::Expired));
    check(|w| w.clock.floor_ms = NOW, None);
    check(|w| w.clock.floor_ms = NOW + CLOCK_SLACK_MS + 1, Some(Denial::ClockUntrusted));
    check(|w| w.clock.now_ms = 5, Some(Denial::ClockUntrusted));
    // Within the slack the floor is the time: what had expired there is not valid again.
    check(|w| w.clock.floor_ms = w.payload.expires_ms, None);
    check(|w| w.clock.floor_ms = w.payload.expires_ms + 1, Some(Denial::Expired));
}

#[test]
fn attempts_are_bounded_by_what_was_signed() {
    check(|w| w.attempt = 2, None);
    check(|w| w.attempt = 3, Some(Denial::AttemptsExhausted));
    check(|w| w.attempt = 0, Some(Denial::AttemptsExhausted));
    let job = World::new().verify().unwrap();
    let first = attempt(None, &job, 1).unwrap();
    assert_eq!(attempt(Some(first), &job, 1), Err(Denial::Replayed));
    let second = attempt(Some(first), &job, 2).unwrap();
    assert_eq!(attempt(Some(second), &job, 2), Err(Denial::Replayed));
    assert_eq!(attempt(Some(second), &job, 1), Err(Denial::Replayed), "an older one is none either");
    // Another job with the same nonce.
    let mut other = World::new();
    other.payload.reason = "else".into();
    assert_eq!(attempt(Some(first), &other.verify().unwrap(), 2), Err(Denial::Replayed));
    // Where there is no second start, a number makes none.
    let mut once = World::new();
    once.payload.delivery = Delivery::AtMostOnce;
    let once = once.verify().unwrap();
    let first = attempt(None, &once, 1).unwrap();
    assert_eq!(attempt(Some(first), &once, 2), Err(Denial::Replayed));
}

#[test]
fn a_key_set_is_signed_by_a_root_and_never_goes_back() {
    let trust = Trust { roots: vec![key(ROOT)], fleet: None, node: None, key: None };
    let sealed =
        |set: &KeySet, by: u8| postcard::to_stdvec(&Sealed::make(Context::Keys, set, &pair(by))).unwrap();
    let two = set(2, vec![], vec![key(4)]);
    assert_eq!(renew(&sealed(&two, ROOT), &trust, None), Ok(two.clone()));
    assert!(renew(&sealed(&two, OPERATOR), &trust, None).unwrap_err().contains("no root"));
    for (version, taken) in [(1, false), (2, false), (3, true)] {
        let renewed = renew(&sealed(&set(version, vec![], vec![]), ROOT), &trust, Some(&two));
        assert_eq!(renewed.is_ok(), taken, "{version}: {renewed:?}");
    }
}

#[test]
fn a_trust_file_is_strict() {
    let good = format!("schema = 1\nroots = [\"{}\"]\n", key(1));
    assert_eq!(Trust::parse(&good).unwrap().roots, [key(1)]);
    let full = format!("{good}fleet = \"{}\"\nnode = \"heron\"\n", FleetId([7; 16]));
    let trust = Trust::parse(&full).unwrap();
    assert_eq!((trust.fleet, trust.node), (Some(FleetId([7; 16])), Some("heron".parse().unwrap())));
    for (text, want) in [
        ("schema = 1\nroots = []\n".to_owned(), "1 to 8 keys"),
        ("schema = 1\nroots = [\"12\"]\n".to_owned(), "root `12` is no key"),
        (good.replace("schema = 1", "schema = 3"), "`schema = 1` is required"),
        (format!("{good}root = 1\n"), "line 3: unknown field"),
        (format!("schema = 1\nroots = [\"01{}\"]\n", "0".repeat(62)), "small order"),
        (format!("{good}fleet = \"12\"\n"), "32 hexadecimal digits"),
    ] {
        let result = Trust::parse(&text);
        assert!(result.clone().is_err_and(|e| e.contains(want)), "{text}: {result:?}");
    }
}

/// What the policy says to a program with this signature, when the board requires `require`.
fn decided(require: &str, rule: &str, argv: &[&str], signed: Option<Signed<'_>>) -> String {
    let text = format!(
        "schema = 1\n[signing]\nrequire = \"{require}\"\n[shell]\nenabled = {}\n[[rule]]\nid = \"r\"\n{rule}\n",
        !rule.contains("# off")
    );
    let policy = Policy::parse(&[("p.toml".to_owned(), text)]).unwrap();
    let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
    match decide(&policy, Request { argv: &argv, signed, ..Request::default() }) {
        Ok(_) => "allow".into(),
        Err(denial) => denial.to_string(),
    }
}

fn scope(kinds: &[Kind], rules: &[&str], users: &[&str]) -> Scope {
    let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
    Scope { kinds: kinds.to_vec(), rules: texts(rules), users: texts(users), tags: vec![] }
}

#[test]
fn a_privileged_rule_runs_for_a_key_that_may() {
    let plain = "program = \"/x\"";
    let launcher = "program = \"/bin/sh\"\nlauncher = true";
    let root = "program = \"/x\"\nuser = \"root\"";
    let full = scope(&[Kind::Shell], &["*"], &["*"]);
    let with = |scope| Some(Signed { scope, rules: &[], user: None });
    for (require, rule, program, signed, want) in [
        ("privileged", plain, "/x", None, "allow"),
        ("always", plain, "/x", None, "signature_missing"),
        ("always", plain, "/x", with(&full), "allow"),
        ("privileged", launcher, "/bin/sh", None, "signature_missing"),
        ("privileged", launcher, "/bin/sh", with(&full), "allow"),
        ("never", launcher, "/bin/sh", None, "allow"),
        ("privileged", root, "/x", None, "signature_missing"),
        ("privileged", root, "/x", with(&full), "allow"),
        ("privileged", root, "/x", with(&scope(&[Kind::Shell], &["*"], &["slot"])), "key_scope"),
        ("privileged", root, "/x", with(&scope(&[Kind::Shell], &["r"], &["root"])), "allow"),
        ("privileged", root, "/x", with(&scope(&[Kind::Shell], &["q"], &["root"])), "key_scope"),
        ("privileged", root, "/x", with(&scope(&[Kind::Line], &["r"], &["root"])), "key_scope"),
        ("privileged", root, "/x", with(&scope(&[], &["r"], &["root"])), "key_scope"),
        ("privileged", root, "/y", with(&full), "not_allowlisted"),
    ] {
        assert_eq!(decided(require, rule, &[program], signed), want, "{require} {rule} {program}");
    }
    let rules = ["q".to_owned()];
    let meant = Signed { scope: &full, rules: &rules, user: None };
    assert_eq!(
        decided("privileged", root, &["/x"], Some(meant)),
        "not_allowlisted",
        "another rule was meant"
    );
    let slot = Signed { scope: &full, rules: &[], user: Some("slot") };
    assert_eq!(decided("privileged", root, &["/x"], Some(slot)), "user", "another user was meant");
}

#[test]
fn a_free_line_needs_switch_rule_and_key() {
    let rule = "program = \"/bin/sh\"\nshell = true";
    let off = "program = \"/bin/sh\"\nshell = true # off";
    let argv = ["/bin/sh", "-c", "a | b > c"];
    let line = scope(&[Kind::Line], &["*"], &["*"]);
    let shell = scope(&[Kind::Shell], &["*"], &["*"]);
    let with = |scope| Some(Signed { scope, rules: &[], user: None });
    for (rule, signed, want) in [
        (rule, with(&line), "allow"),
        (off, with(&line), "shell_disabled"),
        ("program = \"/bin/sh\"\nlauncher = true", with(&line), "argument"),
        (rule, with(&shell), "key_scope"),
        (rule, None, "shell_unsigned"),
    ] {
        assert_eq!(decided("never", rule, &argv, signed), want, "{rule}");
    }
    assert_eq!(decided("never", rule, &["/bin/sh", "-c", "a\n\tb"], with(&line)), "allow", "several lines");
    assert_eq!(decided("never", rule, &["/bin/sh", "-x"], with(&line)), "argument");
    assert_eq!(decided("never", rule, &["/bin/sh", "-c", "a\u{202e}b"], with(&line)), "argument_charset");
}
