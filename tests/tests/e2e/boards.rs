//! Agents that read copies of other boards: what the hub makes of Jetsons and Pis, their alarms, and what a job cost.

#[path = "../../../agent/tests/boards/mod.rs"]
mod fixture;

use super::{fleet, sh};
use dunlin_tests::fleet::{Agent, Fleet};
use dunlin_tests::until;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const BOARDS: [&str; 9] = [
    "container-nosysfs",
    "nano-t210-jp46",
    "orin-agx-t234-jp50",
    "orin-nano-t234-jp61",
    "rpi4-bcm2711",
    "rpi5-bcm2712",
    "thor-t264-jp70-idle",
    "tx2-t186-jp46",
    "xavier-nx-t194-jp51",
];

/// An agent on a copy of `board`, and where that is.
fn start(fleet: &Fleet, name: &str, board: &str) -> (Agent, PathBuf) {
    let root = fleet.dir().join("sysroots").join(name);
    fixture::expand(&root, &fixture::nodes(board).0);
    fleet.enrol(name, &["--profile", "lan"]).unwrap();
    let agent = fleet.start_agent_with(name, &[("DUNLIN_SYSROOT", root.to_str().unwrap())]).unwrap();
    (agent, root)
}

fn until_reported(fleet: &Fleet, name: &str) -> Value {
    until(&format!("{name} reports"), || {
        let telemetry = fleet.node(name)["telemetry"].clone();
        telemetry["figures"].is_object().then_some(telemetry)
    })
}

fn put(root: &std::path::Path, file: &str, text: &str) {
    // Nobody may read half of it.
    let (draft, path) = (root.join("draft"), root.join(file));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, path).unwrap();
}

/// What is wrong with an exposition (prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4).
fn lint(text: &str) -> Vec<String> {
    let (mut wrong, mut seen, mut families) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    for line in text.lines() {
        let mut check = |is_right: bool, rule: &str| {
            if !is_right {
                wrong.push(format!("{rule}: {line}"));
            }
        };
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            check(families.insert(name.to_owned()), "a family once");
            check(!help.is_empty(), "help");
            name.clone_into(&mut family);
            kind.clear();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, word) = rest.split_once(' ').unwrap_or((rest, ""));
            check(
                name == family && ["counter", "gauge", "histogram"].contains(&word),
                "a type after its help",
            );
            check((word == "counter") == name.ends_with("_total"), "counters end in _total");
            word.clone_into(&mut kind);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or((line, ""));
            let name = series.split('{').next().unwrap_or_default();
            let of = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let of = of.filter(|_| kind == "histogram").unwrap_or(name);
            check(of == family && !kind.is_empty(), "a series below its family");
            check(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "a name");
            check(value.parse::<f64>().is_ok_and(f64::is_finite), "a number");
            check(seen.insert(series.to_owned()), "a series once");
            check(kind != "counter" || !value.starts_with('-'), "a counter is not negative");
        }
    }
    wrong
}

#[test]
fn metrics_of_all_boards_are_clean() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let agents: Vec<_> = BOARDS.iter().map(|board| start(&fleet, board, board)).collect();
    for board in BOARDS {
        until_reported(&fleet, board);
    }
    // One task, so that its counters are there too.
    let soon = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    fleet.wait_ended(&soon);
    let text = fleet.get("/metrics").unwrap().as_str().unwrap().to_owned();
    for series in
        ["dunlin_gpu_utilization_ratio{node=\"orin-nano-t234-jp61\",gpu=\"0\"} ", "dunlin_power_watts{"]
    {
        assert!(text.contains(series), "{series} is not in\n{text}");
    }
    assert!(!text.contains("dunlin_gpu_utilization_ratio{node=\"thor"), "Thor's load is unknown");
    assert_eq!(lint(&text), Vec::<String>::new());
    let dcgm = fleet.get("/metrics?names=dcgm").unwrap().as_str().unwrap().to_owned();
    assert!(dcgm.contains("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",Hostname=\"orin-nano-t234-jp61\"} "), "{dcgm}");
    assert_eq!(lint(&dcgm), Vec::<String>::new());
    promtool(&text);
    drop(agents);
}

/// What the format's own tool says, where it is installed (Debian's package `prometheus`).
fn promtool(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else {
        return println!("skipped: promtool is not installed (apt-get install prometheus)");
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && words.is_empty(), "{words}");
}

