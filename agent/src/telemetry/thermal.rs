//! Temperatures, of thermal zones and of hwmon devices. Numbers of zones move, so a sensor is known by its `type`.
//! Formats: Documentation/driver-api/thermal/sysfs-api.rst, Documentation/hwmon/sysfs-interface.rst.

use super::hwmon::Hwmons;
use super::named::Named;
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;

const CLASS: &str = "sys/class/thermal";
/// What L4T 34 and 35 give for a block that is powered off.
const OFF_MC: i64 = -256_000;
/// What no part of a board can have: below dry ice, above solder.
const RANGE_MC: (i64, i64) = (-80_000, 220_000);
/// Sensors that are kept.
const SENSORS_MAX: usize = 64;
/// Sensors of one hwmon device that are looked for.
const INPUTS_MAX: u32 = 32;
/// Trip points of one zone that are looked at.
const TRIPS_MAX: u32 = 16;
/// Chips that measure power; their own temperature is nobody's question.
const POWER_MONITORS: [&str; 2] = ["ina3221", "ina238"];

/// Temperatures in thousandths of a degree Celsius, by sensor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Temperatures {
    /// What is known.
    pub known: Named<i32>,
    /// Where the kernel slows down hard or switches off: the lowest trip point of kind `hot` or `critical`.
    pub trips: Named<i32>,
    /// What is there and no temperature now, and why.
    pub dropped: Named<String>,
}

impl Temperatures {
    fn add(&mut self, scan: &Scan, name: String, file: &str, value: Result<i32, String>) {
        if self.known.len() + self.dropped.len() >= SENSORS_MAX {
            return;
        }
        let taken = |name: &str| self.known.get(name).is_some() || self.dropped.get(name).is_some();
        // Two NVMe disks have sensors of the same names.
        let mut free = name.clone();
        for n in 2.. {
            if !taken(&free) {
                break;
            }
            free = format!("{name}_{n}");
        }
        match value {
            Ok(mc) => {
                scan.note(format_args!("temps_mc.{free}"), file, None);
                self.known.insert(free, mc);
            }
            Err(why) => {
                scan.note(format_args!("temps_dropped.{free}"), file, None);
                self.dropped.insert(free, why);
            }
        }
    }
}

/// Reads them all.
pub fn read(scan: &Scan, hwmons: &Hwmons) -> Temperatures {
    let mut found = Temperatures::default();
    let mut zones = Vec::new();
    for n in scan.root().indices(CLASS, "thermal_zone") {
        let dir = format!("{CLASS}/thermal_zone{n}");
        let Ok(kind) = scan.look(&format!("{dir}/type"), parse::name) else {
            scan.note(format_args!("temps_mc.zone{n}"), &format!("{dir}/type"), Some(&Absent::Malformed));
            continue;
        };
        let file = format!("{dir}/temp");
        let value = judge(&kind, scan.look(&file, millidegrees));
        found.add(scan, sensor(&kind), &file, value);
        if let Some(mc) = trip(scan, &dir) {
            scan.note(format_args!("trips_mc.{}", sensor(&kind)), &format!("{dir}/trip_point_*_temp"), None);
            found.trips.insert(sensor(&kind), mc);
        }
        zones.push(kind.replace('-', "_"));
    }
    for device in &hwmons.devices {
        if zones.contains(&device.name) {
            // The kernel makes a hwmon device of each zone (drivers/thermal/thermal_hwmon.c).
            let why = "duplicate of the zone".to_owned();
            found.add(scan, format!("hwmon:{}", device.name), &device.dir, Err(why));
        } else if !POWER_MONITORS.contains(&device.name.as_str()) {
            read_device(scan, &device.dir, &device.name, &mut found);
        }
    }
    scan.note_empty("temps_mc", found.known.is_empty(), CLASS, "no sensor with a temperature");
    scan.note_empty("trips_mc", found.trips.is_empty(), CLASS, "no trip point hot or critical");
    scan.note_empty("temps_dropped", found.dropped.is_empty(), CLASS, "nothing was dropped");
    let why = found.known.is_empty().then_some(Absent::Says("no sensor with a temperature"));
    scan.note("hottest_mc", "the warmest of temps_mc", why.as_ref());
    found
}

/// A trip point that cannot be read may be the lowest: then none is given.
fn trip(scan: &Scan, dir: &str) -> Option<i32> {
    let mut lowest = None;
    for n in 0..TRIPS_MAX {
        let file = |what: &str| format!("{dir}/trip_point_{n}_{what}");
        match scan.look(&file("type"), parse::name) {
            Ok(kind) if kind == "hot" || kind == "critical" => {
                let mc = scan.look(&file("temp"), millidegrees).ok()?;
                lowest = Some(lowest.map_or(mc, |low: i32| low.min(mc)));
            }
            Ok(_) => {}
            Err(Absent::Missing) => break,
            Err(_) => return None,
        }
    }
    lowest
}

