//! What board this is: device tree, L4T release, kernel.
//! Formats: Documentation/devicetree/usage-model.rst (`compatible`, `model`), /etc/nv_tegra_release of NVIDIA's L4T.

use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;

// Not /proc/device-tree, an absolute link that leads out of a sysroot.
const TREE: &str = "sys/firmware/devicetree/base";

/// The board.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    /// `t210` (Nano, TX1), `t186` (TX2), `t194` (Xavier), `t234` (Orin), `t264` (Thor), `generic-arm`, `unknown`.
    pub family: &'static str,
    /// As the device tree calls it.
    pub model: Option<String>,
    /// Release of NVIDIA's L4T; containers have none.
    pub l4t: Option<String>,
    /// Release of the Linux kernel.
    pub kernel: Option<String>,
    /// Which boot this is: counters of two boots are not compared.
    pub boot_id: Option<String>,
    /// A Raspberry Pi.
    pub raspberry_pi: bool,
}

impl Board {
    /// Is it an NVIDIA Tegra?
    pub fn is_tegra(&self) -> bool {
        self.family.starts_with('t')
    }
}

/// Finds out what board it is.
pub fn read(scan: &Scan) -> Board {
    let compatible = scan.value("family", &format!("{TREE}/compatible"), |t| Ok(t.to_owned()));
    Board {
        family: compatible.as_deref().map_or("unknown", family),
        model: scan.value("model", &format!("{TREE}/model"), parse::name).ok(),
        l4t: scan.value("l4t", "etc/nv_tegra_release", l4t).ok(),
        kernel: scan.value("kernel", "proc/sys/kernel/osrelease", parse::name).ok(),
        boot_id: scan.value("boot_id", "proc/sys/kernel/random/boot_id", parse::name).ok(),
        raspberry_pi: compatible.is_ok_and(|t| t.split('\0').any(|entry| entry.starts_with("raspberrypi,"))),
    }
}

/// The family from NUL-separated `compatible` entries. Every board with a device tree that is no Tegra counts as
/// generic ARM: the agent is not built for other machines that have one.
pub fn family(compatible: &str) -> &'static str {
    let chip = compatible.split('\0').find_map(|entry| match entry.strip_prefix("nvidia,tegra")? {
        "210" => Some("t210"),
        "186" => Some("t186"),
        "194" => Some("t194"),
        // L4T 35 writes `23x`.
        "234" | "23x" => Some("t234"),
        "264" => Some("t264"),
        _ => None,
    });
    let vendor_and_name =
        |entry: &str| entry.split_once(',').is_some_and(|(v, n)| !v.is_empty() && !n.is_empty());
    chip.unwrap_or(if compatible.split('\0').any(vendor_and_name) { "generic-arm" } else { "unknown" })
}

/// `36.4.0` from `# R36 (release), REVISION: 4.0, GCID: ...`.
///
/// # Errors
/// Anything else.
pub fn l4t(text: &str) -> Result<String, Absent> {
    let line = text.lines().next().unwrap_or_default();
    let release = line.strip_prefix("# R").and_then(|rest| rest.split_once(' ')).map(|(n, _)| n);
    let revision = line.split_once("REVISION: ").and_then(|(_, rest)| rest.split_once(',')).map(|(n, _)| n);
    let numbers = |text: &&str| {
        text.len() <= 16 && text.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    match (release.filter(numbers), revision.filter(numbers)) {
        (Some(release), Some(revision)) => Ok(format!("{release}.{revision}")),
        _ => Err(Absent::Malformed),
    }
}

/// NVIDIA's name of the JetPack that an L4T release belongs to (developer.nvidia.com/embedded/jetpack-archive); a
/// release that is newer than this table has none.
pub fn jetpack(l4t: &str) -> Option<&'static str> {
    Some(match l4t {
        "32.1.0" => "4.2",
        "32.2.0" => "4.2.1",
        "32.2.1" => "4.2.2",
        "32.2.3" => "4.2.3",
        "32.3.1" => "4.3",
        "32.4.3" => "4.4",
        "32.4.4" => "4.4.1",
        "32.5.0" => "4.5",
        "32.5.1" | "32.5.2" => "4.5.1",
        "32.6.1" => "4.6",
        "32.7.1" => "4.6.1",
        "32.7.2" => "4.6.2",
        "32.7.3" => "4.6.3",
        "32.7.4" => "4.6.4",
        "32.7.5" => "4.6.5",
        "32.7.6" => "4.6.6",
        "35.1.0" => "5.0.2",
        "35.2.1" => "5.1",
        "35.3.1" => "5.1.1",
        "35.4.1" => "5.1.2",
        "35.5.0" => "5.1.3",
        "35.6.0" => "5.1.4",
        "35.6.1" => "5.1.5",
        "36.3.0" => "6.0",
        "36.4.0" => "6.1",
        "36.4.3" => "6.2",
        "36.4.4" => "6.2.1",
        "38.2.0" => "7.0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        for (text, want) in [
            ("nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,jetson-nano\0nvidia,tegra210\0", "t210"),
            ("nvidia,p3737-0000+p3701-0000\0nvidia,tegra23x\0", "t234"),
            ("nvidia,tegra264\0", "t264"),
            ("nvidia,tegra999\0", "generic-arm"),
            ("raspberrypi,4-model-b\0brcm,bcm2711\0", "generic-arm"),
            ("", "unknown"),
            ("\0\0", "unknown"),
            ("?", "unknown"),
        ] {
            assert_eq!(family(text), want, "{text:?}");
        }
    }

    #[test]
    fn l4t_releases() {
        for (text, want) in [
            ("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n", Ok("36.4.0")),
            ("# R32 (release), REVISION: 7.1, GCID", Ok("32.7.1")),
            ("# R36 (release), REVISION: 4.", Err(Absent::Malformed)),
            ("# R36 (release), REVISION: 4., GCID", Err(Absent::Malformed)),
            ("# Rx (release), REVISION: 4.0, GCID", Err(Absent::Malformed)),
            ("", Err(Absent::Malformed)),
        ] {
            assert_eq!(l4t(text), want.map(str::to_owned), "{text:?}");
        }
        assert_eq!(jetpack("36.4.3"), Some("6.2"));
        assert_eq!(jetpack("99.0.0"), None);
    }
}
