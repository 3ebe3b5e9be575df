//! `dunlin-bench`: each module says what its figures mean and beside what they stand.

use dunlin_bench::{claim, exec, footprint, link};
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
        "{error}usage: {}\n       dunlin-bench exec [ROUNDS]\n       dunlin-bench footprint --bin DIR [--parked N] [--seconds N]\n       {}\n\nExit codes: 0 measured; 1 it could not; 64 wrong usage.",
        claim::USAGE,
        link::USAGE
    );
    ExitCode::from(64)
}