fn read_device(scan: &Scan, dir: &str, device: &str, found: &mut Temperatures) {
    let files = scan.root().list(dir);
    for n in 1..=INPUTS_MAX {
        let input = format!("temp{n}_input");
        if !files.contains(&input) {
            continue;
        }
        let label = scan.look(&format!("{dir}/temp{n}_label"), parse::name).map(|l| sensor(&l));
        let name = label.map_or_else(|_| device.to_owned(), |label| format!("{device}_{label}"));
        let file = format!("{dir}/{input}");
        let value = scan.look(&file, millidegrees).map_err(|why| why.to_string());
        found.add(scan, name, &file, value);
    }
}

/// The warmest.
pub fn hottest(known: &Named<i32>) -> Option<i32> {
    known.iter().map(|(_, mc)| *mc).max()
}

/// A zone's type as the sensor's name: `CPU-therm`, `cpu-thermal` and `cpu` are one.
pub fn sensor(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    let known = ["-thermal", "-therm", "_tegra"].iter().find_map(|end| kind.strip_suffix(end));
    known.filter(|name| !name.is_empty()).unwrap_or(&kind).replace(['-', ' ', '.'], "_")
}

/// A temperature as it stands in the file.
///
/// # Errors
/// When it is none.
pub fn millidegrees(text: &str) -> Result<i32, Absent> {
    match parse::int(text)? {
        OFF_MC => Err(Absent::Says("-256000 = powered off")),
        mc if (RANGE_MC.0..=RANGE_MC.1).contains(&mc) => Ok(mc as i32),
        _ => Err(Absent::OutOfRange),
    }
}

/// Some zones always have a temperature that nothing has.
fn judge(kind: &str, value: Result<i32, Absent>) -> Result<i32, String> {
    match (kind, value) {
        ("PMIC-Die", Ok(mc)) => Err(format!("constant {mc}")),
        ("thermal-fan-est", Ok(_)) => Err("estimate, not a sensor".into()),
        (_, value) => value.map_err(|why| why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysroot::Sysroot;
    use super::*;

    #[test]
    fn sensors_have_one_name_on_all_releases() {
        for (kind, want) in [
            ("CPU-therm", "cpu"),
            ("cpu-thermal", "cpu"),
            ("soc012-thermal", "soc012"),
            ("Tboard_tegra", "tboard"),
            ("PMIC-Die", "pmic_die"),
            ("thermal-fan-est", "thermal_fan_est"),
            ("iwlwifi_1", "iwlwifi_1"),
            ("Composite", "composite"),
            ("-thermal", "_thermal"),
        ] {
            assert_eq!(sensor(kind), want, "{kind}");
        }
    }

    #[test]
    fn what_is_no_temperature() {
        for (kind, text, want) in [
            ("cpu-thermal", "53968\n", Ok(53968)),
            ("cpu-thermal", "0\n", Ok(0)),
            ("cpu-thermal", "-5000\n", Ok(-5000)),
            ("GPU-therm", "-256000\n", Err("-256000 = powered off")),
            ("GPU-therm", "999999999\n", Err("out of range")),
            ("GPU-therm", "", Err("not understood")),
            ("PMIC-Die", "100000\n", Err("constant 100000")),
            ("thermal-fan-est", "23000\n", Err("estimate, not a sensor")),
        ] {
            assert_eq!(judge(kind, millidegrees(text)), want.map_err(str::to_owned), "{kind} {text:?}");
        }
    }

    #[test]
    fn the_lowest_trip_that_matters() {
        let dir = tempfile::tempdir().unwrap();
        let root = Sysroot::new(dir.path());
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let lowest = || trip(&Scan::new(&root, false), ".");
        assert_eq!(lowest(), None);
        for (n, kind, mc) in [(0, "passive", "50000"), (1, "critical", "105000"), (2, "hot", "99000")] {
            put(&format!("trip_point_{n}_type"), kind);
            put(&format!("trip_point_{n}_temp"), mc);
        }
        assert_eq!(lowest(), Some(99000));
        put("trip_point_1_temp", "");
        assert_eq!(lowest(), None, "the one that cannot be read may be the lowest");
    }

    #[test]
    fn sensors_of_the_same_name_are_counted() {
        let root = Sysroot::default();
        let (scan, mut found) = (Scan::new(&root, false), Temperatures::default());
        for n in 0..3 {
            found.add(&scan, "nvme_composite".into(), "", if n == 1 { Err("x".into()) } else { Ok(n) });
        }
        assert_eq!(
            found.known.iter().collect::<Vec<_>>(),
            [("nvme_composite", &0), ("nvme_composite_3", &2)]
        );
        assert!(found.dropped.get("nvme_composite_2").is_some());
    }
}
