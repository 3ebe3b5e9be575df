//! `check`, `status` and `queue`: what is on disk, without disturbing a running agent.

use super::EX_UNAVAILABLE;
use crate::config::Config;
use crate::core::uplinks::{self, Uplink};
use crate::exec;
use crate::files::Files;
use crate::store::Store;
use serde_json::{Value, json};
use std::process::ExitCode;

pub(super) fn check(config: &Config) -> ExitCode {
    let files = Files::at(&config.data);
    let enrolment = files.enrolment();
    let ticket = enrolment.as_ref().map_or(Vec::new(), |e| e.hubs.clone());
    let mut findings = vec![
        ("config", Ok("in order".to_owned())),
        (
            "enrolment",
            enrolment.map(|e| format!("node `{}`, fleet {}", e.node, e.fleet)).map_err(|e| e.to_string()),
        ),
        ("policy", exec::load(&config.policy).map(|(p, _)| format!("{} rules", p.rules.len()))),
    ];
    findings.push(match exec::load_trust(&config.trust) {
        Ok(Some(trust)) => ("trust", Ok(format!("{} roots", trust.roots.len()))),
        Ok(None) => ("trust", Ok(format!("no {}: signed jobs are denied", config.trust.display()))),
        Err(error) => ("trust", Err(error)),
    });
    let uplinks = uplinks::choose(&config.uplinks, &ticket);
    findings.extend(uplinks.iter().map(|uplink| ("uplink", Ok(uplink.to_string()))));
    for (name, finding) in &findings {
        match finding {
            Ok(text) => println!("ok     {name}: {text}"),
            Err(text) => println!("error  {name}: {text}"),
        }
    }
    ExitCode::from(u8::from(findings.iter().any(|(_, f)| f.is_err())))
}

pub(super) fn status(config: &Config, as_json: bool) -> ExitCode {
    let path = Files::at(&config.data).path("status.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("dunlin-agent: {}: {error}; no agent has run here yet", path.display());
            return ExitCode::from(EX_UNAVAILABLE);
        }
    };
    let mut status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let pid = status["pid"].as_u64().unwrap_or(0);
    let running = pid > 0 && std::path::Path::new(&format!("/proc/{pid}")).exists();
    status["running"] = json!(running);
    if !running {
        status["connected"] = json!(false);
        for uplink in status.get_mut("uplinks").and_then(Value::as_array_mut).into_iter().flatten() {
            uplink["current"] = json!(false);
        }
    }
    if as_json {
        println!("{status:#}");
    } else {
        for (name, value) in status.as_object().into_iter().flatten().filter(|(name, _)| *name != "uplinks") {
            println!("{name:<12} {}", value.as_str().map_or(value.to_string(), str::to_owned));
        }
        for uplink in status["uplinks"].as_array().into_iter().flatten() {
            let text = |name: &str| uplink[name].as_str().map(str::to_owned);
            let shown = Uplink { addr: text("addr").unwrap_or_default(), label: text("label") };
            let current = if uplink["current"] == true { ", current" } else { "" };
            println!("{:<12} {shown}{current}", "uplink");
        }
    }
    ExitCode::SUCCESS
}

pub(super) fn queue(config: &Config, as_json: bool) -> ExitCode {
    let dir = Files::at(&config.data).path("journal");
    if !dir.exists() {
        eprintln!("dunlin-agent: {}: no journal; no agent has run here yet", dir.display());
        return ExitCode::from(EX_UNAVAILABLE);
    }
    let loaded = match Store::open(&dir).and_then(|store| store.load()) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            return ExitCode::from(EX_UNAVAILABLE);
        }
    };
    let rows: Vec<_> = loaded
        .attempts
        .values()
        .map(|record| {
            json!({
                "taskId": record.task.as_str(),
                "fence": record.fence.0,
                "attempt": record.attempt,
                "state": if record.report.is_some() { "ended" } else { "accepted" },
                "outcome": record.report.as_ref().map(|r| r.outcome.to_string()),
            })
        })
        .collect();
    if as_json {
        println!("{:#}", json!(rows));
        return ExitCode::SUCCESS;
    }
    println!("{:<32} {:>8} {:>7}  {:<9} OUTCOME", "TASK", "FENCE", "ATTEMPT", "STATE");
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let (fence, attempt) = (&row["fence"], &row["attempt"]);
        println!("{:<32} {fence:>8} {attempt:>7}  {:<9} {}", text("taskId"), text("state"), text("outcome"));
    }
    ExitCode::SUCCESS
}
