//! The link: agents that start first, outages, and peers that do not keep to the protocol.

use super::{fleet, lines, sh};
use dunlin_tests::{Fleet, until};
use dunlin_wire::job::{Outcome, Report};
use dunlin_wire::message::{Hello, Numbered, Profile, Role, ToHub, Upload};
use dunlin_wire::{CloseCode, FleetId, frame, limits, version};
use quinn::crypto::rustls::QuicClientConfig;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn an_agent_may_start_before_the_hub() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    drop(hub);
    let _a = fleet.start_agent("a").unwrap();
    until("it has tried", || (fleet.logged("a").matches("no connection").count() >= 2).then_some(()));
    let _hub = fleet.start_hub().unwrap();
    fleet.wait_health("a", "healthy");
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    assert_eq!(fleet.wait_ended(&id)["status"], "done");
}

#[test]
fn a_result_reached_while_the_hub_was_away_counts_once() {
    let (_dir, fleet) = super::fleet_with("[timing]\nlease_ms_min = 60000\n");
    let hub = fleet.start_hub().unwrap();
    let mut a = fleet.add_agent("a", &[]).unwrap();
    let id =
        sh(&fleet, "echo $DUNLIN_FENCE >> ran; while ! test -e go; do sleep 0.05; done; echo bye", json!({}));
    fleet.wait_state(&id, &["running"]);
    until("it runs", || (lines(&fleet, "ran").len() == 1).then_some(()));
    drop(hub);
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    let queue = || {
        let out = fleet
            .command("dunlin-agent")
            .args(["queue", "--json", "--data"])
            .arg(fleet.data("a"))
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap_or_default()
    };
    until("the outcome is on the board's disk", || (queue()[0]["state"] == "ended").then_some(()));
    a.proc.kill();
    let _a = fleet.start_agent("a").unwrap();
    let _hub = fleet.start_hub().unwrap();
    let task = fleet.wait_ended(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(1)), "{task:#}");
    assert_eq!(lines(&fleet, "ran").len(), 1);
    let logs = fleet.command("dunlin").args(["task", "logs", &id]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&logs.stdout), "bye\n");
    until("the board forgot it", || (queue() == json!([])).then_some(()));
}

#[test]
fn a_job_survives_a_restart_of_the_hub() {
    let (_dir, fleet) = super::fleet_with("[timing]\nheartbeat_ms = 500\nlease_ms_min = 60000\n");
    let hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let id = sh(&fleet, "echo $DUNLIN_FENCE >> ran; while ! test -e go; do sleep 0.05; done", json!({}));
    fleet.wait_state(&id, &["running"]);
    drop(hub);
    let _hub = fleet.start_hub().unwrap();
    fleet.wait_health("a", "healthy");
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    let task = fleet.wait_ended(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(1)), "{task:#}");
    assert_eq!(lines(&fleet, "ran").len(), 1);
}

#[test]
fn a_restarted_hub_is_noticed_by_its_reset_not_by_silence() {
    // With this heartbeat an agent would take 25 s of silence for the hub's death.
    let (_dir, fleet) = super::fleet_with("[timing]\nheartbeat_ms = 10000\n");
    let hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    drop(hub);
    let _hub = fleet.start_hub().unwrap();
    until("the agent is back", || (fleet.node("a")["connected"] == true).then_some(()));
    assert!(fleet.logged("a").contains("error=reset by peer"), "{}", fleet.logged("a"));
}

#[test]
fn a_connection_is_made_anew_before_its_tickets_end_and_no_job_notices() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let _a = fleet.start_agent_with("a", &[("DUNLIN_STALE_MS", "400")]).unwrap();
    let id = sh(&fleet, "echo began >> long; sleep 3; echo ended >> long", json!({}));
    let task = fleet.wait_ended(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("done"), &json!(1)), "{task}");
    assert_eq!(lines(&fleet, "long"), ["began", "ended"]);
    let log = fleet.logged("a");
    let early = log.lines().filter(|l| l.contains(" connected ") && l.contains("early=true")).count();
    assert!(early >= 3 && !log.contains("no connection"), "{log}");
    assert!(!fleet.logged("hub").contains("cloned"), "a newer connection of the same process is no copy");
}

