//! The ways to the hub that a board's own file names.

use super::{FAST, fleet, fleet_with};
use dunlin_tests::{Fleet, until};
use serde_json::{Value, json};
use std::net::UdpSocket;
use std::process::Output;

/// A command of the board `a` with its own configuration.
fn agent(fleet: &Fleet, args: &[&str]) -> Output {
    let mut command = fleet.command("dunlin-agent");
    command.args(args).arg("--config").arg(fleet.agent_config("a")).arg("--data").arg(fleet.data("a"));
    command.arg("--policy").arg(fleet.dir().join("policy.toml")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_hub_with_enough_to_do_says_when_to_come_again() {
    let (_dir, fleet) = fleet_with(&format!("{FAST}\n[link]\nconnections_max = 1\n"));
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    fleet.enrol("b", &[]).unwrap();
    let mut a = fleet.start_agent("a").unwrap();
    fleet.wait_health("a", "healthy");
    let _b = fleet.start_agent("b").unwrap();
    until("the agent is told to come again", || fleet.logged("b").contains("busy").then_some(()));
    let log = fleet.logged("b");
    let wait = log.lines().find_map(|line| {
        let (_, rest) = line.split_once("retry_ms=").filter(|_| line.contains("busy"))?;
        rest.split(' ').next()?.parse::<u64>().ok()
    });
    // By its own back-off it would have come again within 200 ms.
    assert!(wait.is_some_and(|ms| ms >= 1000), "{log}");
    a.proc.signal("TERM");
    fleet.wait_health("b", "healthy");
    assert_eq!(a.proc.wait(), Some(0));
}

#[test]
fn the_second_uplink_is_used_when_the_first_is_dead() {
    // The ticket leads nowhere: only the board's own file knows the way, when it joins and when it runs.
    // Bound for the whole test, so that nobody else gets the port, and read by nobody.
    let hole = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = hole.local_addr().unwrap().to_string();
    let (_dir, fleet) = fleet_with(&format!("advertise = [\"{dead}\"]\n{FAST}"));
    let _hub = fleet.start_hub().unwrap();
    let config = |text: String| std::fs::write(fleet.agent_config("a"), text).unwrap();
    let good = format!("[[uplink]]\nurl = \"QUIC://{}/\"\nlabel = \"Relay\"\n", fleet.quic());
    config(good.clone());
    let invite = fleet.command("dunlin").args(["node", "invite", "a"]).output().unwrap();
    let join = agent(&fleet, &["join", text(&invite.stdout).trim()]);
    assert!(join.status.success(), "{}", text(&join.stderr));
    config(format!("[[uplink]]\nurl = \"{dead}\"\nlabel = \"LAN\"\n{good}"));
    let check = text(&agent(&fleet, &["check"]).stdout);
    for want in [
        format!("ok     uplink: {dead} (label lan, local, tls-pinned)\n"),
        format!("ok     uplink: {} (label relay, WAN, tls-pinned)\n", fleet.quic()),
    ] {
        assert!(check.contains(&want), "{check}");
    }
    let doctor = text(&agent(&fleet, &["doctor"]).stdout);
    let found =
        [format!("yellow  uplink     {dead} (label lan"), format!("green   uplink     {}", fleet.quic())];
    assert!(found.iter().all(|found| doctor.contains(found)), "{doctor}");
    let a = fleet.start_agent("a").unwrap();
    fleet.wait_health("a", "healthy");
    let status_of =
        || serde_json::from_slice::<Value>(&agent(&fleet, &["status", "--json"]).stdout).unwrap_or_default();
    until("status knows it", || (status_of()["connected"] == true).then_some(()));
    let status = status_of();
    let uplink = |addr: &str, label: &str, local: bool, current: bool| {
        let mut uplink = json!({"addr": addr, "label": label, "posture": "tls-pinned"});
        uplink["local"] = local.into();
        uplink["current"] = current.into();
        uplink
    };
    let want = json!([uplink(&dead, "lan", true, false), uplink(&fleet.quic(), "relay", false, true)]);
    assert_eq!((&status["discovery"], &status["uplinks"]), (&json!(false), &want), "{status:#}");
    let people = text(&agent(&fleet, &["status"]).stdout);
    let line = format!("{} (label relay, WAN, tls-pinned), current\n", fleet.quic());
    assert!(people.contains(&line), "{people}");
    let log = fleet.logged("a");
    for (event, hub, label) in [("no connection", &dead, "lan"), ("connected", &fleet.quic(), "relay")] {
        let said = |line: &str| {
            [event, hub, &format!("label=\"{label}\""), "posture=\"tls-pinned\""]
                .iter()
                .all(|w| line.contains(w))
        };
        assert!(log.lines().any(said), "{event}: {log}");
    }
    drop(a);
    let status = status_of();
    assert_eq!((&status["running"], &status["uplinks"][1]["current"]), (&json!(false), &json!(false)));
}

#[test]
fn a_wrong_url_is_refused_before_anything_is_opened() {
    let (_dir, fleet) = fleet();
    std::fs::write(fleet.agent_config("a"), "[[uplink]]\nurl = \"ftp://hub\"\n").unwrap();
    for command in ["run", "check", "status"] {
        let output = agent(&fleet, &[command]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{command}: {said}");
        assert!(said.contains("a.toml: uplink 1: INVALID_PEER_URL: `ftp://hub`: the scheme"), "{said}");
    }
    assert!(!fleet.data("a").exists(), "nothing was made");
}
