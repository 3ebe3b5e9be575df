//! Over an emulated link: cuts, restarts, NATs. Skipped with a message where namespaces and TUN may not be made.

use super::{FAST, lines, sh};
use dunlin_bench::wan::{Link, Side, Wan};
use dunlin_tests::{Fleet, until};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Runs `test` with a fleet whose agents are behind a link.
fn over(link: Link, config: &str, test: impl FnOnce(&Wan, &Fleet)) {
    let wan = match Wan::new(link) {
        Ok(wan) => Arc::new(wan),
        Err(error) => return eprintln!("skipped: no emulated link here ({error}); it needs root and TUN"),
    };
    let dir = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_demo"));
    let fleet = Fleet::over(wan.clone(), dir.path(), binary, config).unwrap();
    test(&wan, &fleet);
}

/// How often an agent connected, and how often in early data.
fn connects(fleet: &Fleet, agent: &str) -> (usize, usize) {
    let log = fleet.logged(agent);
    let connected: Vec<&str> = log.lines().filter(|l| l.contains(" connected ")).collect();
    (connected.len(), connected.iter().filter(|l| l.contains("early=true")).count())
}

#[test]
fn a_reconnect_rides_in_early_data_also_after_a_restart_of_the_hub() {
    over(Link::delay(40), FAST, |_, fleet| {
        let mut hub = fleet.start_hub().unwrap();
        let _a = fleet.add_agent("a", &[]).unwrap();
        assert_eq!(connects(fleet, "a"), (1, 0), "{}", fleet.logged("a"));
        for n in 1..=3 {
            hub.proc.kill();
            hub = fleet.start_hub().unwrap();
            let id = sh(fleet, "echo again >> again", json!({}));
            assert_eq!(fleet.wait_ended(&id)["status"], "done");
            assert_eq!(connects(fleet, "a"), (1 + n, n), "{}", fleet.logged("a"));
        }
        assert_eq!(lines(fleet, "again").len(), 3);
        // What is shown of the link is what it is; generously, for the machine is shared.
        let node = fleet.node("a");
        let rtt = node["rttMs"].as_f64().unwrap();
        assert!((35.0..200.0).contains(&rtt), "{node}");
        let bytes = |class: &str, way: &str| node["bytes"][class][way].as_u64().unwrap();
        assert!(bytes("wire", "in") > bytes("control", "in") && bytes("control", "in") > 0, "{node}");
        let metrics = fleet.call("GET", "/metrics", None).unwrap().1;
        assert!(
            metrics.as_str().unwrap().contains("dunlin_link_bytes_total{class=\"wire\",direction=\"out\"}")
        );
    });
}

#[test]
fn a_short_cut_costs_no_connection_and_no_job() {
    // The usual times: a cut of 3 s is nothing to a lease of 30 s.
    over(Link::delay(60), "[timing]\nheartbeat_ms = 5000\n", |wan, fleet| {
        let _hub = fleet.start_hub().unwrap();
        let _a = fleet.add_agent("a", &[]).unwrap();
        for n in 1..=2 {
            wan.cut(true);
            let id = sh(fleet, "echo done >> done", json!({}));
            std::thread::sleep(Duration::from_secs(3));
            wan.cut(false);
            assert_eq!(fleet.wait_ended(&id)["status"], "done");
            assert_eq!(lines(fleet, "done").len(), n);
        }
        assert_eq!(connects(fleet, "a").0, 1, "{}", fleet.logged("a"));
        // Sent again and again during the cut, it is one grant.
        let attempts = fleet.get("/v1/tasks").unwrap();
        assert!(attempts["tasks"].as_array().unwrap().iter().all(|t| t["attempt"] == 1), "{attempts}");
    });
}

