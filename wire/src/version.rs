//! The protocol's generations, one line per change. Both sides state theirs (`Hello`, `Welcome`); a sender never
//! uses a variant or field newer than its peer's generation.
//!
//! | generation | change |
//! |---|---|
//! | 1 | the first; never released |
//! | 2 | early data: `Hello` and `Claim` ride in it, what is held follows as `Holding` and is answered by `Verdicts`; datagrams, `Alive` the shortest; `Moved`; `Inventory` and `Sample` instead of the host's four figures; `requires` of a grant; `Alarm`; `peak_memory_kib` and `peaks` of a report; `Job::Signed`, `Keys` both ways; the further kinds of `Job`, `told` of a report, `Told`; `Overlay` both ways; `Job::Actuation`, further kinds of signed work; `Watch` and `Tail`; `NetworkReceived`, `NetworkSent` |

/// The generation this build speaks.
pub const GENERATION: u16 = 2;

/// The oldest generation this build still serves.
pub const GENERATION_MIN: u16 = 2;

/// ALPN of the uplink: `dunlin/<major>.<epoch>`. The epoch is raised when transport parameters change by which a client that
/// remembers others for 0-RTT would break the connection, and the hub does not forget its sessions for them.
pub const ALPN: &[u8] = b"dunlin/1.2";

/// The fixed server name; identity is the pinned key, not a name.
pub const SERVER_NAME: &str = "dunlin.invalid";
