//! The hub: a durable task queue with claim leases, the QUIC endpoint that agents connect to, and an HTTP API.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod daemon;
pub mod doctor;
pub mod event;
pub mod fault;
pub mod feed;
mod followed;
pub mod hub;
pub mod link;
mod refusal;
pub mod run;
pub mod store;
