//! The GPU of an SoC, from devfreq. Formats: Documentation/ABI/testing/sysfs-class-devfreq; `load` is NVIDIA's nvgpu
//! driver, in permille of one short window, readable by all. It must not be read faster than once a second: that keeps
//! the GPU awake. Memory is the board's, and no figure of it is given as the GPU's.

use super::board::Board;
use super::parse;
use super::scan::Scan;
use super::sysroot::{Absent, Sysroot, VALUE_MAX};
use serde::Serialize;

const CLASS: &str = "sys/class/devfreq";
const PCI: &str = "sys/bus/pci/devices";
/// What the device tree calls the GPU, from TX1 to Orin.
const NODES: [&str; 5] = ["gpu", "ga10b", "gv11b", "gp10b", "gm20b"];
/// Where releases have put `load`.
const LOADS: [&str; 2] = ["sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load"];

/// The source of Thor's, whose load only NVML knows.
pub const THOR: &str = "thor-devfreq";

/// A GPU that shares the board's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// `tegra-sysfs`, `thor-devfreq` (whose load only NVML knows), `devfreq`.
    pub source: &'static str,
    /// Its devfreq device.
    pub node: String,
    /// Load.
    pub util_permille: Option<u32>,
    /// Clock; none while it is off.
    pub freq_khz: Option<u64>,
    /// Lowest clock allowed now.
    pub min_khz: Option<u64>,
    /// Highest clock allowed now.
    pub max_khz: Option<u64>,
    /// What chooses the clock.
    pub governor: Option<String>,
    /// Its temperature.
    pub temp_mc: Option<i32>,
    /// Runtime power state: `active`, `suspended`.
    pub state: Option<String>,
    /// `shared`.
    pub mem: &'static str,
}

/// Reads it; nothing when there is none that sysfs knows.
pub fn read(scan: &Scan, board: &Board, temp_mc: Option<i32>) -> Option<Gpu> {
    let names = scan.root().list(CLASS);
    let by_tree = |name: &&String| {
        let node = scan.look(&format!("{CLASS}/{name}/device/of_node/name"), parse::name);
        node.is_ok_and(|node| NODES.contains(&node.as_str()))
    };
    let (source, node) = if let Some(node) = names.iter().find(by_tree) {
        (if board.is_tegra() { "tegra-sysfs" } else { "devfreq" }, node)
    } else if let Some(node) = names.iter().find(|name| name.starts_with("gpu-gpc-")) {
        (THOR, node)
    } else {
        // A PC has many PCI devices; to look through them tells nothing but the reason.
        let pci = scan.remembers().then(|| nvidia(scan)).flatten();
        let why = match pci {
            Some(_) => "a PCI device of NVIDIA's, which only NVML can ask",
            None => "no GPU among the devfreq devices",
        };
        scan.note("gpu", pci.as_deref().unwrap_or(CLASS), Some(&Absent::Says(why)));
        return None;
    };
    let dir = format!("{CLASS}/{node}");
    let clock = |field: &str, what: &str| {
        scan.value(format_args!("gpu.{field}"), &format!("{dir}/{what}_freq"), parse::hz_as_khz).ok()
    };
    let thor = source == THOR;
    let (util_permille, state) = if thor {
        scan.note(
            "gpu.util_permille",
            CLASS,
            Some(&Absent::Says("this GPU has no load file; NVML knows it")),
        );
        (None, nvidia(scan))
    } else {
        (load(scan, &dir, board), Some(format!("{dir}/device")))
    };
    let state = state.map(|dir| format!("{dir}/power/runtime_status"));
    let state = state.and_then(|path| scan.value("gpu.state", &path, parse::name).ok());
    scan.note("gpu", CLASS, None);
    let why = temp_mc.is_none().then_some(Absent::Says("not among the temperatures"));
    scan.note("gpu.temp_mc", "temps_mc.gpu", why.as_ref());
    Some(Gpu {
        source,
        node: node.clone(),
        util_permille,
        freq_khz: clock("freq_khz", "cur"),
        min_khz: clock("min_khz", "min"),
        max_khz: clock("max_khz", "max"),
        governor: scan.value("gpu.governor", &format!("{dir}/governor"), parse::name).ok(),
        temp_mc,
        state,
        mem: "shared",
    })
}

fn load(scan: &Scan, dir: &str, board: &Board) -> Option<u32> {
    let field = "gpu.util_permille";
    match scan.value(field, &format!("{dir}/device/load"), permille) {
        Ok(load) => return Some(load),
        // Elsewhere the same name may mean another thing.
        Err(Absent::Missing) if board.is_tegra() => {}
        Err(_) => return None,
    }
    LOADS.iter().find_map(|path| scan.value(field, path, permille).ok())
}

/// The first display device of NVIDIA's on PCI.
pub fn nvidia(scan: &Scan) -> Option<String> {
    displays(scan.root()).next()
}

/// Whether all display devices of NVIDIA's on PCI are powered off; not when there are none.
pub fn nvidia_suspended(root: &Sysroot) -> bool {
    let mut all = displays(root).peekable();
    let is_off = |dir: String| {
        root.read(&format!("{dir}/power/runtime_status"), VALUE_MAX)
            .is_ok_and(|text| text.trim() == "suspended")
    };
    all.peek().is_some() && all.all(is_off)
}

fn displays(root: &Sysroot) -> impl Iterator<Item = String> {
    let dirs = root.list(PCI).into_iter().map(|name| format!("{PCI}/{name}"));
    dirs.filter(|dir| {
        let is = |what: &str, start: &str| {
            root.read(&format!("{dir}/{what}"), VALUE_MAX).is_ok_and(|text| text.starts_with(start))
        };
        is("vendor", "0x10de") && is("class", "0x03")
    })
}

/// # Errors
/// What is no share.
fn permille(text: &str) -> Result<u32, Absent> {
    parse::within(text, 0, 1000).map(|n| n as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_a_share() {
        for (text, want) in [
            ("630\n", Ok(630)),
            ("0\n", Ok(0)),
            ("1001\n", Err(Absent::OutOfRange)),
            ("-1\n", Err(Absent::OutOfRange)),
            ("\n", Err(Absent::Malformed)),
        ] {
            assert_eq!(permille(text), want, "{text:?}");
        }
    }
}
