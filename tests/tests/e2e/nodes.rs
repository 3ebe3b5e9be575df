//! Nodes: health by silence, draining, revocation, tickets, roles.

use super::{fleet, fleet_with, sh};
use dunlin_tests::{Fleet, until};
use serde_json::json;
use std::process::Output;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn kinds(fleet: &Fleet, name: &str) -> Vec<String> {
    let events = fleet.get("/v1/events?since=0").unwrap();
    let of =
        events["events"].as_array().unwrap().iter().filter(|e| e["nodeId"] == name && e["taskId"].is_null());
    of.map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_stopped_agent_degrades_goes_down_once_and_comes_back() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    a.proc.signal("STOP");
    fleet.wait_health("a", "degraded");
    fleet.wait_health("a", "offline");
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    assert_eq!(fleet.task(&id)["status"], "queued", "nothing is given to an offline node");
    let why = fleet.get(&format!("/v1/tasks/{id}/why")).unwrap();
    assert_eq!(why["reasons"][0]["code"], "offline", "{why:#}");
    a.proc.signal("CONT");
    assert_eq!(fleet.wait_ended(&id)["status"], "done");
    let kinds = kinds(&fleet, "a");
    assert_eq!(kinds.iter().filter(|k| *k == "node.down").count(), 1, "{kinds:?}");
}

#[test]
fn a_node_is_asked_before_somebody_is_believed_that_it_is_down() {
    let (_dir, fleet) = fleet_with("[timing]\nheartbeat_ms = 20000\nlease_ms_min = 30000\nmargin_ms = 300\n");
    let _hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    let report = || fleet.post("/v1/nodes/a/report-down", &json!({})).unwrap();
    assert_eq!(report(), json!({"honoured": false, "health": "healthy"}));
    a.proc.signal("STOP");
    assert_eq!(report(), json!({"honoured": true, "health": "offline"}));
    assert_eq!(report()["honoured"], true, "it is still down");
    a.proc.signal("CONT");
    fleet.wait_health("a", "healthy");
    assert_eq!(kinds(&fleet, "a").iter().filter(|k| *k == "node.down").count(), 1);
    assert_eq!(fleet.call("POST", "/v1/nodes/nobody/report-down", Some(&json!({}))).unwrap().0, 404);
}

#[test]
fn a_grant_to_a_stopped_agent_comes_back_and_counts() {
    let (_dir, fleet) =
        fleet_with("[timing]\nheartbeat_ms = 2000\nlease_ms_min = 3000\nmargin_ms = 300\naccept_ms = 700\n");
    let _hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    a.proc.signal("STOP");
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    fleet.wait_state(&id, &["claimed"]);
    until("the node is flagged", || (fleet.node("a")["unresponsive"] == true).then_some(()));
    let task = fleet.wait_state(&id, &["queued"]);
    assert_eq!(
        (&task["attempt"], &task["attempts"][0]["outcome"]["detail"]),
        (&json!(1), &json!("not_accepted"))
    );
    a.proc.signal("CONT");
    let task = fleet.wait_ended(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(2)));
    assert_eq!(fleet.node("a")["unresponsive"], false);
}

#[test]
fn a_draining_node_ends_what_it_has_and_gets_nothing_new() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "2"]).unwrap();
    let first = sh(&fleet, "while ! test -e go; do sleep 0.05; done", json!({}));
    fleet.wait_state(&first, &["running"]);
    assert_eq!(fleet.post("/v1/nodes/a/drain", &json!({})).unwrap()["draining"], true);
    let second = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    assert_eq!(fleet.wait_ended(&first)["status"], "done");
    let why = fleet.get(&format!("/v1/tasks/{second}/why")).unwrap();
    assert_eq!(why["reasons"][0]["code"], "draining");
    assert_eq!(fleet.task(&second)["status"], "queued");
    fleet.post("/v1/nodes/a/undrain", &json!({})).unwrap();
    assert_eq!(fleet.wait_ended(&second)["status"], "done");
    assert_eq!(fleet.call("POST", "/v1/nodes/nobody/drain", Some(&json!({}))).unwrap().0, 404);
}

#[test]
fn revocation_cuts_and_sticks() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    let mut a = fleet.add_agent("a", &[]).unwrap();
    fleet.post("/v1/nodes/a/revoke", &json!({})).unwrap();
    until("the agent knows why", || fleet.logged("a").contains("revoked").then_some(()));
    assert_eq!(
        (&fleet.node("a")["connected"], &fleet.node("a")["health"]),
        (&json!(false), &json!("revoked"))
    );
    drop(hub);
    let _hub = fleet.start_hub().unwrap();
    a.proc.kill();
    // The same key with a fresh ticket for another name.
    let ticket = fleet.command("dunlin").args(["node", "invite", "b"]).output().unwrap();
    std::fs::remove_file(fleet.data("a").join("enrolment.toml")).unwrap();
    let ticket = String::from_utf8(ticket.stdout).unwrap();
    let join =
        fleet.command("dunlin-agent").args(["join", ticket.trim(), "--data"]).arg(fleet.data("a")).output();
    let join = join.unwrap();
    assert_eq!(join.status.code(), Some(77));
    assert!(text(&join).contains("revoked"), "{}", text(&join));
}

