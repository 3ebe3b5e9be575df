//! CPU: time by core, clocks, load, uptime.
//! Formats: proc_stat(5), Documentation/filesystems/proc.rst; Documentation/admin-guide/pm/cpufreq.rst.

use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

const CPUFREQ: &str = "sys/devices/system/cpu/cpufreq";
/// Linux's own bound (NR_CPUS) on the machines we are built for.
const CORES_MAX: u32 = 8192;

/// CPUs and their clocks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// CPUs that are online.
    pub n: Option<u32>,
    /// Clusters that share a clock.
    pub policies: Vec<Policy>,
}

/// Number of its first CPU, then current, lowest and highest clock in kHz; lowest and highest are the live caps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy(pub u32, pub Option<u64>, pub Option<u64>, pub Option<u64>);

/// Ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Neither idle nor waiting for IO.
    pub busy: u64,
    /// Everything.
    pub total: u64,
}

/// /proc/stat, as far as we want it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// All cores together.
    pub all: Option<Times>,
    /// By core number; those that are offline are not listed.
    pub cores: Vec<(u32, Times)>,
}

/// Reads clocks; `stat` comes from [`read_stat`].
pub fn read(scan: &Scan, stat: Option<&Stat>) -> Cpu {
    let policies = scan.root().indices(CPUFREQ, "policy").into_iter().map(|n| {
        let clock = |what: &str| {
            let field = format_args!("cpu.policies.{n}.{what}");
            scan.value(field, &format!("{CPUFREQ}/policy{n}/scaling_{what}_freq"), parse::khz).ok()
        };
        Policy(n, clock("cur"), clock("min"), clock("max"))
    });
    let policies: Vec<_> = policies.collect();
    scan.note_empty("cpu.policies", policies.is_empty(), CPUFREQ, "the kernel does not change clocks");
    Cpu { n: stat.map(|stat| stat.cores.len() as u32), policies }
}

/// Reads /proc/stat.
pub fn read_stat(scan: &Scan) -> Option<Stat> {
    scan.table("cpu.n", "proc/stat", stat).ok()
}

/// Are all clocks held at one value? Unknown while any cap is.
pub fn pinned(policies: &[Policy]) -> Option<bool> {
    if policies.is_empty() {
        return None;
    }
    policies
        .iter()
        .try_fold(true, |all, Policy(_, _, low, high)| Some(all && low.as_ref()? == high.as_ref()?))
}

/// The lines `cpu` and `cpuN`, which stand together at the head of /proc/stat.
///
/// # Errors
/// When they are not in order, or the text ends before another line shows that all cores were seen.
pub fn stat(text: &str) -> Result<Stat, Absent> {
    let mut found = Stat::default();
    let mut ended = false;
    for line in text.lines() {
        let Some((core, rest)) = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' ')) else {
            ended = true;
            break;
        };
        let times = times(rest)?;
        if core.is_empty() {
            found.all = Some(times);
        } else {
            let core = parse::within(core, 0, CORES_MAX.into())? as u32;
            found.cores.push((core, times));
        }
    }
    if !ended || found.cores.is_empty() || found.all.is_none() { Err(Absent::Malformed) } else { Ok(found) }
}

/// `user nice system idle iowait irq softirq steal guest guest_nice`; guests are counted in the first two already.
fn times(line: &str) -> Result<Times, Absent> {
    let ticks: Result<Vec<u64>, Absent> = line.split_whitespace().take(8).map(parse::count).collect();
    let ticks = ticks?;
    let [_, _, _, idle, iowait, ..] = ticks[..] else { return Err(Absent::Malformed) };
    let total = ticks.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)).ok_or(Absent::OutOfRange)?;
    Ok(Times { busy: total - idle - iowait, total })
}

/// Busy share between two readings, in permille; none when no time passed or a counter went back.
pub fn busy_permille(before: Times, after: Times) -> Option<u16> {
    let total = after.total.checked_sub(before.total).filter(|n| *n > 0)?;
    let busy = after.busy.checked_sub(before.busy).filter(|n| *n <= total)?;
    u16::try_from(u128::from(busy) * 1000 / u128::from(total)).ok()
}

