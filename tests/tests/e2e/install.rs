//! `up`: from a ticket to a board that works, and what it says when that was done already. And the units.

use super::fleet;
use dunlin_tests::Fleet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

fn ticket(fleet: &Fleet, name: &str) -> String {
    let made = fleet.command("dunlin").args(["node", "invite", name]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

fn up(fleet: &Fleet, args: &[&str]) -> (Option<i32>, String) {
    let mut command = fleet.command("dunlin-agent");
    command.args(["up", "--no-service", "--data"]).arg(fleet.data("heron"));
    command.arg("--policy").arg(fleet.dir().join("policy.toml"));
    said(command.args(args).output().unwrap())
}

fn said(out: Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code(), text)
}

#[test]
fn one_command_from_a_ticket_to_a_green_board() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let first = ticket(&fleet, "heron");
    // A policy without the rule: that is said, and nothing else is run in its place.
    let (code, text) = up(&fleet, &[&first]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["no rule `selftest`", "enrolled as `heron`", "welcomed this node"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let policy = fleet.dir().join("policy.toml");
    let rule = "\n[[rule]]\nid = \"selftest\"\nprogram = \"/usr/bin/echo\"\nargs = [\"it\", \"works\"]\n";
    std::fs::write(&policy, std::fs::read_to_string(&policy).unwrap() + rule).unwrap();
    let (code, text) = up(&fleet, &[&first]);
    assert!(code == Some(0) && text.contains("already joined as `heron`"), "{text}");
    let (code, text) = up(&fleet, &["--resume"]);
    assert!(code == Some(0) && text.contains("said: it works"), "{text}");
    // Anew, under another name: the old identity is moved aside, not lost.
    let second = ticket(&fleet, "egret");
    let (code, text) = up(&fleet, &["--rejoin", &second]);
    assert!(code == Some(0) && text.contains("enrolled as `egret`"), "{text}");
    assert!(fleet.data("heron").with_extension("old1").join("identity.key").exists());
    let (code, text) = up(&fleet, &["--rejoin", &second]);
    assert!(code == Some(77) && text.contains("ticket"), "{text}");
    let (code, text) = up(&fleet, &["--resume"]);
    assert!(code == Some(0) && text.contains("welcomed"), "still who it was: {text}");
}

/// Each check's colour, by its name; of several by one name the worst.
fn doctor(mut command: Command) -> (Option<i32>, BTreeMap<String, String>) {
    let out = command.arg("--json").output().unwrap();
    let rows: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for row in rows.as_array().unwrap() {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        assert!(text("level") == "green" || !text("fix").is_empty() || text("name") == "disk", "{row}");
        let level = found.entry(text("name")).or_default();
        let worse = |level: &str| ["", "green", "yellow", "red"].iter().position(|l| *l == level);
        if worse(&text("level")) > worse(level) {
            *level = text("level");
        }
    }
    (out.status.code(), found)
}

#[test]
fn doctors_say_what_is_wrong_and_what_to_do() {
    let (_dir, fleet) = fleet();
    let agent = || {
        let mut command = fleet.command("dunlin-agent");
        command.args(["doctor", "--with-exec", "--data"]).arg(fleet.data("heron"));
        command.arg("--policy").arg(fleet.dir().join("policy.toml"));
        doctor(command)
    };
    let hub = || {
        let mut command = fleet.command("dunlin-hub");
        command.args(["doctor", "--config"]).arg(fleet.dir().join("hub.toml"));
        doctor(command)
    };
    let mut running = fleet.start_hub().unwrap();
    // It reads a certificate again, if it has one, and goes on.
    running.proc.signal("HUP");
    let (code, checks) = hub();
    assert!(code == Some(0) && checks.len() >= 12, "{checks:?}");
    for name in ["store", "quic", "http", "version", "secrets"] {
        assert_eq!(checks[name], "green", "{name} of a hub that runs");
    }
    assert_eq!(agent().1["enrolment"], "red");
    let heron = fleet.add_agent("heron", &[]).unwrap();
    let (code, checks) = agent();
    assert!(code == Some(0) && checks.len() >= 12, "{checks:?}");
    for name in ["enrolment", "keys", "uplink", "agent", "journal", "executor"] {
        assert_eq!(checks[name], "green", "{name} of an agent that runs");
    }
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(&fleet.data("heron").join("identity.key"), 0o644);
    let (code, checks) = agent();
    assert_eq!((code, checks["keys"].as_str()), (Some(1), "red"));
    mode(&fleet.data("heron").join("identity.key"), 0o600);
    // The hub is gone, and somebody else has its port.
    running.proc.kill();
    let _squatter = std::net::UdpSocket::bind(fleet.quic()).unwrap();
    let (code, checks) = agent();
    assert_eq!((code, checks["uplink"].as_str()), (Some(1), "red"));
    mode(&fleet.dir().join("hub/owner.token"), 0o640);
    let (code, checks) = hub();
    assert_eq!((code, checks["quic"].as_str(), checks["secrets"].as_str()), (Some(1), "red", "red"));
    drop(heron);
    assert_eq!(agent().1["agent"], "yellow");
}

#[test]
fn units_are_in_order_and_shut_in() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, systemd) = (dir.path().join("bin"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd"));
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("no systemd-analyze here: the units are not looked at");
    }
    std::fs::create_dir(&bin).unwrap();
    for (unit, program, exposure) in
        [("hub", "dunlin-hub", 15), ("agent", "dunlin-agent", 15), ("exec", "dunlin-agent", 50)]
    {
        let name = format!("dunlin-{unit}.service");
        let text = std::fs::read_to_string(systemd.join(&name)).unwrap();
        let program = bin.join(program);
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let usual = format!("/usr/local/bin/{}", program.file_name().unwrap().to_str().unwrap());
        let path = dir.path().join(&name);
        std::fs::write(&path, text.replace(&usual, program.to_str().unwrap())).unwrap();
        let mut security = Command::new("systemd-analyze");
        security
            .args(["security", "--offline=true", "--no-pager", &format!("--threshold={exposure}")])
            .arg(&path);
        let (code, text) = said(security.output().unwrap());
        assert_eq!(code, Some(0), "{name}: {text}");
    }
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no"])
        .args(["hub", "agent", "exec"].map(|u| dir.path().join(format!("dunlin-{u}.service"))));
    let (code, text) = said(verify.output().unwrap());
    assert!(code == Some(0) && !text.contains("dunlin"), "{text}");
}
