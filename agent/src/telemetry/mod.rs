//! What the host looks like. A figure that has no source is unknown (`None`), never zero.

mod host;

pub use host::Host;