#[test]
fn a_path_that_is_cut_one_way_never_lets_a_job_live_twice() {
    for side in [Side::Hub, Side::Board] {
        over(Link::delay(10), FAST, |wan, fleet| {
            let _hub = fleet.start_hub().unwrap();
            let _a = fleet.add_agent("a", &["--tag", "x"]).unwrap();
            let id = sh(
                fleet,
                "while :; do echo $DUNLIN_FENCE $(cut -d' ' -f1 /proc/uptime) >> beats; sleep 0.05; done",
                json!({"requiredTags": ["x"], "timeoutMs": 60_000}),
            );
            fleet.wait_state(&id, &["running"]);
            until("it runs", || (lines(fleet, "beats").len() > 3).then_some(()));
            fleet.enrol("b", &["--tag", "x"]).unwrap();
            let _b = fleet.start_agent_near("b").unwrap();
            fleet.wait_health("b", "healthy");
            wan.cut_from(side, true);
            until("it runs on b", || {
                let fences: Vec<String> = lines(fleet, "beats")
                    .iter()
                    .filter_map(|l| Some(l.split(' ').next()?.to_owned()))
                    .collect();
                (fences.first() != fences.last()).then_some(())
            });
            let beats = lines(fleet, "beats");
            let first = beats[0].split(' ').next().unwrap().to_owned();
            let changes =
                beats.windows(2).filter(|w| w[0].split(' ').next() != w[1].split(' ').next()).count();
            assert_eq!(changes, 1, "{side:?}: two lived at once: {beats:?}");
            let task = fleet.task(&id);
            assert_eq!(task["attempt"], 2, "{task}");
            assert_eq!(task["attempts"][0]["fence"].as_u64().unwrap().to_string(), first);
            fleet.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).unwrap();
        });
    }
}

#[test]
fn a_job_that_carries_on_delivers_after_the_partition() {
    over(Link::delay(10), FAST, |wan, fleet| {
        let _hub = fleet.start_hub().unwrap();
        let _a = fleet.add_agent("a", &[]).unwrap();
        let script = "echo began >> carried; while ! test -e go; do sleep 0.05; done; echo ended >> carried";
        let id = sh(fleet, script, json!({"onDisconnect": "carryOn", "timeoutMs": 60_000}));
        fleet.wait_state(&id, &["running"]);
        until("it runs", || (lines(fleet, "carried") == ["began"]).then_some(()));
        wan.cut(true);
        // Far beyond its lease of 3 s and the margin.
        fleet.wait_health("a", "offline");
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(fleet.task(&id)["status"], "running");
        std::fs::write(fleet.dir().join("work/go"), "").unwrap();
        until("it ends", || (lines(fleet, "carried") == ["began", "ended"]).then_some(()));
        wan.cut(false);
        let task = fleet.wait_ended(&id);
        assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(1)), "{task}");
    });
}

#[test]
fn a_nat_that_forgets_costs_no_connection() {
    over(Link::delay(10), FAST, |wan, fleet| {
        let _hub = fleet.start_hub().unwrap();
        wan.nat(Duration::from_secs(600));
        let _a = fleet.add_agent("a", &[]).unwrap();
        for _ in 0..3 {
            wan.nat_restart();
            let id = sh(fleet, "echo x >> x", json!({}));
            assert_eq!(fleet.wait_ended(&id)["status"], "done");
        }
        assert_eq!((connects(fleet, "a").0, lines(fleet, "x").len()), (1, 3), "{}", fleet.logged("a"));
    });
}

#[test]
fn two_copies_of_one_identity_are_both_held() {
    over(Link::delay(2), FAST, |_, fleet| {
        let _hub = fleet.start_hub().unwrap();
        fleet.enrol("a", &[]).unwrap();
        let copied = fleet.data("copy");
        let out =
            std::process::Command::new("cp").arg("-a").arg(fleet.data("a")).arg(&copied).status().unwrap();
        assert!(out.success());
        let _a = fleet.start_agent("a").unwrap();
        let _copy = fleet.start_agent("copy").unwrap();
        for name in ["a", "copy"] {
            until(&format!("{name} is told"), || {
                fleet.logged(name).contains("cloned_identity").then_some(())
            });
        }
        assert_eq!(fleet.node("a")["cloned"], true);
        let id = fleet.submit(&["/usr/bin/echo", "x"], json!({})).unwrap();
        until("nothing is given to it", || (fleet.node("a")["connected"] == false).then_some(()));
        assert_eq!(fleet.task(&id)["status"], "queued");
        fleet.post("/v1/nodes/a/revoke", &json!({})).unwrap();
        let _b = fleet.add_agent("b", &[]).unwrap();
        assert_eq!(fleet.wait_ended(&id)["status"], "done");
    });
}
