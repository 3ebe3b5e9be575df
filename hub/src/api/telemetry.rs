//! What boards say of themselves, as JSON and for Prometheus, both in base units. Unknown is absent, never 0.

use crate::core::telemetry::Raised;
use crate::event::BoardView;
use dunlin_wire::NodeName;
use dunlin_wire::telemetry::{Alarm, Figure, Slot};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// How a slot is shown.
struct Shown {
    /// Name of its series.
    metric: &'static str,
    /// What it is.
    help: &'static str,
    /// What a figure is divided by to be in `unit`.
    divisor: f64,
    /// A base unit.
    unit: &'static str,
    /// What the board's own name is called in the series.
    label: &'static str,
}

const MIB: f64 = 1.0 / 1_048_576.0;

/// `word` is the first of [`Slot::words`].
fn shown(word: &str) -> Option<Shown> {
    let (metric, help, divisor, unit, label) = match word {
        "cpu" => ("dunlin_cpu_utilization_ratio", "Busy share of all CPUs.", 1e3, "ratio", ""),
        "load" => ("dunlin_load1", "Load over a minute.", 1e2, "tasks", ""),
        "memoryAvailable" => {
            ("dunlin_memory_available_bytes", "What programs could take without swapping.", MIB, "bytes", "")
        }
        "swapUsed" => ("dunlin_swap_used_bytes", "Swap in use.", MIB, "bytes", ""),
        "gpu" => ("dunlin_gpu_utilization_ratio", "Busy share of the GPU.", 1e3, "ratio", "gpu"),
        "gpuClock" => ("dunlin_gpu_clock_hertz", "Clock of the GPU.", 1e-6, "hertz", "gpu"),
        "gpuMemoryUsed" => ("dunlin_gpu_memory_used_bytes", "Memory that the GPU uses.", MIB, "bytes", "gpu"),
        "power" => ("dunlin_board_power_watts", "What the board draws.", 1e3, "watts", ""),
        "rail" => ("dunlin_power_watts", "What a rail draws.", 1e3, "watts", "rail"),
        "temperature" => ("dunlin_temperature_celsius", "Temperature.", 1e1, "celsius", "sensor"),
        "fan" => ("dunlin_fan_rpm", "Speed of the fan.", 1.0, "rpm", ""),
        "throttled" => (
            "dunlin_throttled_ratio",
            "Share of the time in which something was slowed down.",
            1e3,
            "ratio",
            "",
        ),
        "underVoltage" => {
            ("dunlin_under_voltage_ratio", "Share of the time in which voltage was low.", 1e3, "ratio", "")
        }
        "overCurrent" => (
            "dunlin_over_current_events_total",
            "Events: 1 under-voltage, 2 average, 3 instantaneous.",
            1.0,
            "events",
            "kind",
        ),
        "oomKills" => (
            "dunlin_oom_kills_total",
            "Killed in the agent's cgroup for want of memory.",
            1.0,
            "processes",
            "",
        ),
        "cpuWaiting" => {
            ("dunlin_pressure_cpu_waiting_seconds_total", "Something waited for a CPU.", 1e3, "seconds", "")
        }
        "memoryWaiting" => (
            "dunlin_pressure_memory_waiting_seconds_total",
            "Something waited for memory.",
            1e3,
            "seconds",
            "",
        ),
        "memoryStalled" => {
            ("dunlin_pressure_memory_stalled_seconds_total", "All waited for memory.", 1e3, "seconds", "")
        }
        "ioWaiting" => {
            ("dunlin_pressure_io_waiting_seconds_total", "Something waited for a disk.", 1e3, "seconds", "")
        }
        "ioStalled" => {
            ("dunlin_pressure_io_stalled_seconds_total", "All waited for a disk.", 1e3, "seconds", "")
        }
        "diskRead" => ("dunlin_disk_read_bytes_total", "Read from all disks.", MIB, "bytes", ""),
        "diskWritten" => ("dunlin_disk_written_bytes_total", "Written to all disks.", MIB, "bytes", ""),
        "filesystem" => {
            ("dunlin_filesystem_avail_bytes", "What users may still write.", MIB, "bytes", "mountpoint")
        }
        "wear" => ("dunlin_disk_life_used_ratio", "Life used, as its maker counts.", 1e2, "ratio", "device"),
        "gpuMemoryFree" => (
            "dunlin_gpu_memory_free_bytes",
            "Free of the memory that a GPU has for itself.",
            MIB,
            "bytes",
            "gpu",
        ),
        "networkReceived" => {
            ("dunlin_network_receive_bytes_total", "Received by a network interface.", MIB, "bytes", "device")
        }
        "networkSent" => {
            ("dunlin_network_transmit_bytes_total", "Sent by a network interface.", MIB, "bytes", "device")
        }
        _ => return None,
    };
    Some(Shown { metric, help, divisor, unit, label })
}

