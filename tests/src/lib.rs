//! A harness that starts real hubs and agents as processes, for the demo and for end-to-end tests.

pub mod fleet;
pub mod multicall;
pub mod wait;

pub use fleet::{Agent, Fleet, Hub, Proc};
pub use wait::until;
