//! The main job: tasks over several agents, lost boards, order of lanes.

use super::{fleet, lines, sh};
use dunlin_hub::clock::micros;
use dunlin_tests::{Fleet, until};
use serde_json::json;
use std::collections::BTreeMap;

#[test]
fn ten_tasks_on_two_agents() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "2"]).unwrap();
    let _b = fleet.add_agent("b", &["--max-concurrent", "2"]).unwrap();
    let ids: Vec<String> =
        (0..10).map(|_| fleet.submit(&["/usr/bin/sleep", "0.2"], json!({})).unwrap()).collect();
    let mut by_node = BTreeMap::<String, u32>::new();
    for id in &ids {
        let task = fleet.wait_ended(id);
        assert_eq!(Fleet::outcome(&task), "ok", "{task:#}");
        let waited = task["attempts"][0]["grantedAt"].as_u64().unwrap() - task["createdAt"].as_u64().unwrap();
        assert!(waited < 5_000, "{id} waited {waited} ms for a node");
        *by_node.entry(task["nodeId"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(by_node.len() == 2, "both work: {by_node:?}");
    assert_eq!(fleet.get("/v1/runs/summary").unwrap()["successRatio"], 1.0);
}

#[test]
fn a_lost_board_s_task_is_done_by_the_survivor_once() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let mut agents = BTreeMap::new();
    for name in ["a", "b"] {
        agents.insert(name, fleet.add_agent(name, &[]).unwrap());
    }
    let id = sh(&fleet, "sleep 1; echo $DUNLIN_FENCE >> done", json!({}));
    let task = fleet.wait_state(&id, &["running"]);
    let holder = task["nodeId"].as_str().unwrap().to_owned();
    agents.get_mut(holder.as_str()).unwrap().proc.kill();
    let task = fleet.wait_ended(&id);
    assert_eq!(task["status"], "done", "{task:#}");
    assert_ne!(task["nodeId"], holder.as_str(), "the survivor did it");
    assert_eq!(lines(&fleet, "done").len(), 1, "exactly one completion");
    assert_eq!(task["attempts"][0]["outcome"]["code"], "lost");
}

#[test]
fn twenty_tasks_spread_over_four_agents() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let agents: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|n| fleet.add_agent(n, &["--max-concurrent", "5"]).unwrap())
        .collect();
    let ids: Vec<String> =
        (0..20).map(|_| fleet.submit(&["/usr/bin/sleep", "3"], json!({})).unwrap()).collect();
    let mut by_node = BTreeMap::<String, u32>::new();
    for id in &ids {
        let task = fleet.wait_ended(id);
        *by_node.entry(task["nodeId"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(by_node.len() == agents.len() && by_node.values().all(|n| (3..=7).contains(n)), "{by_node:?}");
}

#[test]
fn lanes_go_in_order_and_all_complete() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let mut ids = Vec::new();
    for n in 0..12 {
        let priority = if n % 2 == 0 { "low" } else { "urgent" };
        let id = format!("{priority}{n:02}");
        sh(&fleet, &format!("echo {id} >> order"), json!({"taskId": id, "priority": priority}));
        ids.push(id);
    }
    let _a = fleet.start_agent("a").unwrap();
    for id in &ids {
        assert_eq!(fleet.wait_ended(id)["status"], "done");
    }
    let (low, urgent): (Vec<String>, Vec<String>) = ids.into_iter().partition(|id| id.starts_with("low"));
    assert_eq!(
        lines(&fleet, "order"),
        [urgent, low].concat(),
        "urgent first, each lane in order of submission"
    );
}

#[test]
fn concurrency_is_never_exceeded() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "2"]).unwrap();
    let ids: Vec<String> =
        (0..20).map(|_| fleet.submit(&["/usr/bin/sleep", "0.1"], json!({})).unwrap()).collect();
    until("all are done", || {
        let node = fleet.node("a");
        let held =
            node["claimed"].as_array().map_or(0, Vec::len) + node["running"].as_array().map_or(0, Vec::len);
        assert!(held <= 2, "{node:#}");
        ids.iter().all(|id| fleet.task(id)["status"] == "done").then_some(())
    });
}

