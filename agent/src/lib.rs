//! The agent: keeps one QUIC connection to its hub, claims tasks, checks each against the board's policy, runs it and
//! delivers its outcome exactly once as the hub sees it.

pub mod agent;
pub mod clock;
pub mod commands;
pub mod config;
pub mod core;
pub mod event;
pub mod exec;
pub mod fault;
pub mod files;
pub mod link;
pub mod spending;
pub mod store;
pub mod telemetry;
