//! All readers together: what the board says at one moment, and since the moment before.

use super::board::{self, Board};
use super::cgroup::{self, Cgroup};
use super::cpu::{self, Cpu};
use super::disk::{self, Storage};
use super::fan::{self, Fan};
use super::filesystem::{Mounts, Usage};
use super::gpu::{self, Gpu};
use super::memory::{self, Memory, Zram};
use super::mode::{self, PowerMode};
use super::named::Named;
use super::network::{self, Interface};
use super::nvml::Nvml;
use super::power::{self, Limit, Rail, Total};
use super::pressure::{self, Pressure};
use super::rpi::{self, Firmware};
use super::scan::{Scan, Sources};
use super::sysroot::{Absent, Sysroot};
use super::thermal::{self, Temperatures};
use super::throttle::{self, Cooling, OcEvents};
use super::window::{Counters, Window};
use super::{disk::Counters as DiskCounters, hwmon, pressure::Totals};
use crate::clock::{self, BootMs};
use dunlin_wire::nvml;
use serde::Serialize;
use std::path::PathBuf;

/// What a board reports. Absent figures are `null`; the names of the fields carry their units.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the types of the fields say what they are")]
pub struct Report {
    pub family: &'static str,
    pub model: Option<String>,
    pub l4t: Option<String>,
    pub jetpack: Option<&'static str>,
    pub kernel: Option<String>,
    pub boot_id: Option<String>,
    pub uptime_s: Option<f64>,
    pub load: Option<[f64; 3]>,
    pub cpu: Cpu,
    pub clocks_pinned: Option<bool>,
    pub mem_kib: Memory,
    pub zram: Option<Zram>,
    pub psi: Option<Pressure>,
    pub psi_total_us: Option<Totals>,
    pub gpu: Option<Gpu>,
    pub nvml: Option<Vec<nvml::Gpu>>,
    pub temps_mc: Named<i32>,
    pub trips_mc: Named<i32>,
    pub temps_dropped: Named<String>,
    pub hottest_mc: Option<i32>,
    pub rails: Vec<Rail>,
    pub rail_limit_ma: Named<Limit>,
    pub power_total: Option<Total>,
    pub fan: Option<Fan>,
    pub power_mode: Option<PowerMode>,
    pub emc_khz: Option<u64>,
    pub emc_cap_khz: Option<u64>,
    pub oc_events: Option<OcEvents>,
    pub throttle_alerts: Named<Option<u32>>,
    pub cooling: Named<Cooling>,
    pub rpi: Option<Firmware>,
    pub undervoltage: Option<bool>,
    pub storage: Named<Storage>,
    pub disks: Option<Named<DiskCounters>>,
    pub filesystems: Named<Option<Usage>>,
    pub network: Option<Named<Interface>>,
    pub agent_cgroup: Option<Cgroup>,
    pub window: Option<Window>,
}

/// Reads a tree again and again.
#[derive(Debug)]
pub struct Reader {
    root: Sysroot,
    mounts: Mounts,
    before: Option<Counters>,
    nvml: Option<Nvml>,
}

impl Reader {
    /// Of the tree `root`; `mounts` are the filesystems that are looked at.
    pub fn new(root: Sysroot, mounts: Vec<PathBuf>) -> Self {
        Self { root, mounts: Mounts::new(mounts), before: None, nvml: None }
    }

    /// The same, that asks NVIDIA's driver too.
    pub fn with_nvml(self, nvml: Nvml) -> Self {
        Self { nvml: Some(nvml), ..self }
    }

    /// One reading.
    pub fn read(&mut self) -> Report {
        self.scan(false).0
    }

    /// One reading, with the source of each field.
    pub fn read_with_sources(&mut self) -> (Report, Sources) {
        self.scan(true)
    }

    fn scan(&mut self, remember: bool) -> (Report, Sources) {
        let root = self.root.clone();
        let scan = Scan::new(&root, remember);
        let (mut report, now) = read(&scan, &mut self.mounts);
        match &mut self.nvml {
            Some(nvml) => ask(nvml, &scan, &mut report, clock::boot_ms()),
            None => scan.note(
                "nvml",
                "dunlin-nvml",
                Some(&Absent::Says("it is asked of the machine itself only")),
            ),
        }
        report.window = self.before.as_ref().and_then(|before| now.since(before));
        let why = report.window.is_none().then_some(Absent::Says("it takes two readings of one boot"));
        scan.note("window", "counters of this reading less the one before", why.as_ref());
        self.before = Some(now);
        (report, scan.into_sources())
    }
}

