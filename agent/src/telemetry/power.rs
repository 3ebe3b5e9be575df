//! Power rails of Jetsons. Formats: L4T 32 has TI's monitor under IIO (`rail_name_N`, `in_powerN_input` in mW, driver
//! ina3221x of NVIDIA's 4.9 kernel); later ones under hwmon: Documentation/hwmon/ina3221.rst, and
//! Documentation/hwmon/ina238.rst on Thor, whose `power1_input` is in uW.

use super::hwmon::{self, Hwmon, Hwmons};
use super::named::Named;
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::{Serialize, Serializer};

const IIO: &str = "sys/bus/iio/devices";
/// Rails that are measured at the board's input, best first: they are the whole.
const TOTALS: [&str; 3] = ["VIN", "VDD_IN", "POM_5V_IN"];
/// An input that is not connected.
const NOT_CONNECTED: &str = "NC";
/// More than any board draws, in mV, mA and mW; the range keeps products and sums within bounds.
const FIGURE_MAX: i64 = 10_000_000;

/// One rail. Signed: a rail that is switched off reads a little below zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rail {
    /// As the board calls it.
    pub label: String,
    /// Voltage.
    pub mv: Option<i32>,
    /// Current.
    pub ma: Option<i32>,
    /// Power.
    pub mw: Option<i32>,
}

impl Serialize for Rail {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (&self.label, self.mv, self.ma, self.mw).serialize(to)
    }
}

/// What a rail may draw, in mA, and whether it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Throttled above it (`curr1_max`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<i32>,
    /// Warned above it (L4T 32).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn: Option<i32>,
    /// Throttled hard above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crit: Option<i32>,
    /// It is above `max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_alarm: Option<bool>,
    /// It is above `crit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crit_alarm: Option<bool>,
}

/// What the whole board draws.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Which rail, or `sum`.
    pub label: String,
    /// Power.
    pub mw: i32,
    /// `measured` at the input, or `sum-of-rails`, which misses what has no rail.
    pub kind: &'static str,
}

/// All rails.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Power {
    /// In the order of the chips and of their channels.
    pub rails: Vec<Rail>,
    /// By rail, where a rail has any.
    pub limits: Named<Limit>,
    /// Could all channels be told apart?
    complete: bool,
}

impl Power {
    /// The rail at the board's input; else the sum of all. None while one of those is unknown.
    pub fn total(&self) -> Option<Total> {
        if let Some(rail) = TOTALS.iter().find_map(|label| self.rails.iter().find(|r| r.label == *label)) {
            return Some(Total { label: rail.label.clone(), mw: rail.mw?, kind: "measured" });
        }
        if self.rails.is_empty() || !self.complete {
            return None;
        }
        let mw = self.rails.iter().try_fold(0i32, |sum, rail| sum.checked_add(rail.mw?))?;
        Some(Total { label: "sum".into(), mw, kind: "sum-of-rails" })
    }

    fn add(&mut self, rail: Rail, limit: Limit) {
        if limit != Limit::default() {
            self.limits.insert(rail.label.clone(), limit);
        }
        self.rails.push(rail);
    }
}

/// Reads all rails, wherever this release keeps them.
pub fn read(scan: &Scan, hwmons: &Hwmons) -> Power {
    let mut found = Power { complete: hwmons.complete, ..Power::default() };
    for n in scan.root().indices(IIO, "iio:device") {
        read_iio(scan, &format!("{IIO}/iio:device{n}"), &mut found);
    }
    for device in &hwmons.devices {
        match device.name.as_str() {
            "ina3221" => read_ina3221(scan, device, &mut found),
            "ina238" => read_ina238(scan, device, &mut found),
            _ => {}
        }
    }
    scan.note_empty("rails", found.rails.is_empty(), hwmon::CLASS, "no ina3221 or ina238, nor one under IIO");
    scan.note_empty("rail_limit_ma", found.limits.is_empty(), hwmon::CLASS, "no rail with a limit");
    let why =
        found.total().is_none().then_some(Absent::Says("no rail at the input, and not all rails known"));
    scan.note("power_total", "the rail at the input, else the sum of rails", why.as_ref());
    found
}

