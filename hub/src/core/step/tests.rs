//! The way of a task, as tables.

use super::*;
use crate::core::task::TaskSpec;
use dunlin_wire::job::{Interruption, Job, Shell};

fn task(attempts_max: u32, delivery: Delivery) -> Task {
    let shell = Shell { argv: vec!["/x".into()], cwd: None, env: vec![] };
    let spec = TaskSpec {
        job: Job::Shell(shell),
        target: None,
        tags: vec![],
        priority: 0,
        attempts_max,
        timeout_ms: None,
        on_disconnect: OnDisconnect::Fence,
        delivery,
        ttl_ms: None,
        complete_by: None,
        offline_ms: None,
        requires: vec![],
    };
    Task::new("t".parse().unwrap(), spec, 1, 0, 0)
}

/// Reads a step: `grant 1`, `accept 1`, `ok 1`, `exit 1`, `lost 1`, `nothold 1`, `denied 1`, `cancel`, ...
fn input(word: &str) -> Input {
    let (verb, fence) = word.split_once(' ').unwrap_or((word, "0"));
    let fence = Fence(fence.parse().unwrap());
    let reported = |outcome, elsewhere| Input::Reported {
        fence,
        report: Box::new(Report::without_process(outcome)),
        elsewhere,
    };
    match verb {
        "grant" => Input::Grant {
            node: "n".parse().unwrap(),
            claim: ClaimId(fence.0),
            fence,
            lease_ms: 30_000,
            early: false,
        },
        "early" => Input::Grant {
            node: "n".parse().unwrap(),
            claim: ClaimId(fence.0),
            fence,
            lease_ms: 8_000,
            early: true,
        },
        "accept" => Input::Accepted { fence, lease_ms: 30_000 },
        "confirm" => Input::Confirmed { fence },
        "start" => Input::Started { fence },
        "ok" => reported(Outcome::Ok, true),
        "exit" => reported(Outcome::Exit { code: 1 }, true),
        "cut" => reported(Outcome::Interrupted { by: Interruption::PowerLoss }, true),
        "denied" => reported(Outcome::Denied { reason: dunlin_wire::job::Denial::Cwd }, true),
        "refused" => reported(Outcome::Denied { reason: dunlin_wire::job::Denial::Cwd }, false),
        "stuck" => reported(Outcome::Stuck, true),
        "lost" => Input::Lost { fence, why: Lost::LeaseOver },
        "nothold" => Input::Lost { fence, why: Lost::NotHeld },
        "cancel" => Input::Cancel { by: CancelledBy::Operator },
        "retry" => Input::Retry,
        "ttl" => Input::TtlOver,
        "reclaim" => Input::Reclaim { ending: Ending::Overdue },
        other => panic!("no step `{other}`"),
    }
}

/// Takes `steps`, separated by commas; all but the last must be legal. What the last did, or its refusal.
fn run(attempts_max: u32, delivery: Delivery, steps: &str) -> (Task, Result<Change, Refusal>) {
    let timing = Timing::default();
    let mut task = task(attempts_max, delivery);
    let mut last = Ok(Change::Noted);
    for (at, word) in steps.split(", ").enumerate() {
        assert!(last.is_ok(), "{steps}: step {at} was refused: {last:?}");
        let before = task.clone();
        last = task.step(input(word), Context { wall: at as u64, timing: &timing, random: 0.5 });
        assert!(last.is_ok() || task == before, "{steps}: a refused step changed the task");
    }
    (task, last)
}

fn check(steps: &str, state: State, want: Result<Change, Refusal>) {
    let (task, got) = run(3, Delivery::AtLeastOnce, steps);
    assert_eq!((task.state, got), (state, want), "{steps}");
}

#[test]
fn the_way_of_a_task() {
    let again = |delay_ms| Ok(Change::Requeued { delay_ms });
    check("grant 1", State::Claimed, Ok(Change::Granted));
    check("grant 1, accept 1", State::Running, Ok(Change::Accepted));
    check("grant 1, accept 1, accept 1", State::Running, Ok(Change::Noted));
    check("grant 1, accept 1, ok 1", State::Done, Ok(Change::Ended));
    check("grant 1, accept 1, exit 1", State::Queued, again(250));
    check("grant 1, exit 1, grant 2, exit 2", State::Queued, again(500));
    check("grant 1, exit 1, grant 2, lost 2, grant 3, nothold 3", State::Failed, Ok(Change::Ended));
    check("grant 1, accept 1, stuck 1", State::Failed, Ok(Change::Ended));
    check("grant 1, denied 1", State::Queued, again(250));
    check("grant 1, refused 1", State::Failed, Ok(Change::Ended));
    check("ttl", State::Failed, Ok(Change::Ended));
    check("ttl, retry", State::Queued, Ok(Change::Requeued { delay_ms: 0 }));
    check("grant 1, accept 1, reclaim", State::Running, Ok(Change::Ending(Ending::Overdue)));
    check("grant 1, accept 1, reclaim, cut 1", State::Queued, again(250));
    check("grant 1, accept 1, reclaim, ok 1", State::Done, Ok(Change::Ended));
}

