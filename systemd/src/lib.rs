//! What hub and agent have to do with systemd: their units, which are in the binaries, how those come onto a machine, and
//! the word that a daemon is ready. Deliberately absent: everything that differs between the two daemons but their files.

mod install;
mod notify;
mod service;

pub use install::{InstallError, Options, install, run};
pub use notify::notify;
pub use service::{AGENT, File, HUB, Service, policy};