fn read_iio(scan: &Scan, dir: &str, found: &mut Power) {
    let files = scan.root().list(dir);
    for n in 0..3 {
        if !files.contains(&format!("rail_name_{n}")) {
            continue;
        }
        let Some(label) = label(scan, &format!("{dir}/rail_name_{n}"), found) else { continue };
        let read = |what: &str| {
            let path = format!("{dir}/in_{what}{n}_input");
            Reading(scan.look(&path, figure), path)
        };
        let (mv, ma) = (read("voltage"), read("current"));
        // The driver computes it from finer figures than it shows: 19080 mV x 9 mA is 182 mW there.
        let mw = read("power");
        note(scan, &label, &[&mv, &ma, &mw]);
        let limit = |what: &str| scan.look(&format!("{dir}/{what}_current_limit_{n}"), iio_limit).ok();
        scan.note(format_args!("rail_limit_ma.{label}"), dir, None);
        let limit = Limit { warn: limit("warn"), crit: limit("crit"), ..Limit::default() };
        found.add(Rail { label, mv: mv.0.ok(), ma: ma.0.ok(), mw: mw.0.ok() }, limit);
    }
}

/// Channels 1 to 3; 4 to 7 are voltages over the shunts.
fn read_ina3221(scan: &Scan, device: &Hwmon, found: &mut Power) {
    let dir = &device.dir;
    let files = scan.root().list(dir);
    for n in 1..=3 {
        if !files.contains(&format!("in{n}_label")) {
            continue;
        }
        let Some(label) = label(scan, &format!("{dir}/in{n}_label"), found) else { continue };
        if scan.look(&format!("{dir}/in{n}_enable"), parse::flag) == Ok(false) {
            scan.note(format_args!("rails.{label}"), dir, Some(&Absent::Says("the channel is switched off")));
            continue;
        }
        let read = |path: String| Reading(scan.look(&path, figure), path);
        let mv = read(format!("{dir}/in{n}_input"));
        let ma = read(format!("{dir}/curr{n}_input"));
        note(scan, &label, &[&mv, &ma]);
        let (mv, ma) = (mv.0.ok(), ma.0.ok());
        let mw = mv.zip(ma).and_then(|(mv, ma)| milliwatts(mv, ma));
        let limit = |what: &str| scan.look(&format!("{dir}/curr{n}_{what}"), figure).ok();
        scan.note(format_args!("rail_limit_ma.{label}"), dir, None);
        let alarm = |what: &str| scan.look(&format!("{dir}/curr{n}_{what}_alarm"), parse::flag).ok();
        let limit = Limit {
            max: limit("max"),
            warn: None,
            crit: limit("crit"),
            max_alarm: alarm("max"),
            crit_alarm: alarm("crit"),
        };
        found.add(Rail { label, mv, ma, mw }, limit);
    }
}

/// Thor's input. The driver has no label.
fn read_ina238(scan: &Scan, device: &Hwmon, found: &mut Power) {
    let read = |what: &str, parse: fn(&str) -> Result<i32, Absent>| {
        let path = format!("{}/{what}", device.dir);
        Reading(scan.look(&path, parse), path)
    };
    let (mv, ma) = (read("in1_input", figure), read("curr1_input", figure));
    let mw = read("power1_input", microwatts);
    note(scan, "VIN", &[&mv, &ma, &mw]);
    let rail = Rail { label: "VIN".into(), mv: mv.0.ok(), ma: ma.0.ok(), mw: mw.0.ok() };
    found.add(rail, Limit::default());
}

/// A figure and the file it stands in.
struct Reading(Result<i32, Absent>, String);

fn note(scan: &Scan, label: &str, readings: &[&Reading]) {
    let bad = readings.iter().find(|r| r.0.is_err());
    let names: Vec<&str> = readings.iter().filter_map(|r| r.1.rsplit('/').next()).collect();
    let dir = readings.first().and_then(|r| r.1.rsplit_once('/')).map_or("", |(dir, _)| dir);
    let file = bad.map_or_else(|| format!("{dir}/{}", names.join(" ")), |r| r.1.clone());
    scan.note(format_args!("rails.{label}"), &file, bad.and_then(|r| r.0.as_ref().err()));
}

