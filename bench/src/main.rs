//! `dunlin-bench`: each module says what its figures mean and beside what they stand.

use dunlin_bench::{claim, exec, fleet, footprint, link, report, soak};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["claim", rest @ ..] => match claim::Options::parse(rest) {
            Ok(options) => claim::run(&options),
            Err(error) => return usage(&format!("dunlin-bench: {error}\n\n")),
        },
        // The executor is this program again.
        ["executor", ..] => return dunlin_agent::commands::executor::of_parent(std::env::args_os().skip(2)),
        ["exec"] => exec::run(200),
        ["exec", n] if n.parse::<usize>().is_ok() => exec::run(n.parse().unwrap_or(200)),
        ["footprint", rest @ ..] => match footprint::Options::parse(rest) {
            Ok(options) => footprint::run(&options),
            Err(error) => return usage(&format!("dunlin-bench: {error:#}\n\n")),
        },
        ["fleet", rest @ ..] => match fleet::Options::parse(rest) {
            Ok(options) => fleet::run(&options).and_then(|verdict| {
                anyhow::ensure!(verdict == fleet::Verdict::default(), "{verdict:?}: each of them must be 0");
                Ok(())
            }),
            Err(error) => return usage(&format!("dunlin-bench: {error}\n\n")),
        },
        ["soak", rest @ ..] => match soak::Options::parse(rest) {
            Ok(options) => soak::run(&options).and_then(|verdict| {
                anyhow::ensure!(verdict.is_good(), "{verdict}: each of them must be 0");
                Ok(())
            }),
            Err(error) => return usage(&format!("dunlin-bench: {error}\n\n")),
        },
        ["report", rest @ ..] => match report::Options::parse(rest) {
            Ok(options) => match report::run(&options) {
                Ok(true) => return ExitCode::from(3),
                done => done.map(drop),
            },
            Err(error) => return usage(&format!("dunlin-bench: {error}\n\n")),
        },
        // What a job of the soak runs.
        ["soak-job", rest @ ..] => match soak::job(rest) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        ["stamp", path] => link::stamp(path),
        ["link", rest @ ..] => match link::Options::parse(rest) {
            Ok(options) => link::run(&options),
            Err(error) => return usage(&format!("dunlin-bench: {error}\n\n")),
        },
        _ => return usage(""),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-bench: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn usage(error: &str) -> ExitCode {
    eprintln!(
        "{error}usage: {}\n       dunlin-bench exec [ROUNDS]\n       dunlin-bench footprint --bin DIR [--parked N] [--seconds N]\n       {}\n       {}\n       {}\n       {}\n\nExit codes: 0 measured; 1 it could not, or what must be 0 is not; 3 `report --compare` found a change; 64 wrong usage.",
        claim::USAGE,
        link::USAGE,
        fleet::USAGE,
        soak::USAGE,
        report::USAGE
    );
    ExitCode::from(64)
}
