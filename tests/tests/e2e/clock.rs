//! Wall clocks that are wrong, and that step: they change timestamps, and nothing else.

use super::{fleet, sh};
use dunlin_tests::{Fleet, until};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

const DAY_S: i64 = 86_400;

/// The wall clock of a process that was started with [`Wrong::env`].
struct Wrong {
    library: PathBuf,
    offset: PathBuf,
}

impl Wrong {
    fn new(fleet: &Fleet, name: &str, offset_s: i64) -> Self {
        let library = fleet.dir().join("clock.so");
        if !library.exists() {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock.c");
            let cc =
                Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
            assert!(cc.unwrap().success(), "the C compiler");
        }
        let wrong = Self { library, offset: fleet.dir().join(format!("{name}.clock")) };
        wrong.step(offset_s);
        wrong
    }

    /// Seconds between the wall clock and what is right.
    fn step(&self, offset_s: i64) {
        let new = self.offset.with_extension("new");
        std::fs::write(&new, offset_s.to_string()).unwrap();
        std::fs::rename(&new, &self.offset).unwrap();
    }

    fn env(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", self.library.to_str().unwrap()), ("DUNLIN_CLOCK", self.offset.to_str().unwrap())]
    }
}

#[expect(clippy::disallowed_methods, reason = "the right time, which a wrong clock is compared with")]
fn now_s() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// What happened to a node besides coming up.
fn troubles(fleet: &Fleet) -> Vec<Value> {
    let events = fleet.get("/v1/events?since=0").unwrap();
    let kind = |e: &&Value| ["node.down", "node.degraded", "node.cloned"].iter().any(|k| e["kind"] == *k);
    events["events"].as_array().unwrap().iter().filter(kind).cloned().collect()
}

#[test]
fn a_board_that_boots_in_1970_works_reconnects_in_0rtt_and_learns_the_time() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let clock = Wrong::new(&fleet, "a", -now_s());
    let _a = fleet.start_agent_with("a", &clock.env()).unwrap();
    fleet.wait_health("a", "healthy");
    assert!(fleet.logged("a").contains("1970-01-01"), "the clock is wrong: {}", fleet.logged("a"));
    let before = sh(&fleet, "echo before", json!({}));
    assert_eq!(fleet.wait_ended(&before)["status"], "done");
    let during = sh(&fleet, "while ! test -e go; do sleep 0.05; done", json!({}));
    fleet.wait_state(&during, &["running"]);
    // Time comes from the network while a job runs, and the hub goes and comes back.
    clock.step(0);
    drop(hub);
    let _hub = fleet.start_hub().unwrap();
    fleet.wait_health("a", "healthy");
    until("it came back in 0-RTT", || fleet.logged("a").contains("early=true").then_some(()));
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    let ended = fleet.wait_ended(&during);
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("done"), &json!(1)), "{ended:#}");
    assert_eq!(troubles(&fleet), Vec::<Value>::new());
}

#[test]
fn a_step_of_a_day_either_way_changes_nothing() {
    let (_dir, fleet) = fleet();
    let hub_clock = Wrong::new(&fleet, "hub", 0);
    let _hub = fleet.start_hub_with(&hub_clock.env()).unwrap();
    until("the hub answers", || fleet.get("/health").is_ok().then_some(()));
    fleet.enrol("a", &["--max-concurrent", "2"]).unwrap();
    let clock = Wrong::new(&fleet, "a", 0);
    let _a = fleet.start_agent_with("a", &clock.env()).unwrap();
    fleet.wait_health("a", "healthy");
    for (n, (hub_s, agent_s)) in
        [(DAY_S, 0), (-DAY_S, DAY_S), (-DAY_S, -DAY_S), (0, 0)].into_iter().enumerate()
    {
        let running = sh(&fleet, &format!("while ! test -e go{n}; do sleep 0.05; done"), json!({}));
        fleet.wait_state(&running, &["running"]);
        let failing = sh(&fleet, &format!("test -e go{n}"), json!({"maxAttempts": 10, "targetNodeId": "a"}));
        hub_clock.step(hub_s);
        clock.step(agent_s);
        // As long as any of the leases and silences take: 6 heartbeats of half a second, 3 s and the margin.
        let beats = fleet.node("a")["bytes"]["telemetry"]["in"].as_u64();
        until("the board beats on", || {
            let more = fleet.node("a")["bytes"]["telemetry"]["in"].as_u64();
            (more > beats.map(|b| b + 9)).then_some(())
        });
        assert_eq!(fleet.task(&running)["status"], "running");
        std::fs::write(fleet.dir().join(format!("work/go{n}")), "").unwrap();
        let ended = fleet.wait_ended(&running);
        assert_eq!((&ended["status"], &ended["attempt"]), (&json!("done"), &json!(1)), "{ended:#}");
        // Its delay to the next attempt is a time by the hub's clock that was.
        assert_eq!(fleet.wait_ended(&failing)["status"], "done", "{hub_s} {agent_s}");
    }
    assert_eq!(troubles(&fleet), Vec::<Value>::new());
}
