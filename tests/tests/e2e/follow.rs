//! `task logs -f`: what a running job writes, while it writes it.

use super::{fleet, sh};
use dunlin_tests::{Fleet, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// Writes a numbered line now and then until `work/stop` is there.
const TICKS: &str = "i=0; while [ ! -e stop ]; do echo tick $i; i=$((i+1)); sleep 0.05; done; echo end";

fn touch(fleet: &Fleet, name: &str) {
    std::fs::write(fleet.dir().join("work").join(name), "").unwrap();
}

fn follow(fleet: &Fleet, args: &[&str]) -> Child {
    let mut command: Command = fleet.command("dunlin");
    command.args(["task", "logs", "-f"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn logs(fleet: &Fleet, id: &str) -> String {
    let output = fleet.command("dunlin").args(["task", "logs", id]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Follows a ticking job from when it runs; what was followed, what was said beside it, and what is kept.
fn ticks(fleet: &Fleet) -> (String, String, String) {
    let id = sh(fleet, TICKS, json!({}));
    let mut child = follow(fleet, &[&id]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    // The job does not end before we have read of it.
    while seen.lines().count() < 3 {
        assert!(out.read_line(&mut seen).unwrap() > 0, "it ended early: {seen}");
    }
    touch(fleet, "stop");
    out.read_to_string(&mut seen).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    fleet.wait_ended(&id);
    (seen, said, logs(fleet, &id))
}

#[test]
fn a_running_job_is_followed_to_its_end() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let (seen, said, kept) = ticks(&fleet);
    assert_eq!((seen, said), (kept, String::new()));
}

#[test]
fn over_a_metered_link_only_what_is_followed_is_sent() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--profile", "metered"]).unwrap();
    // Nobody follows it: half a megabyte is written, and stays on the board until the outcome brings it.
    let id = sh(
        &fleet,
        "head -c 500000 /dev/zero; touch wrote; while [ ! -e over ]; do sleep 0.05; done",
        json!({}),
    );
    until("it has written", || fleet.dir().join("work/wrote").exists().then_some(()));
    for _ in 0..2 {
        let mut before = 0;
        until("the board is heard again", || {
            let silent = fleet.node("a")["silentMs"].as_u64().unwrap();
            (silent < std::mem::replace(&mut before, silent)).then_some(())
        });
    }
    let sent = |fleet: &Fleet| fleet.node("a")["bytes"]["output"]["in"].as_u64().unwrap();
    assert_eq!(sent(&fleet), 0);
    touch(&fleet, "over");
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), "ok");
    until("it came with the outcome", || (sent(&fleet) >= 500_000).then_some(()));

    let (seen, said, kept) = ticks(&fleet);
    assert!(kept.starts_with("tick 0\ntick 1\n") && kept.ends_with("end\n"), "{kept}");
    // What was written before somebody followed it is said to be missing; the rest is there without a hole.
    assert!(kept.ends_with(&seen), "{seen:?} of {kept:?}");
    let missing = kept.len() - seen.len();
    let want = match missing {
        0 => String::new(),
        missing => format!("dunlin: {missing} bytes at 0 were not seen live\n"),
    };
    assert_eq!(said, want);
}

#[test]
fn a_follower_that_does_not_read_or_goes_away_stops_what_is_sent_and_not_the_job() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--profile", "metered"]).unwrap();
    // Waits for a follower, then writes three megabytes.
    let script = "while [ ! -e go ]; do echo wait; sleep 0.05; done; head -c 3000000 /dev/zero; touch wrote; while [ ! -e over ]; do sleep 0.05; done; echo end";
    let id = sh(&fleet, script, json!({}));
    let mut child = follow(&fleet, &[&id, "--json"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"data\"") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0);
    }
    // It goes away with credit that it gave and that was not used yet.
    child.kill().unwrap();
    child.wait().unwrap();
    touch(&fleet, "go");
    until("it has written", || fleet.dir().join("work/wrote").exists().then_some(()));
    let sent = || fleet.node("a")["bytes"]["output"]["in"].as_u64().unwrap();
    // A window that was granted, and one more that may have been on its way.
    assert!(sent() < 300_000, "{}", sent());

    // Another one comes, sees the end, and what it has not seen is a gap in the middle of it.
    let child = follow(&fleet, &[&id, "--json"]);
    touch(&fleet, "over");
    let output = child.wait_with_output().unwrap();
    let pieces: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (mut next, mut seen) = (0, Vec::new());
    for piece in &pieces[..pieces.len() - 1] {
        assert_eq!(piece["offset"], next, "{piece}");
        let data = data_encoding::BASE64.decode(piece["data"].as_str().unwrap_or("").as_bytes()).unwrap();
        next += piece["gap"].as_u64().unwrap_or(data.len() as u64);
        seen.extend(data);
    }
    let outcome = &pieces.last().unwrap()["end"]["outcome"];
    assert_eq!((&outcome["code"], &outcome["stdout"]["bytes"]), (&json!("ok"), &json!(next)), "{outcome}");
    // The board's policy keeps less than was written, beginning and end: all of that was seen, and what came in time besides.
    let kept = logs(&fleet, &id).into_bytes();
    let (head, tail) = kept.split_at(kept.len() / 2);
    assert!(kept.len() <= seen.len() && (kept.len() as u64) < next);
    assert!(seen.starts_with(head) && seen.ends_with(tail));
    assert_eq!(output.status.code(), Some(0));
}
