//! Simulation: the hub's engine over its real store, several agent cores, a network that delays, stalls, repeats, cuts
//! and partitions, and crashes that lose everything uncommitted; from a seed, checked at each step against a model that
//! knows only what was asked, what ran, and what was acknowledged.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod board;
mod hub;
mod model;
mod net;
mod starvation;
mod world;

use world::World;

/// Runs `steps` from `seed`, heals the world, and looks whether everything ended.
fn run(seed: u64, steps: u64) {
    let failed = std::panic::catch_unwind(|| {
        let (_dir, store) = hub::store();
        let mut world = World::new(&store, seed);
        for _ in 0..steps {
            world.step();
        }
        world.heal();
        world.figures()
    });
    match failed {
        Ok(figures) => println!("seed {seed}: {figures}"),
        Err(panic) => {
            eprintln!("SIMULATION FAILED: seed {seed}, {steps} steps");
            std::panic::resume_unwind(panic);
        }
    }
}

/// The seed to begin with: `DUNLIN_SIM_SEED`, or another one each time.
fn first_seed() -> u64 {
    let given = std::env::var("DUNLIN_SIM_SEED").ok().and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2))
}

#[test]
fn promises_hold_over_a_hundred_thousand_steps() {
    let seed = first_seed();
    for round in 0..8 {
        run(seed + round, 15_000);
    }
}

#[test]
#[ignore = "takes long: cargo test -p dunlin-tests --test sim -- --ignored"]
fn promises_hold_for_long() {
    let seed = first_seed();
    for round in 0..400 {
        run(seed + round, 15_000);
    }
}

#[test]
fn a_low_lane_is_not_starved_by_urgent_work() {
    starvation::run();
}