#[test]
fn a_poison_task_ends_in_the_dead_letter_list_and_can_be_retried() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let id = sh(&fleet, "test -e good || exit 9", json!({"maxAttempts": 2}));
    let task = fleet.wait_ended(&id);
    assert_eq!((&task["status"], &task["deadReason"]), (&json!("failed"), &json!("max_attempts_exhausted")));
    assert_eq!(task["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(Fleet::outcome(&task), "exit(9)");
    assert_eq!(fleet.get("/v1/dlq").unwrap()["tasks"][0]["taskId"], id.as_str());
    std::fs::write(fleet.dir().join("work/good"), "").unwrap();
    let task = fleet.post(&format!("/v1/tasks/{id}/retry"), &json!({})).unwrap();
    assert_eq!(task["attempt"], 0, "{task:#}");
    assert_eq!(fleet.wait_ended(&id)["status"], "done");
    assert_eq!(fleet.get("/v1/dlq").unwrap()["tasks"], json!([]));
}

#[test]
fn a_task_that_waits_too_long_is_given_up() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({"ttlMs": 300})).unwrap();
    assert_eq!(fleet.wait_ended(&id)["deadReason"], "ttl_expired");
}

#[test]
fn an_overdue_attempt_is_reclaimed() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let soon = fleet.get("/v1/events?since=0").unwrap()["events"][0]["at"].as_u64().unwrap() + 3_000;
    let id = sh(&fleet, "test -e second || { touch second; sleep 60; }", json!({"completeBy": soon}));
    let task = fleet.wait_ended(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(2)), "{task:#}");
    assert_eq!(task["attempts"][0]["outcome"]["detail"], "lease_lost");
}

#[test]
fn silence_for_too_long_is_stuck_and_output_is_progress() {
    let (_dir, fleet) = super::fleet_with(&format!("{}stuck_ms = 1500\n", super::FAST));
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "2"]).unwrap();
    let quiet = sh(&fleet, "sleep 30", json!({"maxAttempts": 1}));
    let busy = sh(&fleet, "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done", json!({"maxAttempts": 1}));
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&quiet)), "interrupted(lease_lost)");
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&busy)), "ok");
}

/// What the hub counted of claims: how many, and the sum of their waiting in milliseconds.
fn claims(fleet: &Fleet) -> (u64, f64) {
    let metrics = fleet.get("/metrics").unwrap();
    let value = |name: &str| {
        let mut lines = metrics.as_str().unwrap().lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        value.parse::<f64>().unwrap()
    };
    (value("dunlin_claim_latency_seconds_count") as u64, value("dunlin_claim_latency_seconds_sum") * 1e3)
}

#[test]
fn the_histogram_of_claims_agrees_with_what_is_seen_from_outside() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _agent = fleet.add_agent("a", &["--max-concurrent", "3"]).unwrap();
    // What bounds each claim from outside: an idle board's task is granted before its submitter is answered; one that
    // waits is not granted before the board is free for it, nor after it has run.
    let (mut least_us, mut most_us) = (0, 0);
    for _ in 0..20 {
        let began = micros();
        let id = fleet.submit(&["/usr/bin/sleep", "0"], json!({})).unwrap();
        most_us += micros() - began;
        fleet.wait_ended(&id);
    }
    fleet.post("/v1/nodes/a/drain", &json!({})).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let began = micros();
        waiting.push((fleet.submit(&["/usr/bin/sleep", "0"], json!({})).unwrap(), began, micros()));
    }
    let undrained = micros();
    fleet.post("/v1/nodes/a/undrain", &json!({})).unwrap();
    for (id, began, answered) in &waiting {
        assert_eq!(Fleet::outcome(&fleet.wait_ended(id)), "ok");
        (least_us, most_us) = (least_us + undrained - answered, most_us + micros() - began);
    }
    let (count, sum_ms) = claims(&fleet);
    assert_eq!(count, 23, "as many as there were claims");
    // The hub's clock of waiting tasks counts whole milliseconds.
    let (least, most) = (least_us as f64 / 1e3 - 23.0, most_us as f64 / 1e3 + 23.0);
    assert!((least..=most).contains(&sum_ms) && sum_ms > 0.0, "{least} <= {sum_ms} <= {most} ms");
}
