//! Reads the board in a thread of its own, so that no slow file ever delays a claim.

use super::inventory::Shape;
use super::jobs::Marker;
use super::nvml::{Nvml, Programs};
use super::report::{Reader, Report};
use super::sysroot::Sysroot;
use crate::event::Reading;
use dunlin_wire::Fence;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Between two readings: faster than once a second keeps a Jetson's GPU awake.
const EVERY: Duration = Duration::from_secs(2);

/// Reads this machine every 2 s, and gives each reading to `tell`, until that says `false`.
///
/// # Errors
/// When there is no thread.
pub fn spawn(
    mounts: Vec<PathBuf>,
    marker: Marker,
    tell: impl Fn(Reading) -> bool + Send + 'static,
) -> std::io::Result<()> {
    let run = move || {
        let root = crate::fault::sysroot().map_or_else(Sysroot::default, Sysroot::new);
        let mut reader = Reader::new(root.clone(), mounts).with_nvml(Nvml::new(Programs::installed()));
        let mut shape = Shape::default();
        // Shares take two readings. An inventory without them would be told, and told again.
        reader.read();
        std::thread::sleep(EVERY);
        loop {
            let report = reader.read();
            let jobs = gpu_memory(&report, &marker, &root);
            if !tell(Reading { jobs, ..shape.reading(&report) }) {
                return;
            }
            std::thread::sleep(EVERY);
        }
    };
    std::thread::Builder::new().name("telemetry".into()).spawn(run).map(drop)
}

/// Memory of GPUs by attempt, in MiB.
fn gpu_memory(report: &Report, marker: &Marker, root: &Sysroot) -> Vec<(Fence, u64)> {
    let mut used = BTreeMap::new();
    for (pid, mib) in report.nvml.iter().flatten().flat_map(|gpu| &gpu.processes) {
        if let Some(fence) = marker.fence_of(root, *pid) {
            *used.entry(fence).or_default() += mib;
        }
    }
    used.into_iter().collect()
}
