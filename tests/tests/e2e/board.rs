//! What a job can and cannot do on the board, and how it ends.

use super::{fleet, runs, sh};
use dunlin_tests::{Fleet, until};
use serde_json::json;

/// Without a user of its own and without Landlock, a job may kill its guard.
const UNSCOPED: &[(&str, &str)] = &[("DUNLIN_MASK", "layer:landlock")];

#[test]
fn a_job_that_ignores_term_dies_with_its_grandchild() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "2"]).unwrap();
    for (mark, more) in [("7771.5", json!({"timeoutMs": 800, "maxAttempts": 1})), ("7772.5", json!({}))] {
        // The grandchild leaves session and process group, and ignores SIGTERM too.
        let script =
            format!("trap '' TERM; setsid sh -c \"trap '' TERM; sleep {mark}\" & sleep {mark}; sleep {mark}");
        let id = sh(&fleet, &script, more);
        until("the grandchild runs", || runs(mark).then_some(()));
        if mark == "7772.5" {
            fleet.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).unwrap();
        }
        let want = if mark == "7772.5" { "cancelled(operator)" } else { "timed_out(kill)" };
        until("it is over", || (Fleet::outcome(&fleet.task(&id)) == want).then_some(()));
        assert!(!runs(mark), "a process of {id} survived its end");
    }
}

#[test]
fn what_a_job_leaves_behind_is_killed_and_counted() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let id = sh(&fleet, "setsid sh -c 'sleep 7773.5' >/dev/null 2>&1 & exit 0", json!({}));
    let task = fleet.wait_ended(&id);
    let outcome = &task["attempts"][0]["outcome"];
    assert_eq!(outcome["code"], "ok");
    assert!(outcome["leftoverKilled"].as_u64().unwrap() >= 1, "{outcome:#}");
    assert!(!runs("7773.5"));
}

#[test]
fn a_job_that_kills_its_guard_dies_with_everything_it_started() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &["--max-concurrent", "2"]).unwrap();
    let _a = fleet.start_agent_with("a", UNSCOPED).unwrap();
    let other = sh(&fleet, "sleep 3; echo untouched", json!({"maxAttempts": 1}));
    fleet.wait_state(&other, &["running"]);
    // An orphan with another session, no environment, and the guard gone.
    let script =
        "setsid env -i /bin/sh -c 'while :; do sleep 7776.5; done' & sleep 0.3; kill -9 $PPID; sleep 7776.5";
    let id = sh(&fleet, script, json!({"maxAttempts": 1}));
    let task = fleet.wait_ended(&id);
    assert_eq!(Fleet::outcome(&task), "agent_internal", "{task:#}");
    assert!(!runs("7776.5"), "an orphan survived");
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&other)), "ok", "the other job is not touched");
}

#[test]
fn an_orphan_of_executor_and_guard_is_killed_by_the_next_start() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let mut a = fleet.start_agent_with("a", UNSCOPED).unwrap();
    let probe = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    let layers = fleet.wait_ended(&probe)["attempts"][0]["outcome"]["sandbox"].clone();
    if !layers.as_array().unwrap().contains(&json!("cgroup")) {
        eprintln!(
            "no cgroup can be made here, so an orphan without its environment cannot be found: {layers}"
        );
        return;
    }
    let script = "setsid env -i /bin/sh -c 'while :; do sleep 7777.5; done' & while ! test -e go7778; do sleep 0.05; done; kill -9 $PPID; sleep 9";
    sh(&fleet, script, json!({"maxAttempts": 1}));
    until("the orphan-to-be runs", || runs("sleep\x007777.5").then_some(()));
    let exec = child_of(a.proc.pid(), "executor");
    a.proc.signal("STOP");
    signal(exec, "STOP");
    std::fs::write(fleet.dir().join("work/go7778"), "").unwrap();
    until("guard and lead are gone", || (!runs("go7778")).then_some(()));
    assert!(runs("sleep\x007777.5"), "nobody was there to kill it");
    signal(exec, "KILL");
    a.proc.kill();
    let _a = fleet.start_agent("a").unwrap();
    until("the next start kills it", || (!runs("7777.5")).then_some(()));
}

/// The child of a process that has this word in its command line.
fn child_of(pid: u32, word: &str) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let mut children = children.split_whitespace();
    let found = children.find(|child| {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|w| w == word.as_bytes())
    });
    found.unwrap().parse().unwrap()
}

fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.is_ok_and(|s| s.success()), "kill -{name} {pid}");
}

