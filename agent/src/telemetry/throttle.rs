//! What holds the board back. Formats: Documentation/driver-api/thermal/sysfs-api.rst (cooling devices); NVIDIA's
//! soctherm driver (`ocN_event_cnt`: 1 under-voltage, 2 average over-current, 3 instantaneous over-current, which
//! climbs without harm in mode MAXN_SUPER).

use super::hwmon::{self, Hwmons};
use super::named::Named;
use super::parse;
use super::scan::Scan;
use serde::Serialize;

const CLASS: &str = "sys/class/thermal";
/// Cooling devices that are looked at.
const DEVICES_MAX: usize = 128;

/// Events since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OcEvents {
    /// Under-voltage.
    pub oc1: Option<u64>,
    /// Over-current on average.
    pub oc2: Option<u64>,
    /// Over-current for an instant.
    pub oc3: Option<u64>,
}

/// A device that slows something down to cool it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cooling {
    /// How far it does now; 0 is not at all.
    pub cur: Option<u32>,
    /// How far it can.
    pub max: Option<u32>,
}

/// Cooling devices by what they slow down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Throttles {
    /// NVIDIA's `*-throttle-alert`: 0 or 1.
    pub alerts: Named<Option<u32>>,
    /// `devfreq-*` and `cpufreq-*`.
    pub cooling: Named<Cooling>,
}

/// Reads the counters of soctherm; nothing where there is none.
pub fn read_oc(scan: &Scan, hwmons: &Hwmons) -> Option<OcEvents> {
    let device = hwmons.named("soctherm_oc").next();
    scan.note_empty("oc_events", device.is_none(), hwmon::CLASS, "no device soctherm_oc");
    let device = device?;
    let count = |n: u32| {
        let path = format!("{}/oc{n}_event_cnt", device.dir);
        scan.value(format_args!("oc_events.oc{n}"), &path, parse::count).ok()
    };
    Some(OcEvents { oc1: count(1), oc2: count(2), oc3: count(3) })
}

/// Reads the cooling devices.
pub fn read(scan: &Scan) -> Throttles {
    let mut found = Throttles::default();
    for n in scan.root().indices(CLASS, "cooling_device").into_iter().take(DEVICES_MAX) {
        let dir = format!("{CLASS}/cooling_device{n}");
        let Ok(kind) = scan.look(&format!("{dir}/type"), parse::name) else { continue };
        let state = |field: String, what: &str| {
            scan.value(field, &format!("{dir}/{what}"), |t| parse::within(t, 0, 100_000))
                .ok()
                .map(|n| n as u32)
        };
        if let Some(name) = alert(&kind) {
            let cur = state(format!("throttle_alerts.{name}"), "cur_state");
            found.alerts.insert(name.to_owned(), cur);
        } else if kind.starts_with("devfreq-") || kind.starts_with("cpufreq-") {
            let cur = state(format!("cooling.{kind}.cur"), "cur_state");
            let max = state(format!("cooling.{kind}.max"), "max_state");
            found.cooling.insert(kind, Cooling { cur, max });
        }
    }
    scan.note_empty("throttle_alerts", found.alerts.is_empty(), CLASS, "no cooling device *-alert");
    scan.note_empty("cooling", found.cooling.is_empty(), CLASS, "no cooling device devfreq-* or cpufreq-*");
    found
}

/// What `X-throttle-alert` and `hot-surface-alert` are about.
pub fn alert(kind: &str) -> Option<&str> {
    let name = kind.strip_suffix("-throttle-alert").or_else(|| kind.strip_suffix("-alert"));
    name.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_by_their_subject() {
        for (kind, want) in [
            ("cpu-throttle-alert", Some("cpu")),
            ("soc012-throttle-alert", Some("soc012")),
            ("hot-surface-alert", Some("hot-surface")),
            ("cpu-balanced", None),
            ("pwm-fan", None),
            ("-alert", None),
            ("cpu-throttle-ale", None),
        ] {
            assert_eq!(alert(kind), want, "{kind}");
        }
    }
}
