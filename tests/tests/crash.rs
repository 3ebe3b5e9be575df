//! Power cuts: a real hub and a real agent killed with SIGKILL at their commit points and at random. What was answered
//! with 2xx is there, and side effects happened as often as was promised.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_tests::{Fleet, until};
use serde_json::{Value, json};
use std::path::Path;

const CONFIG: &str = "[api]\nrate_per_s = 10000\nburst = 10000\n[timing]\nheartbeat_ms = 300\nlease_ms_min = 1500\n\
                      margin_ms = 300\naccept_ms = 1000\nretry_ms = 20\nretry_ms_max = 100\n";

fn fleet() -> (tempfile::TempDir, Fleet) {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::new(dir.path(), Path::new(env!("CARGO_BIN_EXE_demo")), CONFIG).unwrap();
    (dir, fleet)
}

/// Submits until the hub answers with 2xx; a hub that is down answers nothing, and the id makes it safe to ask again.
fn submit(fleet: &Fleet, id: &str, delivery: &str) {
    let script = format!("echo $DUNLIN_FENCE >> {id}");
    let body = json!({
        "taskId": id,
        "payload": {"argv": ["/bin/sh", "-c", script], "cwd": fleet.dir().join("work")},
        "maxAttempts": 10,
        "delivery": delivery,
    });
    until("a submission is answered", || match fleet.call("POST", "/v1/tasks", Some(&body)) {
        Ok((200 | 201, _)) => Some(()),
        _ => None,
    });
}

fn lines(fleet: &Fleet, id: &str) -> usize {
    std::fs::read_to_string(fleet.dir().join("work").join(id)).unwrap_or_default().lines().count()
}

/// Everything that was accepted has ended, and ran as often as was promised.
fn check(fleet: &Fleet, ids: &[(String, &str)]) {
    for (id, delivery) in ids {
        let task: Value = until(&format!("{id} ends"), || {
            let (status, task) = fleet.call("GET", &format!("/v1/tasks/{id}"), None).ok()?;
            assert_eq!(status, 200, "{id} was accepted and is gone");
            ["done", "failed", "cancelled"].contains(&task["status"].as_str()?).then_some(task)
        });
        let attempts = task["attempts"].as_array().unwrap();
        let ran = lines(fleet, id);
        let oks = attempts.iter().filter(|a| a["outcome"]["code"] == "ok").count();
        assert!(ran <= attempts.len(), "{id} ran {ran} times in {} attempts: {task:#}", attempts.len());
        if task["status"] == "done" {
            assert!(oks == 1 && ran >= 1, "{id} is done, ran {ran} times: {task:#}");
        }
        if *delivery == "atMostOnce" {
            assert!(ran <= 1, "{id} ran {ran} times: {task:#}");
        } else {
            assert_eq!(task["status"], "done", "{id}: {task:#}");
        }
    }
}

#[test]
fn a_hub_that_dies_at_its_commits_loses_nothing() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "4"]).unwrap();
    drop(hub);
    let mut ids = Vec::new();
    let mut deaths = 0;
    for round in 0..16 {
        // Its log has the last of it when the hub dies at one of the latter two.
        let points = ["before_commit", "after_commit", "before_catching_up", "after_catching_up"];
        let fault = format!("{}:{}", points[round % 4], 1 + round / 4);
        let mut hub = fleet.start_hub_with(&[("DUNLIN_FAULT", &fault)]).unwrap();
        let before = deaths;
        for n in 0..20 {
            if deaths > before {
                break;
            }
            let delivery = if n == 0 { "atMostOnce" } else { "atLeastOnce" };
            let id = format!("h{round}-{n}");
            std::thread::scope(|scope| {
                // The hub dies under some submission; the next one answers it.
                let asking = scope.spawn(|| {
                    submit(&fleet, &id, delivery);
                    // Who reads has the engine commit.
                    let _ = fleet.call("GET", "/v1/tasks", None);
                });
                while !asking.is_finished() {
                    if !hub.proc.is_running() {
                        deaths += 1;
                        hub = fleet.start_hub_with(&[]).unwrap();
                    }
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
            ids.push((id, delivery));
        }
    }
    assert_eq!(deaths, 16, "the hub dies in each round");
    let _hub = fleet.start_hub().unwrap();
    check(&fleet, &ids);
}

#[test]
fn an_agent_that_dies_at_its_commits_runs_nothing_too_often() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    drop(fleet.add_agent("a", &["--max-concurrent", "4"]).unwrap());
    let mut ids = Vec::new();
    for round in 0..16 {
        for n in 0..3 {
            let delivery = if n == 0 { "atMostOnce" } else { "atLeastOnce" };
            let id = format!("a{round}-{n}");
            submit(&fleet, &id, delivery);
            ids.push((id, delivery));
        }
        let point = if round % 2 == 0 { "before_commit" } else { "after_commit" };
        let fault = format!("{point}:{}", 1 + round / 2);
        let mut agent = fleet.start_agent_with("a", &[("DUNLIN_FAULT", &fault)]).unwrap();
        until("the agent dies at its commit", || (!agent.proc.is_running()).then_some(()));
    }
    let _a = fleet.start_agent("a").unwrap();
    check(&fleet, &ids);
}

#[test]
fn kills_at_random_lose_nothing_either() {
    let (_dir, fleet) = fleet();
    let mut hub = fleet.start_hub().unwrap();
    let mut agent = fleet.add_agent("a", &["--max-concurrent", "4"]).unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ids = Vec::new();
    for round in 0..18 {
        for n in 0..3 {
            let delivery = if n == 0 { "atMostOnce" } else { "atLeastOnce" };
            let id = format!("r{round}-{n}");
            submit(&fleet, &id, delivery);
            ids.push((id, delivery));
        }
        std::thread::sleep(std::time::Duration::from_millis(rng.u64(0..60)));
        if rng.bool() {
            hub.proc.kill();
            hub = fleet.start_hub().unwrap();
        } else {
            agent.proc.kill();
            agent = fleet.start_agent("a").unwrap();
        }
    }
    check(&fleet, &ids);
}
