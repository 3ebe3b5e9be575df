//! Another binary in the agent's place, under load: nothing is lost, nothing runs twice at once.

use super::{fleet, lines, sh};
use dunlin_tests::{Fleet, until};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;

/// Marks its beginning and end, and says so when it is there twice at once.
const JOB: &str = "mkdir $DUNLIN_TASK_ID.live || echo $DUNLIN_TASK_ID >> doubled; \
    trap 'rmdir $DUNLIN_TASK_ID.live; exit 9' TERM; \
    echo $DUNLIN_TASK_ID >> began; while ! test -e go; do sleep 0.05; done; \
    echo $DUNLIN_TASK_ID >> ended; rmdir $DUNLIN_TASK_ID.live";

fn submit(fleet: &Fleet, count: usize) -> Vec<String> {
    (0..count).map(|_| sh(fleet, JOB, json!({ "timeoutMs": 60_000 }))).collect()
}

/// Puts a copy of the binary where it was, as a package does: written beside it, then renamed.
fn replace(fleet: &Fleet) -> u64 {
    let path = fleet.dir().join("bin/dunlin-agent");
    let new = path.with_extension("new");
    std::fs::copy(&path, &new).unwrap();
    std::fs::rename(&new, &path).unwrap();
    std::fs::metadata(&path).unwrap().ino()
}

fn inode(pid: u32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

fn outcomes(task: &Value) -> Vec<&str> {
    let attempts = task["attempts"].as_array().unwrap();
    attempts.iter().filter_map(|attempt| attempt["outcome"]["code"].as_str()).collect()
}

#[test]
fn an_agent_replaced_under_load_loses_nothing_and_doubles_nothing() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let mut old = fleet.add_agent("heron", &["--max-concurrent", "4"]).unwrap();
    let mut ids = submit(&fleet, 12);
    until("four run", || (lines(&fleet, "began").len() == 4).then_some(()));
    let first = lines(&fleet, "began");
    let binary = replace(&fleet);
    assert_ne!(inode(old.proc.pid()), binary);
    old.proc.signal("TERM");
    assert_eq!(old.proc.wait(), Some(0), "{}", fleet.logged("heron"));
    // It left in order: what it ran had ended before, and the hub has it.
    for id in &first {
        let task = fleet.task(id);
        assert_eq!(outcomes(&task), ["interrupted"], "{task}");
        assert_eq!(Fleet::outcome(&task), "interrupted(executor_restart)");
    }
    ids.extend(submit(&fleet, 4));
    let new = fleet.start_agent("heron").unwrap();
    until("they run again", || (lines(&fleet, "began").len() == 8).then_some(()));
    assert_eq!(inode(new.proc.pid()), binary);
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    for id in &ids {
        let task = fleet.wait_ended(id);
        assert_eq!(task["status"], "done", "{task}");
        let want: &[&str] = if first.contains(id) { &["interrupted", "ok"] } else { &["ok"] };
        assert_eq!(outcomes(&task), want, "{task}");
    }
    once(&fleet, &ids);
}

#[test]
fn a_drained_agent_is_replaced_without_an_interruption() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let mut old = fleet.add_agent("heron", &["--max-concurrent", "4"]).unwrap();
    let ids = submit(&fleet, 8);
    until("four run", || (lines(&fleet, "began").len() == 4).then_some(()));
    let first = lines(&fleet, "began");
    fleet.post("/v1/nodes/heron/drain", &json!({})).unwrap();
    std::fs::write(fleet.dir().join("work/go"), "").unwrap();
    for id in &first {
        assert_eq!(fleet.wait_ended(id)["status"], "done");
    }
    let binary = replace(&fleet);
    old.proc.signal("TERM");
    assert_eq!(old.proc.wait(), Some(0), "{}", fleet.logged("heron"));
    let new = fleet.start_agent("heron").unwrap();
    fleet.wait_health("heron", "healthy");
    assert_eq!(inode(new.proc.pid()), binary);
    assert_eq!(lines(&fleet, "began").len(), 4, "it drains still");
    fleet.post("/v1/nodes/heron/undrain", &json!({})).unwrap();
    for id in &ids {
        let task = fleet.wait_ended(id);
        assert_eq!((&task["status"], outcomes(&task)), (&json!("done"), vec!["ok"]), "{task}");
    }
    once(&fleet, &ids);
}

/// Each job came to its end once, and was never there twice at once.
fn once(fleet: &Fleet, ids: &[String]) {
    let (mut got, mut want) = (lines(fleet, "ended"), ids.to_vec());
    got.sort();
    want.sort();
    assert_eq!(got, want);
    assert_eq!(lines(fleet, "doubled"), Vec::<String>::new());
}
