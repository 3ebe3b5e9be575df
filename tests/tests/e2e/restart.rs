//! A hub that dies under its agents, with the usual times.

use super::{fleet_with, lines, sh};
use dunlin_tests::until;
use serde_json::json;
use std::time::Instant;

/// How many agents; `DUNLIN_AGENTS=100` is what is asked for.
fn agents() -> usize {
    std::env::var("DUNLIN_AGENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long it took is printed, never judged")]
fn agents_and_their_jobs_come_back_to_a_restarted_hub() {
    let config = "[api]\nrate_per_s = 10000\nburst = 10000\n";
    let (_dir, fleet) = fleet_with(config);
    let mut hub = fleet.start_hub().unwrap();
    let names: Vec<String> = (0..agents()).map(|n| format!("a{n}")).collect();
    let _agents: Vec<_> = names
        .iter()
        .map(|name| {
            fleet.enrol(name, &["--profile", "lan"]).unwrap();
            fleet.start_agent(name).unwrap()
        })
        .collect();
    let connected = || {
        let nodes = fleet.get("/v1/nodes").ok()?;
        let count = nodes["nodes"].as_array()?.iter().filter(|n| n["connected"] == true).count();
        (count == names.len()).then_some(())
    };
    until("all are connected", connected);
    let script = "echo $DUNLIN_TASK_ID >> began; while ! test -e go; do sleep 0.2; done; echo $DUNLIN_TASK_ID >> ended";
    let ids: Vec<String> = names
        .iter()
        .map(|name| sh(&fleet, script, json!({"targetNodeId": name, "timeoutMs": 60_000, "maxAttempts": 1})))
        .collect();
    until("all run", || (lines(&fleet, "began").len() == ids.len()).then_some(()));
    // Where agents are is kept once a second; one that came later is told by its own next packet.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    hub.proc.kill();
    hub = fleet.start_hub().unwrap();
    let began = Instant::now();
    until("all are back", connected);
    println!("{} agents were back {} ms after the hub answered", names.len(), began.elapsed().as_millis());
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    for id in &ids {
        let task = fleet.wait_ended(id);
        assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(1)), "{task}");
    }
    for file in ["began", "ended"] {
        let mut got = lines(&fleet, file);
        got.sort();
        let mut want = ids.clone();
        want.sort();
        assert_eq!(got, want, "{file}");
    }
    drop(hub);
}
