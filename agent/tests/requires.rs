//! What a task requires of the board is checked there once more, when its job would start.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_agent::core::Core;
use dunlin_agent::event::{Effect, Event, Loaded, Reading, Setup, Write};
use dunlin_agent::exec::message::{Decision, FromExec, PolicyState, ToExec};
use dunlin_wire::job::{Delivery, Denial, Job, OnDisconnect, Outcome, Shell};
use dunlin_wire::message::{Grant, Profile, Role, ToAgent, ToHub, Welcome};
use dunlin_wire::telemetry::{Inventory, Slot};
use dunlin_wire::{ClaimId, Fence, FleetId};

fn setup() -> Setup {
    Setup {
        fleet: FleetId([1; 16]),
        node: "n".parse().unwrap(),
        role: Role::Worker,
        slots: 1,
        profile: Profile::Lan,
        capabilities: vec![],
        boot_id: [2; 16],
        kernel_boot: [3; 16],
        version: "t".into(),
    }
}

/// Grants a task that requires something of a board with `free` MiB of memory; what the core then does.
fn start(free: Option<i64>) -> Vec<Effect> {
    let mut out = Vec::new();
    let mut core = Core::new(setup(), Loaded::default(), &mut out);
    let policy = PolicyState { digest: [0; 8], jobs: 1, layers: 0, error: None, kinds: vec![], overlay: 0 };
    core.handle(Event::FromExec(FromExec::Policy(policy)), 0, &mut out);
    core.handle(Event::Connected { early: false }, 0, &mut out);
    let welcome = Welcome { generation: 2, heard: 1, slots: 1, heartbeat_ms: 5_000 };
    core.handle(Event::FromHub(ToAgent::Welcome(Box::new(welcome))), 0, &mut out);
    if let Some(free) = free {
        let inventory = Inventory { number: 1, slots: vec![Slot::MemoryAvailable], ..Inventory::default() };
        core.handle(
            Event::Reading(Reading { inventory: inventory.into(), values: vec![Some(free)], jobs: vec![] }),
            0,
            &mut out,
        );
    }
    let claim = out.iter().find_map(|effect| match effect {
        Effect::Send(frame) => match &frame.message {
            ToHub::Claim { ids } => ids.first().copied(),
            _ => None,
        },
        _ => None,
    });
    let grant = Grant {
        claim: claim.unwrap_or(ClaimId(0)),
        fence: Fence(7),
        heard: 1,
        lease_ms: 30_000,
        task: "t1".parse().unwrap(),
        attempt: 1,
        job: Job::Shell(Shell { argv: vec!["/x".into()], cwd: None, env: vec![] }),
        timeout_ms: None,
        on_disconnect: OnDisconnect::Fence,
        delivery: Delivery::AtLeastOnce,
        requires: vec!["memoryFreeMib >= 100".parse().unwrap()],
    };
    core.handle(Event::FromHub(ToAgent::Grant(Box::new(grant))), 0, &mut out);
    out.clear();
    let decision = Decision::Allow { rule: "r".into(), timeout_ms: 1_000 };
    core.handle(Event::FromExec(FromExec::Prepared { fence: Fence(7), decision }), 0, &mut out);
    out
}

#[test]
fn a_job_starts_only_on_a_board_that_has_what_it_requires() {
    let started = |out: &[Effect]| out.iter().any(|e| matches!(e, Effect::Exec(ToExec::Start { .. })));
    assert!(started(&start(Some(100))));
    for free in [Some(99), None] {
        let out = start(free);
        assert!(!started(&out), "{free:?}");
        assert!(out.contains(&Effect::Exec(ToExec::Forget { fence: Fence(7) })), "{out:?}");
        let outcome = out.iter().find_map(|effect| match effect {
            Effect::Store(Write::Ended { record, .. }) => record.report.as_ref().map(|r| r.outcome.clone()),
            _ => None,
        });
        assert_eq!(outcome, Some(Outcome::Denied { reason: Denial::CapabilityMissing }), "{free:?}");
    }
}
