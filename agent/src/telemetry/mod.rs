//! What the host looks like. A figure that has no source is unknown (`None`), never zero.
//!
//! Every reader takes a [`scan::Scan`] of one tree, reads small files with a bound on each, and gives them to parsers
//! that take text. [`Reader`] calls them all, [`sampler`] calls it, and [`Shape`] makes of it what the protocol carries.

mod board;
mod cgroup;
mod cpu;
mod disk;
mod fan;
mod filesystem;
mod gpu;
mod hwmon;
mod inventory;
mod jobs;
mod memory;
mod mode;
mod named;
mod network;
mod nvml;
mod parse;
mod power;
mod pressure;
mod program;
mod report;
mod rpi;
pub mod sampler;
mod scan;
mod smi;
mod sysroot;
mod thermal;
mod throttle;
mod window;

pub use inventory::Shape;
pub use jobs::Marker;
pub use named::Named;
pub use nvml::{Nvml, Programs};
pub use report::{Reader, Report};
pub use scan::{Source, Sources};
pub use sysroot::{Absent, Sysroot};
pub use window::Window;