/// What only NVIDIA's driver knows: discrete GPUs, and the load of Thor's. Sysfs knows all of the other Tegras, and the
/// driver nothing.
fn ask(nvml: &mut Nvml, scan: &Scan, report: &mut Report, now: BootMs) {
    let tegra = report.family.starts_with('t');
    let known = report.gpu.as_ref().is_some_and(|gpu| gpu.source != gpu::THOR);
    if known || (tegra && report.gpu.is_none()) || !nvml.is_present(scan, now) {
        return scan.note(
            "nvml",
            "dunlin-nvml",
            Some(&Absent::Says("no GPU that only NVIDIA's driver knows")),
        );
    }
    match nvml.look(scan.root(), tegra, now) {
        Ok((by, gpus)) => {
            scan.note("nvml", by, None);
            if let (Some(gpu), Some(first)) = (&mut report.gpu, gpus.first()) {
                gpu.util_permille = gpu.util_permille.or(first.busy_permille.map(Into::into));
                gpu.temp_mc = gpu.temp_mc.or(first.temperature_c.map(|c| i32::from(c) * 1000));
                scan.note("gpu.util_permille", by, None);
            }
            report.nvml = Some(gpus.to_vec());
        }
        Err(why) => scan.note("nvml", "dunlin-nvml", Some(&Absent::Told(why.to_owned()))),
    }
}

fn read(scan: &Scan, mounts: &mut Mounts) -> (Report, Counters) {
    let board = board::read(scan);
    let hwmons = hwmon::read(scan);
    let stat = cpu::read_stat(scan);
    let cpu = cpu::read(scan, stat.as_ref());
    let Temperatures { known, trips, dropped } = thermal::read(scan, &hwmons);
    let gpu = gpu::read(scan, &board, known.get("gpu").copied());
    let power = power::read(scan, &hwmons);
    let throttles = throttle::read(scan);
    scan.note_empty("rpi", !board.raspberry_pi, "family", "no Raspberry Pi");
    let firmware = if board.raspberry_pi { rpi::read(scan) } else { None };
    let (psi, psi_total_us) = pressure::read(scan).unzip();
    let disks = disk::read_counters(scan);
    let clocks_pinned = cpu::pinned(&cpu.policies);
    let why = clocks_pinned.is_none().then_some(Absent::Says("not all caps are known"));
    scan.note("clocks_pinned", "cpu.policies: lowest and highest are one", why.as_ref());
    let jetpack = board.l4t.as_deref().and_then(board::jetpack);
    let why = jetpack.is_none().then_some(Absent::Says("no release of L4T that is known here"));
    scan.note("jetpack", "l4t", why.as_ref());
    let Board { family, model, l4t, kernel, boot_id, .. } = board;
    let report = Report {
        uptime_s: scan.value("uptime_s", "proc/uptime", cpu::uptime).ok(),
        load: scan.value("load", "proc/loadavg", cpu::load).ok(),
        clocks_pinned,
        mem_kib: memory::read(scan, family.starts_with('t')),
        zram: memory::read_zram(scan),
        hottest_mc: thermal::hottest(&known),
        power_total: power.total(),
        fan: fan::read(scan, &hwmons),
        power_mode: mode::read(scan),
        emc_khz: mode::read_emc(scan),
        emc_cap_khz: mode::read_emc_cap(scan),
        oc_events: throttle::read_oc(scan, &hwmons),
        undervoltage: rpi::undervoltage(scan, &hwmons, firmware.as_ref()),
        storage: disk::read(scan, disks.as_ref()),
        filesystems: mounts.read(scan),
        network: network::read(scan),
        agent_cgroup: cgroup::read(scan),
        window: None,
        temps_mc: known,
        trips_mc: trips,
        temps_dropped: dropped,
        rails: power.rails,
        rail_limit_ma: power.limits,
        throttle_alerts: throttles.alerts,
        cooling: throttles.cooling,
        rpi: firmware,
        family,
        model,
        l4t,
        jetpack,
        kernel,
        boot_id,
        cpu,
        psi,
        psi_total_us,
        gpu,
        nvml: None,
        disks,
    };
    let counters = Counters::of(&report, stat);
    (report, counters)
}