#[test]
fn a_budget_that_is_spent_thins_what_is_sent_and_not_what_is_done() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    std::fs::write(fleet.agent_config("a"), "monthly = \"20KiB\"\n").unwrap();
    let agent = fleet.start_agent("a").unwrap();
    fleet.wait_health("a", "healthy");
    let budget = || {
        let out =
            fleet.command("dunlin-agent").args(["status", "--json", "--data"]).arg(fleet.data("a")).output();
        let status: serde_json::Value = serde_json::from_slice(&out.ok()?.stdout).ok()?;
        Some(status["budget"].clone())
    };
    let mut jobs = 0;
    until("the budget is spent", || {
        jobs += 1;
        let task = fleet.wait_ended(&sh(&fleet, "head -c 3000 /dev/urandom", json!({})));
        assert_eq!(task["status"], "done");
        (budget()?["state"] == "spent").then_some(())
    });
    drop(agent);
    // It is known after a restart, and results still come, whole.
    let _agent = fleet.start_agent("a").unwrap();
    let id = sh(&fleet, "head -c 5000 /dev/zero", json!({}));
    assert_eq!(fleet.wait_ended(&id)["status"], "done");
    let out = fleet.command("dunlin").args(["task", "logs", &id]).output().unwrap();
    assert_eq!(out.stdout.len(), 5000);
    until("it is still spent", || (budget()?["state"] == "spent").then_some(()));
}

#[test]
fn a_node_cannot_speak_for_another() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    fleet.enrol("b", &[]).unwrap();
    let id = sh(&fleet, "while ! test -e go; do sleep 0.05; done", json!({}));
    let task = fleet.wait_state(&id, &["running"]);
    let fence = dunlin_wire::Fence(task["attempts"][0]["fence"].as_u64().unwrap());
    let enrolled = dunlin_agent::files::Files::at(&fleet.data("b")).enrolment().unwrap();
    let key = std::fs::read(fleet.data("b").join("identity.key")).unwrap();
    let mut bytes = hello(enrolled.fleet, "b", version::GENERATION, 1);
    let report = Box::new(Report::without_process(Outcome::Ok));
    let outcome = Upload::Outcome { task: id.parse().unwrap(), fence, report };
    for (seq, message) in
        [(2, ToHub::Upload(outcome)), (3, ToHub::Accepted { fence }), (4, ToHub::Claim { ids: vec![] })]
    {
        frame::push(&mut bytes, &Numbered { seq, message }, limits::FRAME_MAX).unwrap();
    }
    // Ends its own connection with what is no frame at all, after the hub has handled the rest.
    bytes.extend([5, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(closed_with(&fleet, &key, enrolled.hub, bytes, None), Some(CloseCode::Garbage));
    assert_eq!(fleet.task(&id)["status"], "running", "it is still a's");
    until("both are refused and audited", || {
        let audit = fleet.get("/v1/audit").unwrap();
        let rows = audit["audit"].as_array().unwrap();
        let refused = |r: &&serde_json::Value| r["actor"] == "node:b" && r["result"] == "not_your_lease";
        (rows.iter().filter(refused).count() == 2).then_some(())
    });
    assert_eq!(fleet.task(&id)["status"], "running", "it is still a's");
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    assert_eq!(fleet.wait_ended(&id)["status"], "done");
}

#[test]
fn a_killed_agent_leaves_no_process_and_says_what_happened() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let mut a = fleet.add_agent("a", &[]).unwrap();
    let id = sh(&fleet, "setsid sleep 7774.5 & sleep 7774.5", json!({"maxAttempts": 1}));
    until("it runs", || super::runs("7774.5").then_some(()));
    a.proc.kill();
    until("nothing is left", || (!super::runs("7774.5")).then_some(()));
    let _a = fleet.start_agent("a").unwrap();
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), "interrupted(executor_restart)");
}

#[test]
fn a_stopped_agent_s_job_is_killed_by_its_guard_before_the_task_runs_elsewhere() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    let id = sh(&fleet, "echo start $DUNLIN_FENCE >> ran; sleep 7775.5", json!({"maxAttempts": 2}));
    until("it runs", || super::runs("7775.5").then_some(()));
    a.proc.signal("STOP");
    until("the guard killed it", || (!super::runs("7775.5")).then_some(()));
    assert_eq!(fleet.task(&id)["status"], "running", "the hub waits for longer than the guard");
    let task = fleet.wait_state(&id, &["queued"]);
    assert_eq!(task["attempts"][0]["outcome"]["detail"], "lease_over");
    assert_eq!(lines(&fleet, "ran").len(), 1);
    a.proc.signal("CONT");
}

