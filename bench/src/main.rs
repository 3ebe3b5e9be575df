//! `dunlin-bench`: each module says what its figures mean and beside what they stand.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["claim"] => dunlin_bench::claim::run(1000),
        ["claim", n] if n.parse::<usize>().is_ok() => dunlin_bench::claim::run(n.parse().unwrap_or(1000)),
        _ => {
            eprintln!(
                "usage: dunlin-bench claim [ROUNDS]\n\nExit codes: 0 measured; 1 it could not; 64 wrong usage."
            );
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-bench: {error:#}");
            ExitCode::from(1)
        }
    }
}
