//! What a task requires of the board is checked there once more, when its job would start.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod granted;

use dunlin_agent::core::Core;
use dunlin_agent::event::{Effect, Event, Loaded, Reading, Write};
use dunlin_agent::exec::message::{Decision, FromExec, ToExec};
use dunlin_wire::job::{Denial, Outcome};
use dunlin_wire::message::{Profile, ToAgent, Welcome};
use dunlin_wire::telemetry::{Inventory, Slot};
use granted::{FENCE, claims, grant, policy, setup};

/// Grants a task that requires something of a board with `free` MiB of memory; what the core then does.
fn start(free: Option<i64>) -> Vec<Effect> {
    let mut out = Vec::new();
    let mut core = Core::new(setup(Profile::Lan), Loaded::default(), &mut out);
    core.handle(policy(), 0, &mut out);
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
    let claim = claims(&out)[0];
    let requires = vec!["memoryFreeMib >= 100".parse().unwrap()];
    core.handle(Event::FromHub(grant(claim, requires)), 0, &mut out);
    out.clear();
    let decision = Decision::Allow { rule: "r".into(), timeout_ms: 1_000 };
    core.handle(Event::FromExec(FromExec::Prepared { fence: FENCE, decision }), 0, &mut out);
    out
}

#[test]
fn a_job_starts_only_on_a_board_that_has_what_it_requires() {
    let started = |out: &[Effect]| out.iter().any(|e| matches!(e, Effect::Exec(ToExec::Start { .. })));
    assert!(started(&start(Some(100))));
    for free in [Some(99), None] {
        let out = start(free);
        assert!(!started(&out), "{free:?}");
        assert!(out.contains(&Effect::Exec(ToExec::Forget { fence: FENCE })), "{out:?}");
        let outcome = out.iter().find_map(|effect| match effect {
            Effect::Store(Write::Ended { record, .. }) => record.report.as_ref().map(|r| r.outcome.clone()),
            _ => None,
        });
        assert_eq!(outcome, Some(Outcome::Denied { reason: Denial::CapabilityMissing }), "{free:?}");
    }
}
