//! Pressure stall information. Format: Documentation/accounting/psi.rst (Linux 4.20; `full` of cpu since 5.13).

use super::cpu::decimal;
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

/// Percent of the last 10 s in which something waited.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Some task waited for a CPU.
    pub cpu_some_avg10: Option<f64>,
    /// Some task waited for memory.
    pub mem_some_avg10: Option<f64>,
    /// All tasks waited for a disk.
    pub io_full_avg10: Option<f64>,
}

/// Microseconds waited since boot. The system-wide `full` of cpu has no meaning and is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Some task for a CPU.
    pub cpu_some: Option<u64>,
    /// Some task for memory.
    pub mem_some: Option<u64>,
    /// All tasks for memory.
    pub mem_full: Option<u64>,
    /// Some task for a disk.
    pub io_some: Option<u64>,
    /// All tasks for a disk.
    pub io_full: Option<u64>,
}

/// One file: the line `some`, and `full` where it is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Stalls {
    some: (f64, u64),
    full: Option<(f64, u64)>,
}

/// Reads all three; nothing when the kernel has none.
pub fn read(scan: &Scan) -> Option<(Pressure, Totals)> {
    let file = |what: &str, fields: &[&str]| {
        let path = format!("proc/pressure/{what}");
        let found = scan.value("psi", &path, stalls);
        for field in fields {
            scan.note(field, &path, found.as_ref().err());
        }
        found.ok()
    };
    let cpu = file("cpu", &["psi.cpu_some_avg10", "psi_total_us.cpu_some"]);
    let memory = file("memory", &["psi.mem_some_avg10", "psi_total_us.mem_some", "psi_total_us.mem_full"]);
    let io = file("io", &["psi.io_full_avg10", "psi_total_us.io_some", "psi_total_us.io_full"]);
    if cpu.is_none() && memory.is_none() && io.is_none() {
        return None;
    }
    let some = |s: &Option<Stalls>| s.as_ref().map(|s| s.some);
    let full = |s: &Option<Stalls>| s.as_ref().and_then(|s| s.full);
    let pressure = Pressure {
        cpu_some_avg10: some(&cpu).map(|s| s.0),
        mem_some_avg10: some(&memory).map(|s| s.0),
        io_full_avg10: full(&io).map(|s| s.0),
    };
    let totals = Totals {
        cpu_some: some(&cpu).map(|s| s.1),
        mem_some: some(&memory).map(|s| s.1),
        mem_full: full(&memory).map(|s| s.1),
        io_some: some(&io).map(|s| s.1),
        io_full: full(&io).map(|s| s.1),
    };
    Some((pressure, totals))
}

impl Totals {
    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let delta = |after: Option<u64>, before: Option<u64>| after?.checked_sub(before?);
        Self {
            cpu_some: delta(self.cpu_some, before.cpu_some),
            mem_some: delta(self.mem_some, before.mem_some),
            mem_full: delta(self.mem_full, before.mem_full),
            io_some: delta(self.io_some, before.io_some),
            io_full: delta(self.io_full, before.io_full),
        }
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
///
/// # Errors
/// When either line is not in order.
pub fn stalls(text: &str) -> Result<Stalls, Absent> {
    let mut lines = text.lines();
    let some = line(lines.next().unwrap_or_default(), "some")?;
    let full = lines.next().map(|text| line(text, "full")).transpose()?;
    Ok(Stalls { some, full })
}

fn line(text: &str, kind: &str) -> Result<(f64, u64), Absent> {
    let fields: Vec<&str> = text.split(' ').collect();
    let [first, avg10, _, _, total] = fields[..] else { return Err(Absent::Malformed) };
    let avg10 = avg10.strip_prefix("avg10=").ok_or(Absent::Malformed)?;
    let total = total.strip_prefix("total=").ok_or(Absent::Malformed)?;
    if first != kind {
        return Err(Absent::Malformed);
    }
    Ok((decimal(avg10)?, parse::count(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_or_the_first() {
        let some = "some avg10=6.12 avg60=4.80 avg300=3.02 total=981230011\n";
        let full = "full avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(stalls(some), Ok(Stalls { some: (6.12, 981_230_011), full: None }));
        assert_eq!(
            stalls(&format!("{some}{full}")),
            Ok(Stalls { some: (6.12, 981_230_011), full: Some((0.1, 7)) })
        );
        for text in [
            "",
            "some",
            "some avg10=6.12 avg60=4.80 avg300=3.02",
            "some avg10=6.12 avg60=4.80 avg300=3.02 total=",
            "some avg10=6.1 avg60=4.80 avg300=3.02 total=1",
            "some avg10=-6.12 avg60=4.80 avg300=3.02 total=1",
            "full avg10=6.12 avg60=4.80 avg300=3.02 total=1",
            "some avg10=6.12 avg60=4.80 avg300=3.02 total=99999999999999999999",
            "some avg10=6.12 avg60=4.80 avg300=3.02 total=1\nfull avg10=0",
        ] {
            assert!(stalls(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_counter_that_went_back_is_no_delta() {
        let at = |n| Totals { cpu_some: Some(n), ..Totals::default() };
        assert_eq!(at(5).since(&at(3)), at(2));
        assert_eq!(at(3).since(&at(5)), Totals::default());
        assert_eq!(at(3).since(&Totals::default()), Totals::default());
    }
}
