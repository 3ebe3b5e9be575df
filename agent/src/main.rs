//! `dunlin-agent`: the agent.

fn main() -> std::process::ExitCode {
    dunlin_agent::commands::main()
}
