//! What cannot be done is said in one line, with its exit code, and nothing is lost.

use super::{fleet, fleet_with};
use dunlin_tests::Fleet;
use serde_json::json;

/// Runs `dunlin-hub serve` that must fail: its exit code and what it said.
fn refused(fleet: &Fleet, more: &[&str]) -> (i32, String) {
    let out = fleet.command("dunlin-hub").arg("serve").args(more).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let last = said.lines().rfind(|l| l.starts_with("dunlin-hub:")).unwrap_or_default().to_owned();
    (out.status.code().unwrap(), last)
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let data = fleet.dir().join("hub").display().to_string();
    let (code, said) = refused(&fleet, &["--data", &data, "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    assert!(code == 69 && said.contains("in use by another dunlin-hub"), "{said}");
    let _a = fleet.add_agent("a", &[]).unwrap();
    let out = fleet
        .command("dunlin-agent")
        .args(["run", "--with-exec", "--data"])
        .arg(fleet.data("a"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(69) && said.contains("in use by another dunlin-agent"), "{said}");
}

#[test]
fn ports_directories_and_configurations_are_checked_first() {
    let (dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let other = dir.path().join("other").display().to_string();
    let (code, said) = refused(&fleet, &["--data", &other, "--quic", &fleet.quic(), "--http", "127.0.0.1:0"]);
    assert!(code == 69 && said.contains("QUIC on") && said.contains("in use"), "{said}");
    let http = fleet.url().trim_start_matches("http://").to_owned();
    let (code, said) = refused(&fleet, &["--data", &other, "--quic", "127.0.0.1:0", "--http", &http]);
    assert!(code == 69 && said.contains("HTTP on") && said.contains("in use"), "{said}");
    let (code, said) = refused(&fleet, &["--data", "/proc/nowhere", "--quic", "127.0.0.1:0"]);
    assert!(code == 69 && said.contains("/proc/nowhere"), "{said}");
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "\n[queue]\nmaximum = 5\n").unwrap();
    let (code, said) = refused(&fleet, &["--config", &bad.display().to_string()]);
    assert!(code == 64 && said.contains("bad.toml: line 3: unknown field `maximum`"), "{said}");
    let out = fleet.command("dunlin-agent").args(["run", "--with-exec", "--data", &other]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(69) && said.contains("dunlin-agent join TICKET"), "{said}");
}

#[test]
fn a_corrupt_store_is_refused_and_left_alone() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    for n in 0..50 {
        fleet.submit(&["/usr/bin/uname", "-a"], json!({"taskId": format!("t{n}")})).unwrap();
    }
    drop(hub);
    let file = fleet.dir().join("hub/store/data.mdb");
    let whole = std::fs::read(&file).unwrap();
    let cut = 16 * 1024;
    std::fs::write(&file, &whole[..cut]).unwrap();
    let config = fleet.dir().join("hub.toml").display().to_string();
    let (code, said) = refused(&fleet, &["--config", &config]);
    assert!(code == 69 && said.contains("corrupt"), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().len() as usize, cut, "it is not touched");
    std::fs::write(&file, &whole).unwrap();
    let _hub = fleet.start_hub().unwrap();
    assert_eq!(fleet.get("/v1/runs/summary").unwrap()["byState"]["queued"], 50);
}

#[test]
fn a_full_store_refuses_new_work_and_still_takes_results() {
    let (_dir, fleet) = fleet_with(&format!("[store]\nmax_mib = 16\n{}", super::FAST));
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let running = super::sh(&fleet, "while ! test -e go; do sleep 0.05; done; echo done", json!({}));
    fleet.wait_state(&running, &["running"]);
    let padding = "x".repeat(30_000);
    let mut accepted = Vec::new();
    let refusal = loop {
        let id = format!("big{}", accepted.len());
        let body = json!({"taskId": id, "targetNodeId": "nobody", "payload": {"argv": ["/x", padding, padding, padding]}});
        match fleet.call("POST", "/v1/tasks", Some(&body)).unwrap() {
            (201, _) => accepted.push(id),
            refused => break refused,
        }
        assert!(accepted.len() < 1000, "it is never full");
    };
    assert_eq!((refusal.0, &refusal.1["error"]["code"]), (507, &json!("storage_full")), "{}", refusal.1);
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    assert_eq!(fleet.wait_ended(&running)["status"], "done", "a result finds its room");
    for id in accepted {
        assert_eq!(fleet.task(&id)["status"], "queued");
    }
}

#[test]
fn a_broken_policy_denies_everything() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    std::fs::write(
        fleet.dir().join("policy.toml"),
        "schema = 1\n[[rule]]\nid = \"x\"\nprogramme = \"/bin/x\"\n",
    )
    .unwrap();
    let _a = fleet.start_agent("a").unwrap();
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({"maxAttempts": 1})).unwrap();
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), "denied(policy_invalid)");
    let out = fleet
        .command("dunlin-agent")
        .args(["policy", "check", "--policy"])
        .arg(fleet.dir().join("policy.toml"))
        .output();
    let out = out.unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("line 4") && said.contains("programme"), "{said}");
}
