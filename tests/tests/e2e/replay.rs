//! The executor, asked by somebody who took the uplink over and repeats what an operator signed.

use super::fleet;
use dunlin_agent::clock;
use dunlin_agent::exec::Executor;
use dunlin_agent::exec::message::{Decision, FromExec, ToExec, Work};
use dunlin_tests::{Fleet, Proc, until};
use dunlin_wire::envelope::{self, Audience, Envelope, Payload, VERSION};
use dunlin_wire::job::{Delivery, Denial, Job, Outcome, Shell};
use dunlin_wire::keys::{Cert, KeySet, Kind, Scope};
use dunlin_wire::seal::{Context, Sealed};
use dunlin_wire::{Fence, FleetId, Key};
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::sync::mpsc;

fn pair(seed: u8) -> (Ed25519KeyPair, Key) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let key = Key(pair.public_key().as_ref().try_into().unwrap());
    (pair, key)
}

/// A job that may be started twice.
fn job() -> Job {
    let (now, fleet) = (clock::wall_ms(), FleetId([7; 16]));
    let any = || vec!["*".to_owned()];
    let tags = vec!["*".parse().unwrap()];
    let scope = Scope { kinds: vec![Kind::Shell], rules: any(), users: any(), tags };
    let cert = Cert { key: pair(2).1, name: String::new(), fleet, scope, not_after_ms: now + 60_000 };
    let payload = Payload {
        version: VERSION,
        work: envelope::Work::Shell(Shell { argv: vec!["/usr/bin/true".into()], cwd: None, env: vec![] }),
        rules: vec![],
        task: "t".parse().unwrap(),
        fleet,
        audience: Audience::Nodes(vec!["heron".parse().unwrap()]),
        timeout_ms: None,
        user: None,
        delivery: Delivery::AtLeastOnce,
        attempts_max: 2,
        not_before_ms: now - 1_000,
        expires_ms: now + 60_000,
        nonce: [9; 16],
        issuer: pair(2).1,
        reason: String::new(),
    };
    let cert = Sealed::make(Context::Cert, &cert, &pair(1).0);
    Job::Signed(Envelope::sign(&payload, Some(cert), &pair(2).0).unwrap())
}

struct Exec {
    executor: Executor,
    told: mpsc::Receiver<FromExec>,
    _proc: Proc,
}

/// The executor's process, by itself; this is its uplink. `None` where that cannot be.
fn start(fleet: &Fleet) -> Option<Exec> {
    // SAFETY: geteuid cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not root: a rule with user = \"root\" cannot run, so this is not tested");
        return None;
    }
    let dir = fleet.dir();
    let policy = "schema = 1\n[ceilings]\njobs = 8\n[[rule]]\nid = \"r\"\nprogram = \"/usr/bin/true\"\nuser = \"root\"\n";
    std::fs::write(dir.join("policy.toml"), policy).unwrap();
    let pins = format!("fleet = \"{}\"\nnode = \"heron\"\n", FleetId([7; 16]));
    std::fs::write(dir.join("trust.toml"), format!("schema = 1\nroots = [\"{}\"]\n{pins}", pair(1).1))
        .unwrap();
    let config = format!("trust = {:?}\n", dir.join("trust.toml").display().to_string());
    std::fs::write(dir.join("exec.toml"), config).unwrap();
    let socket = dir.join("exec.sock");
    let mut command = fleet.command("dunlin-agent");
    command.args(["exec", "--peer", "root", "--socket"]).arg(&socket).arg("--data").arg(dir.join("exec"));
    command.arg("--policy").arg(dir.join("policy.toml")).arg("--config").arg(dir.join("exec.toml"));
    let proc = fleet.spawn("exec", command).unwrap();
    let (executor, told) = until("the executor listens", || {
        let (tell, told) = mpsc::channel();
        let tell = Box::new(move |message: Option<_>| drop(message.map(|message| tell.send(message))));
        Executor::connect(&socket, tell).ok().map(|executor| (executor, told))
    });
    Some(Exec { executor, told, _proc: proc })
}

impl Exec {
    fn prepare(&self, job: Job, fence: u64, attempt: u32) -> Option<Denial> {
        let task = "t".parse().unwrap();
        let work = Work { task, fence: Fence(fence), attempt, job, timeout_ms: None };
        self.executor.send(ToExec::Prepare(Box::new(work)));
        loop {
            match self.told.recv().unwrap() {
                FromExec::Prepared { decision: Decision::Allow { .. }, .. } => return None,
                FromExec::Prepared { decision: Decision::Deny(report), .. } => match report.outcome {
                    Outcome::Denied { reason } => return Some(reason),
                    other => panic!("{other}"),
                },
                _ => {}
            }
        }
    }

    /// Whether it was refused at its start; else it has ended well.
    fn begin(&self, fence: u64) -> Option<Denial> {
        self.executor.send(ToExec::Start { fence: Fence(fence), lease_until: u64::MAX / 2 });
        loop {
            if let FromExec::Ended { report, .. } = self.told.recv().unwrap() {
                return match report.outcome {
                    Outcome::Denied { reason } => Some(reason),
                    other => {
                        assert_eq!(other, Outcome::Ok);
                        None
                    }
                };
            }
        }
    }
}

#[test]
fn each_attempt_that_was_signed_starts_once() {
    let ((_dir, fleet), job) = (fleet(), job());
    let Some(exec) = start(&fleet) else { return };
    // What was only prepared has used nothing up: a connection that ended takes it back.
    assert_eq!(exec.prepare(job.clone(), 1, 1), None);
    exec.executor.send(ToExec::Forget { fence: Fence(1) });
    assert_eq!(exec.prepare(job.clone(), 1, 1), None);
    // Prepared twice, started once.
    assert_eq!(exec.prepare(job.clone(), 2, 1), None);
    assert_eq!(exec.begin(1), None);
    assert_eq!(exec.begin(2), Some(Denial::Replayed));
    assert_eq!(exec.prepare(job.clone(), 3, 1), Some(Denial::Replayed));
    assert_eq!(exec.prepare(job.clone(), 4, 3), Some(Denial::AttemptsExhausted));
    drop(exec);
    let Some(exec) = start(&fleet) else { return };
    assert_eq!(exec.prepare(job.clone(), 5, 1), Some(Denial::Replayed), "also after a restart");
    assert_eq!(exec.prepare(job.clone(), 6, 2), None, "a retry is none");
    assert_eq!(exec.begin(6), None);
    assert_eq!(exec.prepare(job.clone(), 7, 2), Some(Denial::Replayed));
}

#[test]
fn what_was_revoked_since_it_was_prepared_does_not_start() {
    let ((_dir, fleet), job) = (fleet(), job());
    let Some(exec) = start(&fleet) else { return };
    assert_eq!(exec.prepare(job.clone(), 1, 1), None);
    let set = KeySet { version: 1, certs: vec![], revoked: vec![pair(2).1] };
    let bytes = postcard::to_stdvec(&Sealed::make(Context::Keys, &set, &pair(1).0)).unwrap();
    exec.executor.send(ToExec::Keys(bytes));
    assert_eq!(exec.begin(1), Some(Denial::KeyRevoked));
}
