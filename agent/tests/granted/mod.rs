//! A core with one slot and what it is told until it has a grant, for the tests of what it does then.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_agent::event::{Effect, Event, Setup};
use dunlin_agent::exec::message::{FromExec, PolicyState};
use dunlin_wire::job::{Delivery, Job, OnDisconnect, Shell};
use dunlin_wire::message::{Grant, Profile, Role, ToAgent, ToHub};
use dunlin_wire::require::Require;
use dunlin_wire::{ClaimId, Fence, FleetId};

/// The grant's number.
pub const FENCE: Fence = Fence(7);

pub fn setup(profile: Profile) -> Setup {
    Setup {
        fleet: FleetId([1; 16]),
        node: "n".parse().unwrap(),
        role: Role::Worker,
        slots: 1,
        profile,
        capabilities: vec![],
        boot_id: [2; 16],
        kernel_boot: [3; 16],
        version: "t".into(),
    }
}

/// A policy that lets one job run.
pub fn policy() -> Event {
    let policy = PolicyState { digest: [0; 8], jobs: 1, layers: 0, error: None, kinds: vec![], overlay: 0 };
    Event::FromExec(FromExec::Policy(policy))
}

/// What was claimed.
pub fn claims(out: &[Effect]) -> Vec<ClaimId> {
    let of = |effect: &Effect| match effect {
        Effect::Send(frame) => match &frame.message {
            ToHub::Claim { ids } => Some(ids.clone()),
            _ => None,
        },
        _ => None,
    };
    out.iter().filter_map(of).flatten().collect()
}

/// A task that requires something of the board, granted for a claim.
pub fn grant(claim: ClaimId, requires: Vec<Require>) -> ToAgent {
    ToAgent::Grant(Box::new(Grant {
        claim,
        fence: FENCE,
        heard: 1,
        lease_ms: 1_000_000,
        task: "t1".parse().unwrap(),
        attempt: 1,
        job: Job::Shell(Shell { argv: vec!["/x".into()], cwd: None, env: vec![] }),
        timeout_ms: None,
        on_disconnect: OnDisconnect::Fence,
        delivery: Delivery::AtLeastOnce,
        requires,
    }))
}
