//! Checks work against the policy and runs it. Talks to the loop by messages only.

pub mod message;