#[test]
fn illegal_moves_are_refused() {
    let state = |s| Err(Refusal::State(s));
    check("grant 1, accept 1, ok 1, ok 1", State::Done, Err(Refusal::Duplicate));
    check("grant 1, accept 1, ok 1, accept 1", State::Done, state(State::Done));
    check("grant 1, accept 1, ok 1, cancel", State::Done, state(State::Done));
    check("grant 1, accept 1, ok 1, retry", State::Done, state(State::Done));
    check("cancel, cancel", State::Cancelled, state(State::Cancelled));
    check("grant 1, accept 1, ttl", State::Running, state(State::Running));
    check("reclaim", State::Queued, state(State::Queued));
    check("grant 1, lost 1, grant 2, ok 1", State::Claimed, Err(Refusal::StaleFence));
    check("grant 1, lost 1, grant 2, accept 1", State::Claimed, Err(Refusal::StaleFence));
    check("grant 1, lost 1, accept 1", State::Queued, state(State::Queued));
    check("grant 1, grant 2", State::Claimed, state(State::Claimed));
}

#[test]
fn what_comes_late_counts_only_while_nobody_else_has_it() {
    check("grant 1, accept 1, lost 1, ok 1", State::Done, Ok(Change::Ended));
    check("grant 1, accept 1, lost 1, exit 1", State::Queued, Ok(Change::Noted));
    check("grant 1, lost 1, denied 1", State::Queued, Ok(Change::Noted));
    check("grant 1, lost 1, refused 1", State::Failed, Ok(Change::Ended));
    check("grant 1, accept 1, cancel, ok 1", State::Cancelled, Ok(Change::Noted));
    let (task, _) = run(1, Delivery::AtLeastOnce, "grant 1, accept 1, lost 1, ok 1");
    assert_eq!(task.state, State::Failed, "it was given up when it was lost");
}

#[test]
fn a_grant_that_nobody_confirmed_does_not_count() {
    check("early 1, lost 1", State::Queued, Ok(Change::Requeued { delay_ms: 0 }));
    let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, lost 1, grant 2");
    assert_eq!((task.attempt, task.state), (1, State::Claimed));
    let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, accept 1");
    assert_eq!(task.live().map(|a| (a.lease_ms, a.early)), Some((30_000, false)));
    let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, confirm 1, lost 1");
    assert_eq!(task.state, State::Failed, "somebody had it");
    let (task, _) = run(1, Delivery::AtLeastOnce, "early 1, accept 1, lost 1");
    assert_eq!(task.state, State::Failed, "an accepted one counts");
}

#[test]
fn at_most_once_is_never_started_again() {
    for (steps, state) in [
        ("grant 1, accept 1, cut 1", State::Failed),
        ("grant 1, accept 1, lost 1", State::Failed),
        // Its Accepted may have been lost on the way.
        ("grant 1, lost 1", State::Failed),
        ("grant 1, accept 1, nothold 1", State::Failed),
        // The node's durable word that it never took it.
        ("grant 1, nothold 1", State::Queued),
        ("grant 1, accept 1, exit 1", State::Queued),
    ] {
        assert_eq!(run(3, Delivery::AtMostOnce, steps).0.state, state, "{steps}");
    }
}

#[test]
fn carry_on_is_held_for_long_once_it_is_accepted() {
    let timing = Timing::default();
    let mut task = task(3, Delivery::AtLeastOnce);
    task.spec.on_disconnect = OnDisconnect::CarryOn;
    let cx = Context { wall: 0, timing: &timing, random: 0.5 };
    task.step(input("grant 1"), cx).unwrap();
    assert_eq!(task.live().unwrap().lease_ms, 30_000);
    task.step(input("accept 1"), cx).unwrap();
    assert_eq!(task.live().unwrap().lease_ms, timing.offline_ms);
}
