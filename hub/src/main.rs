//! `dunlin-hub`: the server.

#[cfg(target_env = "musl")]
mod heap;

fn main() -> std::process::ExitCode {
    dunlin_hub::daemon::main()
}
