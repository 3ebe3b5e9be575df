//! A fleet of simulated agents, as `dunlin-bench fleet` has it, small. Only what must be 0 is looked at.

use dunlin_bench::fleet::{Options, Verdict, run};
use dunlin_tests::multicall;
use dunlin_wire::message::Profile;

#[test]
fn fifty_agents_lose_nothing_to_crashes_of_the_hub_and_are_never_called_offline() {
    let dir = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_demo"));
    let bin = multicall::install(binary, &dir.path().join("bin")).unwrap();
    let profile = Profile::Lan;
    let options =
        Options { agents: 50, minutes: 0.05, jobs: 4, profile, down: 0.5, json: None, bin: Some(bin) };
    assert_eq!(run(&options).unwrap(), Verdict::default());
}