#[test]
fn tickets_are_single_use_bounded_in_time_and_tamper_proof() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let invite = |extra: &[&str]| {
        let out = fleet.command("dunlin").args(["node", "invite", "x"]).args(extra).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap().trim().to_owned())
    };
    let join = |ticket: &str, name: &str| {
        let out = fleet
            .command("dunlin-agent")
            .args(["join", ticket, "--data"])
            .arg(fleet.data(name))
            .output()
            .unwrap();
        (out.status.code().unwrap(), text(&out))
    };
    let (_, short) = invite(&["--ttl", "1ms"]);
    let (_, ticket) = invite(&[]);
    let mut bad = ticket.clone().into_bytes();
    bad[40] = if bad[40] == b'A' { b'B' } else { b'A' };
    let (code, said) = join(std::str::from_utf8(&bad).unwrap(), "x");
    assert!(code == 64 && said.contains("altered"), "{said}");
    assert!(!fleet.data("x").exists(), "nothing was written");
    let (code, said) = join(&short, "x");
    assert!(code == 77 && said.contains("ticket_expired"), "{said}");
    assert_eq!(join(&ticket, "x").0, 0);
    let (code, said) = join(&ticket, "y");
    assert!(code == 77 && said.contains("ticket_used"), "{said}");
    let (code, said) = join(&ticket, "x");
    assert!(code == 64 && said.contains("enrolled already"), "{said}");
    assert_eq!(invite(&["--max-concurrent", "101"]).0, Some(65));
    assert_eq!(invite(&[]).0, Some(65), "the name is taken");
}

#[test]
fn tags_targets_and_roles_hold() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--tag", "linux"]).unwrap();
    let _b = fleet.add_agent("b", &["--tag", "linux", "--tag", "gpu", "--tag", "site:north:P1"]).unwrap();
    let _c = fleet.add_agent("c", &["--tag", "rare", "--role", "viewer"]).unwrap();
    for (more, node) in [
        (json!({"requiredTags": ["linux", "gpu"]}), "b"),
        (json!({"requiredTags": ["site:*"]}), "b"),
        (json!({"targetNodeId": "a"}), "a"),
        (json!({"targetNodeId": "b"}), "b"),
        (json!({"requiredTags": [format!("arch:{}", std::env::consts::ARCH)], "targetNodeId": "a"}), "a"),
    ] {
        let id = fleet.submit(&["/usr/bin/uname", "-a"], more.clone()).unwrap();
        assert_eq!(fleet.wait_ended(&id)["nodeId"], node, "{more}");
    }
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({"requiredTags": ["rare"]})).unwrap();
    let why = fleet.get(&format!("/v1/tasks/{id}/why")).unwrap();
    assert_eq!((&why["status"], &why["reasons"][0]["code"]), (&json!("queued"), &json!("viewer")), "{why:#}");
    assert_eq!(fleet.node("c")["role"], "viewer");
}

#[test]
fn leaving_is_seen_at_once() {
    let (_dir, fleet) = fleet_with("[timing]\nheartbeat_ms = 60000\n");
    let _hub = fleet.start_hub().unwrap();
    let mut a = fleet.add_agent("a", &[]).unwrap();
    let id = fleet.submit(&["/usr/bin/sleep", "30"], json!({"maxAttempts": 1})).unwrap();
    fleet.wait_state(&id, &["running"]);
    a.proc.signal("TERM");
    assert_eq!(a.proc.wait(), Some(0));
    fleet.wait_health("a", "offline");
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), "interrupted(executor_restart)");
    assert!(kinds(&fleet, "a").contains(&"node.leaving".to_owned()));
}

#[test]
fn halt_stops_the_fleet_and_keeps_the_queue() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "3"]).unwrap();
    let ids: Vec<String> =
        (0..5).map(|_| fleet.submit(&["/usr/bin/sleep", "40"], json!({})).unwrap()).collect();
    ids[..3].iter().for_each(|id| drop(fleet.wait_state(id, &["running"])));
    assert_eq!(fleet.post("/v1/fleet/halt", &json!({})).unwrap()["cancelled"], 3);
    ids[..3].iter().for_each(|id| assert_eq!(fleet.wait_ended(id)["status"], "cancelled"));
    until("the processes are gone", || (fleet.node("a")["running"] == json!([])).then_some(()));
    assert_eq!(fleet.task(&ids[3])["status"], "queued");
    fleet.post("/v1/fleet/resume", &json!({})).unwrap();
    fleet.wait_state(&ids[3], &["running"]);
}