#[test]
fn both_streams_at_once_keep_head_and_tail() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    // 2 MiB on each, interleaved; the rule keeps 1 MiB.
    let script = "i=0; while [ $i -lt 64 ]; do head -c 32768 /dev/zero | tr '\\0' a; head -c 32768 /dev/zero | tr '\\0' b >&2; i=$((i+1)); done; echo end";
    let id = fleet.submit(&["/bin/sh", "-c", script], json!({})).unwrap();
    let task = fleet.wait_ended(&id);
    let outcome = &task["attempts"][0]["outcome"];
    assert_eq!((&outcome["code"], &outcome["truncated"]), (&json!("ok"), &json!(true)), "{outcome:#}");
    assert_eq!(outcome["stdout"], json!({"bytes": 2_097_156u64, "truncatedBytes": 1_048_580u64}));
    let output = fleet.command("dunlin").args(["task", "logs", &id]).output().unwrap();
    assert_eq!(output.stdout.len(), 1 << 20);
    assert!(output.stdout.starts_with(b"aaaa") && output.stdout.ends_with(b"aend\n"));
    let output = fleet.command("dunlin").args(["task", "logs", "--stderr", &id]).output().unwrap();
    assert!(output.stdout.len() == 1 << 20 && output.stdout.iter().all(|b| *b == b'b'));
}

#[test]
fn the_board_decides_on_words_paths_and_variables() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let work = fleet.dir().join("work");
    std::os::unix::fs::symlink("/etc", work.join("etc")).unwrap();
    let at = |name: &str| work.join(name).display().to_string();
    let cases = [
        (vec!["/usr/bin/id"], json!({}), "denied(not_allowlisted)"),
        (vec!["echo", "x"], json!({}), "denied(not_absolute)"),
        (vec!["/usr/bin/uname", "-r"], json!({}), "denied(argument)"),
        (vec!["/usr/bin/echo", "x"], json!({"cwd": at("etc")}), "denied(cwd)"),
        (vec!["/usr/bin/echo", "x"], json!({"cwd": "/etc"}), "denied(cwd)"),
        (vec!["/usr/bin/echo", "x"], json!({"env": {"PATH": "/tmp/evil"}}), "denied(env)"),
        (vec!["/usr/bin/echo", "x"], json!({"env": {"LD_PRELOAD": "/tmp/evil.so"}}), "denied(env)"),
        (vec!["/usr/bin/echo", "x"], json!({"timeoutMs": 9_999_999}), "denied(timeout_over_ceiling)"),
        (vec!["/usr/bin/echo", "$(id)"], json!({"cwd": at(""), "env": {"RUN_LABEL": "night-7"}}), "ok"),
    ];
    for (argv, mut more, want) in cases {
        more["maxAttempts"] = 1.into();
        if more["cwd"] == at("").as_str() {
            more["cwd"] = work.display().to_string().into();
        }
        let id = fleet.submit(&argv, more.clone()).unwrap();
        assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), want, "{argv:?} {more}");
        if want == "ok" {
            let out = fleet.command("dunlin").args(["task", "logs", &id]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), "$(id)\n", "no shell has seen it");
        }
    }
}

#[test]
fn a_job_sees_a_clean_environment_and_no_descriptors() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let _a = fleet.start_agent_with("a", &[("AGENT_SECRET", "hunter2")]).unwrap();
    let script = "env | cut -d= -f1 | sort | tr '\\n' ' '; ls /proc/$$/fd; readlink /proc/$$/fd/0; umask; grep -E 'NoNewPrivs|Sig(Blk|Ign)' /proc/self/status";
    let id = fleet.submit(&["/bin/sh", "-c", script], json!({})).unwrap();
    let task = fleet.wait_ended(&id);
    let out = fleet.command("dunlin").args(["task", "logs", &id]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let want = "DUNLIN_AGENT DUNLIN_ATTEMPT DUNLIN_FENCE DUNLIN_REPORT DUNLIN_TASK_ID HOME LANG PATH PWD ";
    assert!(text.starts_with(want), "{text}");
    assert!(text.contains(" 0\n1\n2\n/dev/null\n0077\n"), "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nNoNewPrivs:\t1"), "{text}");
    let scratch = fleet.data("a").join("scratch");
    let left = std::fs::read_dir(&scratch).map_or(0, |d| d.count());
    assert_eq!((left, &task["status"]), (0, &json!("done")), "the scratch directory is gone");
}

#[test]
fn submit_wait_streams_and_exits_as_the_job_did() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["/bin/sh", "-c", "echo out; echo err >&2"], 0, "out\n"),
        (&["/bin/sh", "-c", "exit 7"], 7, ""),
        (&["/bin/sh", "-c", "kill -SEGV $$"], 139, ""),
        (&["/usr/bin/id"], 77, ""),
        (&["/usr/bin/sleep", "9"], 124, ""),
    ];
    for (argv, code, stdout) in cases {
        let mut command = fleet.command("dunlin");
        command.args(["submit", "--wait", "--max-attempts", "1", "--timeout", "2s", "--"]).args(argv);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{argv:?}");
    }
}
