//! `audit`: what was decided here, and whether the record is whole.

use crate::exec;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(data: &Path, verify: bool, as_json: bool) -> ExitCode {
    let each = |line: &Value| match (verify, as_json) {
        (true, _) => {}
        (false, true) => println!("{line}"),
        (false, false) => show(line),
    };
    match exec::read_audit(&data.join("exec"), each) {
        Ok(chain) => {
            if verify && as_json {
                println!("{}", json!({"lines": chain.lines, "newest": chain.newest, "head": chain.head}));
            } else if verify {
                println!(
                    "{} lines in order, the newest is {}, head {}",
                    chain.lines, chain.newest, chain.head
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            ExitCode::from(1)
        }
    }
}

fn show(line: &Value) {
    let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
    let argv: Vec<&str> = line["argv"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let argv = argv.join(" ").escape_debug().to_string();
    let why = if line["reason"].is_null() { text("rule") } else { text("reason") };
    let signed = if line["signed"] == true { "signed" } else { "" };
    println!(
        "{:>6} {} {:<12} {:<20} {:<24} {signed:<6} {argv}",
        line["n"],
        line["at"],
        text("decision"),
        why,
        text("task")
    );
}