#[test]
fn a_lint_finds_what_is_wrong() {
    let fine = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\"} 1\n";
    assert_eq!(lint(fine), Vec::<String>::new());
    for (more, rule) in [
        (fine, "a family once"),
        ("b 1\n", "a series below its family"),
        ("a_total{b=\"c\"} 2\n", "a series once"),
        ("a_total -1\n", "a counter is not negative"),
        ("a_total NaN\n", "a number"),
        ("# HELP b_total\n", "help"),
        ("# HELP b x\n# TYPE b counter\n", "counters end in _total"),
    ] {
        assert!(lint(&format!("{fine}{more}")).iter().any(|wrong| wrong.starts_with(rule)), "{more}");
    }
}

#[test]
fn an_alarm_is_an_event_and_stays_with_its_node() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let (_agent, root) = start(&fleet, "heron", "orin-nano-t234-jp61");
    let zone = "sys/class/thermal/thermal_zone8";
    put(&root, &format!("{zone}/trip_point_0_type"), "critical\n");
    put(&root, &format!("{zone}/trip_point_0_temp"), "104500\n");
    until("the trip point is told", || {
        (fleet.node("heron")["telemetry"]["figures"]["temperature:tj"]["trip"] == 104.5).then_some(())
    });
    assert_eq!(fleet.node("heron")["alarms"], json!([]));
    put(&root, &format!("{zone}/temp"), "99500\n");
    let alarms = until("the alarm is told", || {
        let alarms = fleet.node("heron")["alarms"].clone();
        (alarms != json!([])).then_some(alarms)
    });
    let at = alarms[0]["lastAt"].as_u64().unwrap();
    assert_eq!(alarms, json!([{"kind": "hot", "place": "tj", "lastAt": at, "count": 1}]));
    let events = fleet.get("/v1/events?since=0").unwrap();
    let told: Vec<&Value> =
        events["events"].as_array().unwrap().iter().filter(|e| e["kind"] == "node.alarm").collect();
    assert_eq!((told.len(), &told[0]["nodeId"], &told[0]["detail"]), (1, &json!("heron"), &json!("hot(tj)")));
    let metrics = fleet.get("/metrics").unwrap().as_str().unwrap().to_owned();
    assert!(metrics.contains("dunlin_node_alarms_total{node=\"heron\",kind=\"hot\"} 1\n"), "{metrics}");
    let shown = fleet.command("dunlin").args(["node", "show", "heron"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("hot tj: 1 since the hub started, the last at "), "{shown}");
}

#[test]
fn a_result_says_what_the_board_was_like_meanwhile() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let (_agent, _root) = start(&fleet, "heron", "orin-nano-t234-jp61");
    let telemetry = until_reported(&fleet, "heron");
    let watts = telemetry["figures"]["power"]["mean"].as_f64().unwrap();
    let free = telemetry["figures"]["memoryAvailable"]["mean"].as_f64().unwrap();
    let used = (telemetry["board"]["memoryTotal"].as_f64().unwrap() - free) / 1_048_576.0;
    let task = fleet.wait_ended(&sh(&fleet, "sleep 5", json!({})));
    let outcome = &task["attempts"][0]["outcome"];
    assert_eq!(outcome["code"], "ok", "{task:#}");
    assert_eq!(outcome["peakGpuPermille"], 630);
    assert_eq!(outcome["peakBoardMemoryMib"].as_f64(), Some(used));
    assert_eq!(outcome["peakGpuMemoryMib"], Value::Null, "it has none of its own");
    let wanted = watts * outcome["durationMs"].as_f64().unwrap() / 3600.0;
    let energy = outcome["energyMwh"].as_f64().unwrap();
    assert!((energy - wanted).abs() <= 0.1 * wanted + 1.0, "{energy} mWh, not {wanted}");
    let id = task["taskId"].as_str().unwrap();
    let shown = fleet.command("dunlin").args(["task", "show", id]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("attempt 1: GPU up to 63 %, memory of the board in use up to "), "{shown}");
    // A job that no reading fell into, or a board without rails, has no such figure.
    let (_plain, _root) = start(&fleet, "plain", "container-nosysfs");
    until_reported(&fleet, "plain");
    let task = fleet.wait_ended(&sh(&fleet, "sleep 5", json!({"targetNodeId": "plain"})));
    let outcome = &task["attempts"][0]["outcome"];
    assert_eq!(
        (&outcome["peakGpuPermille"], &outcome["energyMwh"]),
        (&Value::Null, &Value::Null),
        "{task:#}"
    );
}
