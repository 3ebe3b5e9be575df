//! What the host looks like. A figure that has no source is unknown (`None`), never zero.
//!
//! Every reader takes a [`scan::Scan`] of one tree, reads small files with a bound on each, and gives them to parsers
//! that take text. [`Reader`] calls them all; [`host`] is the little that the protocol carries today, by sysinfo.

mod board;
mod cgroup;
mod cpu;
mod disk;
mod fan;
mod filesystem;
mod gpu;
mod host;
mod hwmon;
mod memory;
mod mode;
mod named;
mod network;
mod parse;
mod power;
mod pressure;
mod report;
mod rpi;
mod scan;
mod sysroot;
mod thermal;
mod throttle;
mod window;

pub use host::Host;
pub use named::Named;
pub use report::{Reader, Report};
pub use scan::{Source, Sources};
pub use sysroot::{Absent, Sysroot};
pub use window::Window;