/// A figure of the series `key` (`cpu`, `temperature:tj`) in its base unit, and that.
pub(super) fn in_unit(key: &str, figure: f64) -> Option<(f64, &'static str)> {
    let shown = shown(key.split(':').next().unwrap_or(key))?;
    Some((scaled(figure, shown.divisor), shown.unit))
}

/// Whether the series `key` only grows while the board runs.
pub(super) fn is_counter(key: &str) -> bool {
    shown(key.split(':').next().unwrap_or(key)).is_some_and(|shown| shown.metric.ends_with("_total"))
}

/// Divided, without the noise of the division behind its figures.
fn scaled(figure: f64, divisor: f64) -> f64 {
    (figure / divisor * 1e6).round() / 1e6
}

fn known(view: &BoardView) -> impl Iterator<Item = (&Slot, &Figure)> {
    view.inventory.slots.iter().zip(view.figures.iter()).filter_map(|(slot, f)| Some((slot, f.as_ref()?)))
}

/// A node's `telemetry`: the newest figures, and how old they are.
pub(super) fn body(view: &BoardView) -> Value {
    let figures: Map<String, Value> = known(view)
        .filter_map(|(slot, figure)| {
            let shown = shown(slot.words().0)?;
            let [mean, max] = [figure.mean, figure.max()].map(|n| scaled(n as f64, shown.divisor));
            let mut body = json!({"mean": mean, "max": max, "unit": shown.unit});
            match slot {
                Slot::Temperature { trip: Some(trip), .. } => body["trip"] = (f64::from(*trip) / 10.0).into(),
                Slot::Filesystem { total_mib, .. } | Slot::GpuMemoryFree { total_mib, .. } => {
                    body["total"] = (total_mib << 20).into()
                }
                Slot::Power { measured } => body["measured"] = (*measured).into(),
                _ => {}
            }
            Some((slot.key(), body))
        })
        .collect();
    let board = &view.inventory;
    json!({
        "ageMs": view.age_ms,
        "reportMs": view.report_ms,
        "fresh": view.fresh,
        "board": {
            "family": board.family,
            "model": board.model,
            "l4t": board.l4t,
            "kernel": board.kernel,
            "powerMode": board.power_mode,
            "clocksPinned": board.clocks_pinned,
            "cpus": board.cpus,
            "memoryTotal": board.memory_total_mib.map(|mib| mib << 20),
            "swapTotal": board.swap_total_mib.map(|mib| mib << 20),
            "gpu": board.gpu,
            "gpuMemoryShared": board.gpu_memory_shared,
            "uptimeS": board.uptime_s,
        },
        "figures": figures,
    })
}

/// A node's `alarms`: the newest of each kind, and how many there were since the hub started.
pub(super) fn alarms(alarms: &BTreeMap<Alarm, Raised>) -> Value {
    let shown = alarms.iter().map(|(alarm, raised)| {
        let place = (!raised.name.is_empty()).then_some(&raised.name);
        json!({"kind": alarm.as_str(), "place": place, "lastAt": raised.at_ms, "count": raised.count})
    });
    shown.collect()
}

