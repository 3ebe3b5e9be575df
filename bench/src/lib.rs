//! What is measured, and beside what. A figure is a ratio between things interleaved in one run.

pub mod claim;
pub mod exec;
pub mod footprint;
mod line;
pub mod link;
pub mod record;
pub mod stats;
pub mod wan;
