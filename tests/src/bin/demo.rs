//! `cargo demo`: a real hub and two real agents, as processes of their own, run a few real jobs. `--once` ends when they
//! have; otherwise it goes on until Ctrl-C.

use anyhow::{Result, ensure};
use dunlin_tests::{Fleet, multicall};
use serde_json::{Value, json};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = multicall::dispatch() {
        return code;
    }
    let once = std::env::args().any(|arg| arg == "--once");
    match demo(once) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("demo: a job did not end as it should have");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// What is run: a name, the program, more fields, and the outcome that is right.
fn jobs() -> Vec<(&'static str, Vec<&'static str>, Value, &'static str)> {
    let once = json!({"maxAttempts": 1});
    let gpu = json!({"requiredTags": ["gpu"]});
    vec![
        ("prints", vec!["/usr/bin/uname", "-a"], json!({}), "ok"),
        ("greets", vec!["/usr/bin/echo", "hello from the board that has a gpu tag"], gpu, "ok"),
        ("fails", vec!["/bin/sh", "-c", "echo no luck >&2; exit 3"], once.clone(), "exit(3)"),
        ("denied", vec!["/usr/bin/id"], once.clone(), "denied(not_allowlisted)"),
        (
            "times-out",
            vec!["/usr/bin/sleep", "60"],
            json!({"maxAttempts": 1, "timeoutMs": 700}),
            "timed_out(term)",
        ),
    ]
}

fn demo(once: bool) -> Result<bool> {
    let dir = tempfile::tempdir()?;
    let fleet = Fleet::new(dir.path(), &std::env::current_exe()?, "")?;
    println!("Starting a hub and two agents in {} ...", dir.path().display());
    let _hub = fleet.start_hub()?;
    let _first = fleet.add_agent("heron", &["--profile", "lan", "--max-concurrent", "2"])?;
    let _second =
        fleet.add_agent("plover", &["--profile", "lan", "--max-concurrent", "2", "--tag", "gpu"])?;
    for name in ["heron", "plover"] {
        let node = fleet.node(name);
        println!("  {name} is {}, tags {}, {}", node["health"], node["tags"], node["capabilities"]);
    }
    println!("\nSubmitting {} jobs:", jobs().len());
    for (id, argv, more, _) in jobs() {
        let mut more = more;
        more["taskId"] = id.into();
        println!("  {id:<10} {}", argv.join(" "));
        fleet.submit(&argv, more)?;
    }
    println!("\nWhat happens:");
    show_events(&fleet)?;
    println!("\n{:<10} {:<8} {:<8} {:<24} {:>13}", "TASK", "STATE", "NODE", "OUTCOME", "CLAIM LATENCY");
    let mut good = true;
    for (id, _, _, want) in jobs() {
        let task = fleet.wait_ended(id);
        let got = Fleet::outcome(&task);
        good &= got == want;
        let granted = task["attempts"][0]["grantedAt"].as_u64().unwrap_or(0);
        let latency = granted.saturating_sub(task["createdAt"].as_u64().unwrap_or(0));
        let text = |name: &str| task[name].as_str().unwrap_or("-").to_owned();
        println!("{id:<10} {:<8} {:<8} {got:<24} {latency:>10} ms", text("status"), text("nodeId"));
    }
    println!("\nThe API: {}/v1/tasks", fleet.url());
    println!(
        "  export DUNLIN_HUB={} DUNLIN_TOKEN_FILE={}/hub/owner.token",
        fleet.url(),
        dir.path().display()
    );
    println!("  {}/bin/dunlin submit --wait -- /usr/bin/uname -a", dir.path().display());
    if !once {
        println!("\nGoing on until Ctrl-C.");
        let mut since = fleet.get("/v1/events?since=0")?["newest"].as_u64().unwrap_or(0);
        loop {
            since = print_since(&fleet, since)?.0;
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }
    Ok(good)
}

/// Prints events until every job has ended.
fn show_events(fleet: &Fleet) -> Result<()> {
    let mut since = 0;
    let mut ended = 0;
    let mut quiet = 0;
    while ended < jobs().len() {
        let (next, more) = print_since(fleet, since)?;
        quiet = if next == since { quiet + 1 } else { 0 };
        ensure!(quiet < 600, "nothing happens any more");
        (since, ended) = (next, ended + more);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Ok(())
}

/// Prints what is new; the newest id, and how many tasks ended.
fn print_since(fleet: &Fleet, since: u64) -> Result<(u64, usize)> {
    let mut newest = since;
    let mut ended = 0;
    for event in fleet.get(&format!("/v1/events?since={since}"))?["events"].as_array().into_iter().flatten() {
        newest = event["id"].as_u64().unwrap_or(newest);
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        println!(
            "  {newest:>4}  {:<16} {:<10} {:<8} {}",
            text("kind"),
            text("taskId"),
            text("nodeId"),
            text("detail")
        );
        ended += usize::from(matches!(text("kind"), "task.done" | "task.failed" | "task.cancelled"));
    }
    Ok((newest, ended))
}
