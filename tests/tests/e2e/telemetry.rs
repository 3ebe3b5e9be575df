//! What a board says of itself, from its /proc to the API.

use super::fleet;
use dunlin_tests::until;
use serde_json::{Value, json};

#[test]
fn a_board_s_figures_come_age_and_go() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    // The share of the CPU takes two readings.
    let node = until("a second reading", || {
        let node = fleet.node("a");
        node["telemetry"]["figures"]["cpu"].is_object().then_some(node)
    });
    let shown = &node["telemetry"];
    let total: u64 = std::fs::read_to_string("/proc/meminfo")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    assert_eq!(shown["board"]["memoryTotal"], (total / 1024) << 20, "{shown:#}");
    let ratio = shown["figures"]["cpu"]["mean"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&ratio), "{shown:#}");
    assert!(shown["figures"]["filesystem:/"]["total"].as_u64().unwrap() > 0, "{shown:#}");
    assert_eq!((&shown["fresh"], &shown["reportMs"]), (&true.into(), &1000.into()));

    let metrics = || fleet.get("/metrics").unwrap().as_str().unwrap().to_owned();
    let series = metrics();
    for name in ["dunlin_memory_available_bytes{node=\"a\"}", "dunlin_cpu_utilization_ratio{node=\"a\"}"] {
        assert!(series.contains(name), "{name} is not in\n{series}");
    }
    assert_eq!(fleet.call("GET", "/metrics?names=other", None).unwrap().0, 400);
    assert_eq!(fleet.call("GET", "/metrics?names=dcgm", None).unwrap().0, 200);

    let points = |query: &str| fleet.call("GET", &format!("/v1/nodes/a/metrics{query}"), None).unwrap();
    let memory = until("some history", || {
        let (status, found) = points("");
        assert_eq!(status, 200, "{found:#}");
        let points: Vec<Value> = found["series"]["memoryAvailable"]["points"].as_array()?.clone();
        (!points.is_empty()).then_some(points)
    });
    assert!(memory[0][1].as_f64().unwrap() > 0.0);
    let (status, refused) = points("?from=0&to=1000000&step=1");
    assert_eq!((status, &refused["error"]["field"]), (400, &"step".into()), "{refused:#}");
    assert_eq!(fleet.call("GET", "/v1/nodes/nobody/metrics", None).unwrap().0, 404);

    a.proc.signal("STOP");
    until("three reports are missed", || (fleet.node("a")["telemetry"]["fresh"] == false).then_some(()));
    let series = metrics();
    assert!(!series.contains("dunlin_memory_available_bytes{"), "old figures are still there");
    assert!(series.contains("dunlin_telemetry_age_seconds{node=\"a\"}"), "the age is gone");
    a.proc.signal("CONT");
}

#[test]
fn an_agent_that_is_told_so_says_nothing() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("quiet", &[]).unwrap();
    let path = fleet.agent_config("quiet");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, format!("telemetry = false\n{before}")).unwrap();
    let _agent = fleet.start_agent("quiet").unwrap();
    fleet.wait_health("quiet", "healthy");
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    fleet.wait_ended(&id);
    // As long as it takes to say something twice.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(fleet.node("quiet")["telemetry"], Value::Null);
}

#[test]
fn a_task_waits_for_a_board_that_meets_its_requirements() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _agent = fleet.add_agent("a", &[]).unwrap();
    let submit = |require: &str| fleet.submit(&["/usr/bin/uname", "-a"], json!({"requires": [require]}));
    let met = submit("memoryFreeMib >= 1").unwrap();
    let task = fleet.wait_ended(&met);
    assert_eq!((&task["status"], &task["requires"]), (&json!("done"), &json!(["memoryFreeMib >= 1"])));
    let unmet = submit("memoryFreeMib>=999999999").unwrap();
    let reason = until("the board's figures are named", || {
        let why = fleet.get(&format!("/v1/tasks/{unmet}/why")).unwrap();
        let reason = why["reasons"].as_array()?.iter().find(|r| r["code"] == "requirement")?.clone();
        Some(reason["message"].as_str()?.to_owned())
    });
    assert!(reason.contains("node `a`: memoryFreeMib is "), "{reason}");
    assert!(reason.contains(", not >= 999999999 (as of "), "{reason}");
    assert_eq!(fleet.task(&unmet)["status"], "queued");
    let body = json!({"payload": {"argv": ["/x"]}, "requires": ["not throttled", "memory > 3"]});
    let (status, refused) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
    assert_eq!((status, &refused["error"]["field"]), (400, &json!("requires[1]")), "{refused:#}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("`memory` is not known; there are gpuMemoryFreeMib"), "{message}");
    let submitted = fleet
        .command("dunlin")
        .args(["submit", "--wait", "--require", "diskFreeMib >= 0", "--", "/usr/bin/uname", "-a"])
        .output()
        .unwrap();
    assert_eq!(submitted.status.code(), Some(0), "{}", String::from_utf8_lossy(&submitted.stderr));
}

#[test]
fn top_prints_a_frame_where_there_is_no_terminal() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _agent = fleet.add_agent("heron", &[]).unwrap();
    let frame = until("a share of the CPU", || {
        let shown = fleet.command("dunlin").arg("top").output().unwrap();
        assert_eq!(shown.status.code(), Some(0), "{}", String::from_utf8_lossy(&shown.stderr));
        let text = String::from_utf8(shown.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("heron"))?.to_owned();
        line.contains('%').then_some(text)
    });
    assert!(frame.starts_with("1 nodes, 1 up   0 queued, 0 running\n"), "{frame}");
    assert!(!frame.contains('\u{1b}'), "{frame}");
}
