//! The hub: a durable task queue with claim leases, the QUIC endpoint that agents connect to, and an HTTP API.

pub mod clock;
pub mod core;
pub mod event;
pub mod fault;
pub mod hub;
pub mod store;
