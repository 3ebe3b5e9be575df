//! `dunlin-hub`: the server.

fn main() -> std::process::ExitCode {
    dunlin_hub::daemon::main()
}
