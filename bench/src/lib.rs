//! What is measured, and beside what. A figure is a ratio between things interleaved in one run.

mod api;
pub mod claim;
pub mod exec;
pub mod fleet;
pub mod footprint;
mod hub;
mod line;
pub mod link;
mod peers;
mod proc;
pub mod record;
pub mod report;
mod site;
pub mod soak;
pub mod stats;
pub mod wan;
