//! Power mode of a Jetson, as it was asked for; what it comes to is in the live caps.
//! Formats: nvpmodel of NVIDIA's L4T (/var/lib/nvpmodel/status, /etc/nvpmodel.conf, /sys/kernel/nvpmodel_clk_cap).

use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

const STATUS: &str = "var/lib/nvpmodel/status";
const NAMES: &str = "etc/nvpmodel.conf";

/// The power mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PowerMode {
    /// Its number.
    pub id: u32,
    /// Its name on this board: the numbers mean something else on each.
    pub name: Option<String>,
}

/// Reads it; nothing when the board has none.
pub fn read(scan: &Scan) -> Option<PowerMode> {
    let id = scan.value("power_mode", STATUS, status).ok()?;
    scan.note("power_mode.id", STATUS, None);
    Some(PowerMode { id, name: scan.table("power_mode.name", NAMES, |text| name(text, id)).ok() })
}

/// The cap on the memory's clock, in kHz.
pub fn read_emc_cap(scan: &Scan) -> Option<u64> {
    scan.value("emc_cap_khz", "sys/kernel/nvpmodel_clk_cap/emc", parse::hz_as_khz).ok()
}

/// The memory's clock, in kHz, where there is a devfreq device for it (Thor).
pub fn read_emc(scan: &Scan) -> Option<u64> {
    scan.value("emc_khz", "sys/class/devfreq/bwmgr/cur_freq", parse::hz_as_khz).ok()
}

/// `pmode:0002 fmode:quiet`.
///
/// # Errors
/// Anything else.
pub fn status(text: &str) -> Result<u32, Absent> {
    let (_, rest) = text.split_once("pmode:").ok_or(Absent::Malformed)?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    // Four digits: nvpmodel writes them so, and fewer may be the head of a number.
    if end != 4 {
        return Err(Absent::Malformed);
    }
    parse::count(&rest[..end]).map(|n| n as u32)
}

/// The name in `< POWER_MODEL ID=0 NAME=MAXN >`.
///
/// # Errors
/// When no model has this id.
pub fn name(text: &str, id: u32) -> Result<String, Absent> {
    let mut names = text.lines().filter_map(|line| {
        let fields = line.trim().strip_prefix('<')?.strip_suffix('>')?.split_whitespace();
        let fields: Vec<&str> = fields.collect();
        match fields[..] {
            ["POWER_MODEL", n, name, ..] => {
                let n: u32 = n.strip_prefix("ID=")?.parse().ok()?;
                (n == id).then_some(name.strip_prefix("NAME=")?)
            }
            _ => None,
        }
    });
    names.next().map_or(Err(Absent::Says("no model has this id")), parse::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (text, want) in [
            ("pmode:0002 fmode:fan_mode_quiet\n", Ok(2)),
            ("pmode:0008\n", Ok(8)),
            ("pmode: 0013", Ok(13)),
            ("pmode:00", Err(Absent::Malformed)),
            ("pmode:", Err(Absent::Malformed)),
            ("pmode:99999999999999999999", Err(Absent::Malformed)),
            ("fmode:quiet", Err(Absent::Malformed)),
            ("", Err(Absent::Malformed)),
        ] {
            assert_eq!(status(text), want, "{text:?}");
        }
        let conf = "# x\n< PARAM TYPE=FILE NAME=CPU >\nA /b\n< POWER_MODEL ID=0 NAME=15W >\nX\n\
                    < POWER_MODEL ID=1 NAME=7W >\n< PM_CONFIG DEFAULT=0 >\n";
        assert_eq!(name(conf, 1).as_deref(), Ok("7W"));
        assert_eq!(name(conf, 2), Err(Absent::Says("no model has this id")));
        assert!(name("< POWER_MODEL ID=1", 1).is_err());
    }
}