/// The rail's name; none for an input that is not connected.
fn label(scan: &Scan, path: &str, found: &mut Power) -> Option<String> {
    match scan.look(path, parse::name) {
        Ok(label) if label == NOT_CONNECTED => None,
        Ok(label) => Some(label),
        Err(why) => {
            scan.note(format_args!("rails.{path}"), path, Some(&why));
            found.complete = false;
            None
        }
    }
}

/// mV, mA or mW.
///
/// # Errors
/// What no board has.
pub fn figure(text: &str) -> Result<i32, Absent> {
    parse::within(text, -FIGURE_MAX, FIGURE_MAX).map(|n| n as i32)
}

/// uW, as mW.
///
/// # Errors
/// What no board has.
pub fn microwatts(text: &str) -> Result<i32, Absent> {
    let microwatts = parse::within(text, -FIGURE_MAX * 1000, FIGURE_MAX * 1000)?;
    thousandth(microwatts).ok_or(Absent::OutOfRange)
}

/// `5000 ma`, or without the unit.
///
/// # Errors
/// Anything else.
pub fn iio_limit(text: &str) -> Result<i32, Absent> {
    let text = text.trim();
    figure(text.strip_suffix(" ma").unwrap_or(text))
}

/// The product, rounded down.
fn milliwatts(mv: i32, ma: i32) -> Option<i32> {
    thousandth(i64::from(mv) * i64::from(ma))
}

/// Rounded down; but what is not 0 does not become 0: no rail is so weak.
fn thousandth(n: i64) -> Option<i32> {
    let thousandth = i32::try_from(n.div_euclid(1000)).ok()?;
    (thousandth != 0 || n == 0).then_some(thousandth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_signed_and_rounded_down() {
        for (mv, ma, want) in [
            (4968, 2512, Some(12479)),
            (19600, -20, Some(-392)),
            (5032, -1, Some(-6)),
            (0, 0, Some(0)),
            (5000, 0, Some(0)),
            (4, 120, None),
            (10_000_000, 10_000_000, None),
        ] {
            assert_eq!(milliwatts(mv, ma), want, "{mv} {ma}");
        }
        assert_eq!(microwatts("15004000\n"), Ok(15004));
        assert_eq!(microwatts("-1\n"), Ok(-1));
        assert_eq!(microwatts("0\n"), Ok(0));
        assert_eq!(microwatts("150"), Err(Absent::OutOfRange));
        assert_eq!(iio_limit("5000 ma\n"), Ok(5000));
        assert_eq!(iio_limit("5000 V\n"), Err(Absent::Malformed));
        assert_eq!(figure("99999999\n"), Err(Absent::OutOfRange));
    }

    #[test]
    fn the_total_is_the_input_else_a_sum_of_all() {
        let power = |rails: &[(&str, Option<i32>)], complete| Power {
            rails: rails
                .iter()
                .map(|(label, mw)| Rail { label: (*label).into(), mv: None, ma: None, mw: *mw })
                .collect(),
            limits: Named::default(),
            complete,
        };
        for (rails, complete, want) in [
            (&[("A", Some(1)), ("VDD_IN", Some(5)), ("VIN", Some(7))][..], true, Some(("VIN", 7))),
            (&[("A", Some(1)), ("VDD_IN", Some(5))], false, Some(("VDD_IN", 5))),
            (&[("A", Some(1)), ("VDD_IN", None)], true, None),
            (&[("A", Some(1)), ("B", Some(-3))], true, Some(("sum", -2))),
            (&[("A", Some(1)), ("B", Some(2))], false, None),
            (&[("A", Some(1)), ("B", None)], true, None),
            (&[], true, None),
        ] {
            let total = power(rails, complete).total();
            assert_eq!(total.as_ref().map(|t| (t.label.as_str(), t.mw)), want, "{rails:?}");
        }
    }
}