/// Load over 1, 5 and 15 minutes.
///
/// # Errors
/// Anything but /proc/loadavg.
pub fn load(text: &str) -> Result<[f64; 3], Absent> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [one, five, fifteen, _, _] = fields[..] else { return Err(Absent::Malformed) };
    Ok([decimal(one)?, decimal(five)?, decimal(fifteen)?])
}

/// Seconds since boot, time of suspend included.
///
/// # Errors
/// Anything but /proc/uptime.
pub fn uptime(text: &str) -> Result<f64, Absent> {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [up, _] => decimal(up),
        _ => Err(Absent::Malformed),
    }
}

/// A number with two decimals, as Linux writes averages and times.
///
/// # Errors
/// Anything else.
pub fn decimal(text: &str) -> Result<f64, Absent> {
    let (whole, cents) = text.split_once('.').ok_or(Absent::Malformed)?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 15 || cents.len() != 2 || !digits(whole) || !digits(cents) {
        return Err(Absent::Malformed);
    }
    text.parse().map_err(|_| Absent::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_taken_whole_or_not_at_all() {
        let text =
            "cpu  30 0 10 50 10 0 0 0 0 0\ncpu0 10 0 5 25 5 0 0 0 0 0\ncpu2 20 0 5 25 5 0 0 0\nintr 1\n";
        let got = stat(text).unwrap();
        assert_eq!(got.all, Some(Times { busy: 40, total: 100 }));
        assert_eq!(got.cores, [(0, Times { busy: 15, total: 45 }), (2, Times { busy: 25, total: 55 })]);
        for text in [
            "",
            "intr 1\n",
            "cpu  1 2 3 4 5\nintr",
            "cpu  1 2 3 4 5\ncpu0 1 2 3 4 5\n",
            "cpu  1 2 3 4 5\ncpu0 1 2 3 4\nintr",
            "cpu  1 2 3 4 5\ncpu0 1 2 x 4 5\nintr",
            "cpu  18446744073709551615 2 3 4 5\ncpu0 1 2 3 4 5\nintr",
            "cpu  9223372036854775807 9223372036854775807 9223372036854775807 4 5\ncpu0 1 2 3 4 5\nintr",
            "cpu  1 2 3 4 5\ncpu99999999 1 2 3 4 5\nintr",
        ] {
            assert!(stat(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_share_needs_time_and_counters_that_go_forward() {
        let at = |busy, total| Times { busy, total };
        for (before, after, want) in [
            (at(10, 100), at(40, 200), Some(300)),
            (at(10, 100), at(10, 200), Some(0)),
            (at(10, 100), at(10, 100), None),
            (at(10, 100), at(9, 200), None),
            (at(10, 100), at(50, 90), None),
            (at(10, 100), at(200, 150), None),
            (at(0, 0), at(u64::MAX, u64::MAX), Some(1000)),
        ] {
            assert_eq!(busy_permille(before, after), want, "{before:?} {after:?}");
        }
    }

    #[test]
    fn load_and_uptime() {
        assert_eq!(load("4.21 3.90 3.10 3/811 22011\n"), Ok([4.21, 3.9, 3.1]));
        assert_eq!(uptime("90331.10 433589.28\n"), Ok(90331.1));
        for text in
            ["", "0", "0.2 0.2 0.2 1/1 1", "1.00 1.00", "x.00 1.00 1.00 1/1 1", "1e5.00 1.00 1.00 1/1 1"]
        {
            assert!(load(text).is_err(), "{text:?}");
        }
        for text in ["", "9", "90331.1 1.00", "90331.10", "9999999999999999999999.00 1.00"] {
            assert!(uptime(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn clocks_are_pinned_only_when_all_are() {
        let at = |n, low, high| Policy(n, None, low, high);
        for (policies, want) in [
            (vec![], None),
            (vec![at(0, Some(5), Some(5)), at(4, Some(7), Some(7))], Some(true)),
            (vec![at(0, Some(5), Some(5)), at(4, Some(6), Some(7))], Some(false)),
            (vec![at(0, Some(5), None)], None),
        ] {
            assert_eq!(pinned(&policies), want);
        }
    }
}
