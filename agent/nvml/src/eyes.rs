//! One look at all GPUs. That initialising works proves nothing: on an Orin it does, and everything after it is "not
//! supported". So each metric of each GPU is asked by itself, and not again once it is known never to answer.

use crate::class::{self, Class};
use crate::pci;
use dunlin_wire::nvml::{GPUS_MAX, Gpu, Look, PROCESSES_MAX, metric};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Shortest and longest wait for a driver that is not there.
const WAIT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Why this process is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// There is no library.
    NoLibrary,
    /// The library does not fit the driver.
    Mismatch,
}

/// What looks.
pub struct Eyes {
    /// The library, when it is not the driver's own.
    pub lib: Option<OsString>,
    /// What stands for `/`.
    pub root: PathBuf,
    /// Whether this is a Tegra, where the driver's memory and clocks are not those of the GPU.
    pub tegra: bool,
    open: Option<Open>,
    // How long until it is tried again, how long the next wait is, and why there is nothing.
    wait: Duration,
    next_wait: Duration,
    why: String,
}

/// The driver, and what is known of its GPUs.
struct Open {
    nvml: Nvml,
    // Their addresses on PCI, by their numbers; none where there is no PCI.
    addresses: Vec<Option<String>>,
    known: BTreeMap<String, Known>,
}

/// Of one GPU or instance, bits of [`metric`].
#[derive(Default)]
struct Known {
    supported: u8,
    never: u8,
}

impl Default for Eyes {
    fn default() -> Self {
        let (wait, why) = (Duration::ZERO, String::new());
        Self { lib: None, root: "/".into(), tegra: false, open: None, wait, next_wait: WAIT.0, why }
    }
}