/// Families of series, each with its lines together as the format asks.
#[derive(Default)]
struct Families(BTreeMap<&'static str, (&'static str, &'static str, String)>);

impl Families {
    fn add(&mut self, name: &'static str, kind: &'static str, help: &'static str, labels: &str, value: f64) {
        let (_, _, lines) = self.0.entry(name).or_insert_with(|| (kind, help, String::new()));
        let _ = writeln!(lines, "{name}{{{labels}}} {value}");
    }

    fn text(self) -> String {
        let mut out = String::new();
        for (name, (kind, help, lines)) in self.0 {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        }
        out
    }
}

/// A label's value as the format wants it. Names come from boards.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All series of boards. Those of a board that missed too many reports are not there; the age of its sample stays.
pub(super) fn series(boards: &[(NodeName, BoardView)]) -> String {
    let mut out = Families::default();
    for (node, view) in boards {
        let own = format!("node=\"{node}\"");
        let age = view.age_ms as f64 / 1e3;
        out.add("dunlin_telemetry_age_seconds", "gauge", "Age of the newest report.", &own, age);
        if !view.fresh {
            continue;
        }
        for (slot, figure) in known(view) {
            let (word, name) = slot.words();
            let Some(shown) = shown(word) else { continue };
            let name = if shown.label == "gpu" && name.is_empty() { "0" } else { name };
            let labels = match shown.label {
                "" => own.clone(),
                label => format!("{own},{label}=\"{}\"", escaped(name)),
            };
            let kind = if slot.is_counter() { "counter" } else { "gauge" };
            let value = scaled(figure.mean as f64, shown.divisor);
            out.add(shown.metric, kind, shown.help, &labels, value);
            match slot {
                Slot::Temperature { trip: Some(trip), .. } => {
                    let help = "Where the kernel slows down hard or switches off.";
                    let trip = f64::from(*trip) / 10.0;
                    out.add("dunlin_temperature_trip_celsius", "gauge", help, &labels, trip);
                }
                Slot::Filesystem { total_mib, .. } => {
                    let size = (total_mib << 20) as f64;
                    out.add(
                        "dunlin_filesystem_size_bytes",
                        "gauge",
                        "Size of the filesystem.",
                        &labels,
                        size,
                    );
                }
                _ => {}
            }
        }
        if let Some(mib) = view.inventory.memory_total_mib {
            out.add("dunlin_memory_size_bytes", "gauge", "All memory.", &own, (mib << 20) as f64);
        }
    }
    out.text()
}

/// The GPU's series by the names that NVIDIA's exporter gives them, for dashboards made for it.
pub(super) fn dcgm(boards: &[(NodeName, BoardView)]) -> String {
    let mut out = Families::default();
    for (node, view) in boards.iter().filter(|(_, view)| view.fresh) {
        for (slot, figure) in known(view) {
            let mean = figure.mean as f64;
            let unit = match slot {
                Slot::FurtherGpu { name } | Slot::GpuMemoryFree { name, .. } => name,
                Slot::Rail { name } => name.strip_prefix("GPU").unwrap_or_default(),
                Slot::Temperature { name, .. } => name.strip_prefix("gpu").unwrap_or_default(),
                _ => "",
            };
            let labels = match if unit.is_empty() { "0" } else { unit }.split_once('/') {
                None if unit.is_empty() => format!("gpu=\"0\",Hostname=\"{node}\""),
                None => format!("gpu=\"{}\",Hostname=\"{node}\"", escaped(unit)),
                Some((gpu, instance)) => {
                    let [gpu, instance] = [gpu, instance].map(escaped);
                    format!("gpu=\"{gpu}\",GPU_I_ID=\"{instance}\",Hostname=\"{node}\"")
                }
            };
            let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
            let (name, help, value) = match slot {
                Slot::Gpu | Slot::FurtherGpu { .. } => {
                    ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", mean / 10.0)
                }
                Slot::GpuClock => ("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", mean),
                Slot::GpuMemoryUsed => ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", mean),
                Slot::GpuMemoryFree { .. } => {
                    ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", mean)
                }
                Slot::Temperature { name, .. } if name.strip_prefix("gpu").is_some_and(is_number) => {
                    ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", mean / 10.0)
                }
                Slot::Rail { name }
                    if ["VDD_GPU", "VDD_GPU_SOC"].contains(&name.as_str())
                        || name.strip_prefix("GPU").is_some_and(is_number) =>
                {
                    ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", mean / 1000.0)
                }
                _ => continue,
            };
            out.add(name, "gauge", help, &labels, value);
        }
    }
    out.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::telemetry::Inventory;
    use std::sync::Arc;

    fn view(fresh: bool) -> BoardView {
        let slots = vec![
            Slot::Gpu,
            Slot::Temperature { name: "a\"b\\\n".into(), trip: Some(1050) },
            Slot::Rail { name: "VDD_GPU".into() },
            Slot::MemoryStalled,
            Slot::Fan,
            Slot::Filesystem { name: "/".into(), total_mib: 10 },
        ];
        let figures = [Some(412), Some(533), Some(-392), Some(1500), None, Some(2)];
        let figure = |mean: Option<i64>| mean.map(|mean| Figure { mean, over: 8 });
        BoardView {
            inventory: Arc::new(Inventory { slots, memory_total_mib: Some(1), ..Inventory::default() }),
            figures: figures.map(figure).into(),
            age_ms: 1500,
            report_ms: 1000,
            fresh,
        }
    }

    #[test]
    fn series_have_base_units_and_unknown_ones_are_absent() {
        let node: NodeName = "n1".parse().unwrap();
        let text = series(&[(node.clone(), view(true)), ("n2".parse().unwrap(), view(false))]);
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "dunlin_filesystem_avail_bytes{node=\"n1\",mountpoint=\"/\"} 2097152",
                "dunlin_filesystem_size_bytes{node=\"n1\",mountpoint=\"/\"} 10485760",
                "dunlin_gpu_utilization_ratio{node=\"n1\",gpu=\"0\"} 0.412",
                "dunlin_memory_size_bytes{node=\"n1\"} 1048576",
                "dunlin_power_watts{node=\"n1\",rail=\"VDD_GPU\"} -0.392",
                "dunlin_pressure_memory_stalled_seconds_total{node=\"n1\"} 1.5",
                "dunlin_telemetry_age_seconds{node=\"n1\"} 1.5",
                "dunlin_telemetry_age_seconds{node=\"n2\"} 1.5",
                "dunlin_temperature_celsius{node=\"n1\",sensor=\"a\\\"b\\\\\\n\"} 53.3",
                "dunlin_temperature_trip_celsius{node=\"n1\",sensor=\"a\\\"b\\\\\\n\"} 105",
            ]
        );
        assert_eq!(text.matches("# TYPE dunlin_telemetry_age_seconds gauge").count(), 1);
        let text = dcgm(&[(node, view(true))]);
        assert!(text.contains("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",Hostname=\"n1\"} 41.2\n"), "{text}");
    }

    #[test]
    fn a_node_s_figures_have_mean_maximum_and_unit() {
        let body = body(&view(true));
        assert_eq!(body["figures"]["gpu"], json!({"mean": 0.412, "max": 0.42, "unit": "ratio"}));
        assert_eq!(body["figures"]["filesystem:/"]["total"], 10_485_760);
        assert_eq!((&body["figures"]["fan"], &body["ageMs"]), (&Value::Null, &json!(1500)));
        assert_eq!(in_unit("temperature:tj", 533.0), Some((53.3, "celsius")));
    }
}
