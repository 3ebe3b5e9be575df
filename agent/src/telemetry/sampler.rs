//! Reads the board in a thread of its own, so that no slow file ever delays a claim.

use super::inventory::Shape;
use super::report::Reader;
use super::sysroot::Sysroot;
use crate::event::Reading;
use std::path::PathBuf;
use std::time::Duration;

/// Between two readings: faster than once a second keeps a Jetson's GPU awake.
const EVERY: Duration = Duration::from_secs(2);

/// Reads this machine every 2 s, and gives each reading to `tell`, until that says `false`.
///
/// # Errors
/// When there is no thread.
pub fn spawn(mounts: Vec<PathBuf>, tell: impl Fn(Reading) -> bool + Send + 'static) -> std::io::Result<()> {
    let run = move || {
        let mut reader = Reader::new(Sysroot::default(), mounts);
        let mut shape = Shape::default();
        // Shares take two readings. An inventory without them would be told, and told again.
        reader.read();
        std::thread::sleep(EVERY);
        while tell(shape.reading(&reader.read())) {
            std::thread::sleep(EVERY);
        }
    };
    std::thread::Builder::new().name("telemetry".into()).spawn(run).map(drop)
}
