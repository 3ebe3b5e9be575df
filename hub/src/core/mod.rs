//! Pure decisions of the hub: no IO, no clock, no async. Time and randomness come in as values.

pub mod health;
pub mod history;
pub mod node;
pub mod ring;
pub mod schedule;
pub mod step;
pub mod task;
pub mod telemetry;
pub mod timer;
pub mod timing;