/// What a stranger sends, and the code that it is closed with.
fn closed_with(
    fleet: &Fleet,
    key: &[u8],
    hub: dunlin_wire::Key,
    bytes: Vec<u8>,
    uni: Option<Vec<u8>>,
) -> Option<CloseCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let addr = fleet.quic().parse().unwrap();
    let tls = dunlin_agent::link::client_tls(key, hub, Default::default()).unwrap();
    runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let connection = endpoint.connect_with(config, addr, version::SERVER_NAME).unwrap().await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let _ = send.write_all(&bytes).await;
        if let Some(bytes) = uni {
            let mut send = connection.open_uni().await.unwrap();
            let _ = send.write_all(&bytes).await;
        }
        let closed = tokio::time::timeout(Duration::from_secs(30), connection.closed()).await.ok()?;
        match closed {
            quinn::ConnectionError::ApplicationClosed(close) => {
                CloseCode::from_code(close.error_code.into_inner())
            }
            _ => None,
        }
    })
}

fn hello(fleet_id: FleetId, name: &str, generation: u16, connection: u64) -> Vec<u8> {
    let hello = Hello {
        generation,
        fleet: fleet_id,
        node: name.parse().unwrap(),
        role: Role::Worker,
        boot_id: [9; 16],
        connection,
        version: "test".into(),
        capabilities: vec![],
        slots: 1,
        profile: Profile::Lan,
        policy: [0; 8],
    };
    let mut bytes = Vec::new();
    let frame = Numbered { seq: 1, message: ToHub::Hello(Box::new(hello)) };
    frame::push(&mut bytes, &frame, limits::FRAME_MAX).unwrap();
    bytes
}

#[test]
fn peers_that_break_the_rules_are_closed_with_their_own_code() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let enrolled = dunlin_agent::files::Files::at(&fleet.data("a")).enrolment().unwrap();
    let known = std::fs::read(fleet.data("a").join("identity.key")).unwrap();
    let stranger = ring::signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
    let stranger = stranger.as_ref().to_vec();
    let mine = enrolled.fleet;
    let mut framed_garbage = vec![5];
    framed_garbage.extend([0xff; 5]);
    let cases = [
        (
            "unknown key",
            stranger.as_slice(),
            hello(mine, "a", version::GENERATION, 100),
            None,
            CloseCode::UnknownKey,
        ),
        (
            "wrong fleet",
            known.as_slice(),
            hello(FleetId([1; 16]), "a", version::GENERATION, 101),
            None,
            CloseCode::WrongFleet,
        ),
        ("generation 0", known.as_slice(), hello(mine, "a", 0, 102), None, CloseCode::UnsupportedGeneration),
        (
            "another's name",
            known.as_slice(),
            hello(mine, "b", version::GENERATION, 103),
            None,
            CloseCode::KeyMismatch,
        ),
        (
            "a newer generation is taken, and garbage behind it is not",
            known.as_slice(),
            [hello(mine, "a", version::GENERATION + 1, 104), framed_garbage.clone()].concat(),
            None,
            CloseCode::Garbage,
        ),
        ("oversize", known.as_slice(), vec![0xff, 0xff, 0xff, 0x7f], None, CloseCode::TooLarge),
        ("garbage", known.as_slice(), framed_garbage.clone(), None, CloseCode::Garbage),
        (
            "garbage upload",
            known.as_slice(),
            hello(mine, "a", version::GENERATION, 105),
            Some(framed_garbage),
            CloseCode::Garbage,
        ),
    ];
    for (what, key, bytes, uni, want) in cases {
        assert_eq!(closed_with(&fleet, key, enrolled.hub, bytes, uni), Some(want), "{what}");
    }
    // The connection counter went backwards within one process: a connection that it gave up, late. Of another process it
    // would be a copy of the disk.
    assert_eq!(
        closed_with(&fleet, &known, enrolled.hub, hello(mine, "a", version::GENERATION, 50), None),
        Some(CloseCode::Replaced)
    );
    let metrics = fleet.call("GET", "/metrics", None).unwrap().1;
    for code in ["unknown_key", "wrong_fleet", "too_large", "garbage", "replaced"] {
        let line = format!("dunlin_closed_total{{code=\"{code}\"}}");
        assert!(metrics.as_str().unwrap().contains(&line), "{line} is not counted");
    }
    // A board that pins another hub does not even shake hands.
    let other = dunlin_wire::Key([3; 32]);
    let tls: QuicClientConfig = dunlin_agent::link::client_tls(&known, other, Default::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        endpoint
            .connect_with(config, fleet.quic().parse().unwrap(), version::SERVER_NAME)
            .unwrap()
            .await
            .unwrap_err()
    });
    assert!(refused.to_string().contains("pinned"), "{refused}");
    drop(hub);
}