impl Eyes {
    /// One look; the one before was `since` ago.
    ///
    /// # Errors
    /// Beside the last look, why there can be no other in this process.
    pub fn look(&mut self, since: Duration) -> Result<Look, (Look, Gone)> {
        let asleep = pci::gpus(&self.root);
        if !asleep.is_empty() && asleep.iter().all(|(_, off)| *off) {
            // Nothing is asked, and nothing kept open: that would hold them awake.
            self.open = None;
            return Ok(Look::Gpus(asleep.iter().enumerate().map(|(n, _)| suspended(n)).collect()));
        }
        self.wait = self.wait.saturating_sub(since);
        if self.open.is_none() && self.wait.is_zero() {
            match self.begin() {
                Ok(open) => self.open = Some(open),
                Err(error) => return self.give_up(&error),
            }
        }
        let Some(open) = &mut self.open else { return Ok(Look::Absent { why: self.why.clone() }) };
        match open.look(&self.root, self.tegra) {
            Ok(gpus) => {
                self.next_wait = WAIT.0;
                Ok(Look::Gpus(gpus))
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn begin(&self) -> Result<Open, NvmlError> {
        let mut builder = Nvml::builder();
        if let Some(lib) = &self.lib {
            builder.lib_path(lib);
        }
        let nvml = builder.init()?;
        let count = nvml.device_count()?.min(GPUS_MAX as u32);
        let address = |n| {
            let pci = nvml.device_by_index(n).and_then(|device| device.pci_info()).ok()?;
            Some(format!("{:04x}:{:02x}:{:02x}.0", pci.domain, pci.bus, pci.device))
        };
        let addresses = (0..count).map(address).collect();
        Ok(Open { addresses, nvml, known: BTreeMap::new() })
    }

    fn give_up(&mut self, error: &NvmlError) -> Result<Look, (Look, Gone)> {
        self.open = None;
        self.why = error.to_string();
        self.wait = self.next_wait;
        self.next_wait = (self.next_wait * 2).min(WAIT.1);
        let look = Look::Absent { why: self.why.clone() };
        match (class::of(error), error) {
            (Class::Restart, _) => Err((look, Gone::Mismatch)),
            (_, NvmlError::LibloadingError(_) | NvmlError::FailedToLoadSymbol(_)) => {
                Err((look, Gone::NoLibrary))
            }
            _ => Ok(look),
        }
    }
}

fn suspended(number: usize) -> Gpu {
    Gpu { unit: number.to_string(), suspended: true, ..Gpu::default() }
}

impl Open {
    /// # Errors
    /// What makes it necessary to begin anew.
    fn look(&mut self, root: &std::path::Path, tegra: bool) -> Result<Vec<Gpu>, NvmlError> {
        let mut gpus = Vec::new();
        for (n, address) in self.addresses.iter().enumerate() {
            if address.as_ref().is_some_and(|address| pci::is_suspended(root, address)) {
                gpus.push(suspended(n));
                continue;
            }
            let unit = n.to_string();
            let known = self.known.entry(unit.clone()).or_default();
            let device = match self.nvml.device_by_index(n as u32) {
                Ok(device) => device,
                Err(error) if is_the_end(&error) => return Err(error),
                Err(_) => {
                    gpus.push(Gpu { unit, ..Gpu::default() });
                    continue;
                }
            };
            let partitioned = !tegra && is_partitioned(&device)?;
            gpus.push(look(&device, unit, known, tegra, !partitioned)?);
            let instances = if partitioned { device.mig_device_count().unwrap_or(0) } else { 0 };
            for instance in 0..instances {
                // Numbers that no instance has are "not found".
                let Ok(device) = device.mig_device_by_index(instance) else { continue };
                let unit = format!("{n}/{instance}");
                let known = self.known.entry(unit.clone()).or_default();
                let memory = known.ask(metric::MEMORY, || memory(&device))?;
                let name = device.name().ok();
                let supported = known.supported;
                gpus.push(Gpu { unit, name, memory_mib: memory, supported, ..Gpu::default() });
            }
        }
        Ok(gpus)
    }
}

/// # Errors
/// What makes it necessary to begin anew.
fn is_partitioned(device: &Device) -> Result<bool, NvmlError> {
    match device.mig_mode() {
        Ok(mode) => Ok(mode.current == 1),
        Err(error) if is_the_end(&error) => Err(error),
        Err(_) => Ok(false),
    }
}

fn is_the_end(error: &NvmlError) -> bool {
    matches!(class::of(error), Class::Begin | Class::Restart)
}

impl Known {
    /// # Errors
    /// What makes it necessary to begin anew.
    fn ask<T>(
        &mut self,
        bit: u8,
        ask: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<Option<T>, NvmlError> {
        if self.never & bit != 0 {
            return Ok(None);
        }
        match ask() {
            Ok(value) => {
                self.supported |= bit;
                Ok(Some(value))
            }
            Err(error) => match class::of(&error) {
                Class::Permanent => {
                    self.never |= bit;
                    Ok(None)
                }
                Class::Skip => Ok(None),
                Class::Begin | Class::Restart => Err(error),
            },
        }
    }
}

/// A whole GPU. Of a Tegra memory and clocks are left out; of a partitioned one, memory is its instances'.
///
/// # Errors
/// What makes it necessary to begin anew.
fn look(
    device: &Device,
    unit: String,
    known: &mut Known,
    tegra: bool,
    whole: bool,
) -> Result<Gpu, NvmlError> {
    let narrow = |n: u32| u16::try_from(n).ok();
    let slow = ThrottleReasons::HW_SLOWDOWN
        | ThrottleReasons::SW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    let slowdown = || device.temperature_threshold(TemperatureThreshold::Slowdown);
    let busy = known.ask(metric::BUSY, || device.utilization_rates())?;
    let memory_mib = match whole && !tegra {
        true => known.ask(metric::MEMORY, || memory(device))?,
        false => None,
    };
    let clock_mhz = match tegra {
        true => None,
        false => known.ask(metric::CLOCK, || device.clock_info(Clock::SM))?,
    };
    let reasons = known.ask(metric::THROTTLED, || device.current_throttle_reasons())?;
    Ok(Gpu {
        name: device.name().ok(),
        suspended: false,
        busy_permille: busy.and_then(|share| narrow(share.gpu.checked_mul(10)?)),
        memory_mib,
        power_mw: known.ask(metric::POWER, || device.power_usage())?,
        temperature_c: known
            .ask(metric::TEMPERATURE, || device.temperature(TemperatureSensor::Gpu))?
            .and_then(narrow),
        slowdown_c: known.ask(metric::SLOWDOWN, slowdown)?.and_then(narrow),
        clock_mhz,
        throttled: reasons.map(|reasons| reasons.intersects(slow)),
        processes: known.ask(metric::PROCESSES, || processes(device))?.unwrap_or_default(),
        supported: known.supported,
        unit,
    })
}

fn memory(device: &Device) -> Result<(u64, u64), NvmlError> {
    device.memory_info().map(|memory| (memory.used >> 20, memory.total >> 20))
}

/// Both lists, most memory first. A process may be in both, each time with all that it uses.
fn processes(device: &Device) -> Result<Vec<(u32, u64)>, NvmlError> {
    let lists = [device.running_compute_processes(), device.running_graphics_processes()];
    if lists.iter().all(Result::is_err) {
        let [compute, _] = lists;
        return compute.map(|_| Vec::new());
    }
    let mut most = BTreeMap::new();
    for process in lists.into_iter().flatten().flatten() {
        if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
            let so_far: &mut u64 = most.entry(process.pid).or_default();
            *so_far = (*so_far).max(bytes >> 20);
        }
    }
    let mut most: Vec<_> = most.into_iter().collect();
    most.sort_by_key(|(pid, mib)| (std::cmp::Reverse(*mib), *pid));
    most.truncate(PROCESSES_MAX);
    Ok(most)
}
