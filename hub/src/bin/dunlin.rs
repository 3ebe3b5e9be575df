//! `dunlin`: the operator's command line.

fn main() -> std::process::ExitCode {
    dunlin_hub::cli::main()
}
