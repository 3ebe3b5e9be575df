//! Memory, swap and zram.
//! Formats: proc_meminfo(5); Documentation/admin-guide/blockdev/zram.rst (`mm_stat`).

use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

/// NVIDIA's list of what the GPU has mapped, on L4T 36; only root may read it.
const NVMAP: &str = "sys/kernel/debug/nvmap/iovmm/maps";

/// Memory in KiB. 0 swap is a figure: there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All there is.
    pub total: Option<u64>,
    /// What could be used without swapping.
    pub available: Option<u64>,
    /// Swap, zram included.
    pub swap_total: Option<u64>,
    /// Swap that is free.
    pub swap_free: Option<u64>,
    /// What the GPU has mapped of the memory it shares (L4T 32).
    pub nvmap_used: Option<u64>,
    /// The same from debugfs, where we may read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvmap_debugfs_root_only: Option<u64>,
}

/// All zram disks together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Zram {
    /// Disks that have a size.
    pub disks: u32,
    /// What was put in.
    pub orig_bytes: u64,
    /// What it takes.
    pub used_bytes: u64,
}

/// Reads memory.
pub fn read(scan: &Scan, tegra: bool) -> Memory {
    let all = scan.table("mem_kib", "proc/meminfo", |text| Ok(text.to_owned()));
    let line = |field: &str, name: &str| {
        let kib = all.as_ref().map_err(Clone::clone).and_then(|all| kib(all, name));
        scan.note(format_args!("mem_kib.{field}"), "proc/meminfo", kib.as_ref().err());
        kib.ok()
    };
    Memory {
        total: line("total", "MemTotal").filter(|kib| *kib > 0),
        available: line("available", "MemAvailable"),
        swap_total: line("swap_total", "SwapTotal"),
        swap_free: line("swap_free", "SwapFree"),
        nvmap_used: line("nvmap_used", "NvMapMemUsed"),
        nvmap_debugfs_root_only: tegra
            .then(|| scan.table("mem_kib.nvmap_debugfs_root_only", NVMAP, nvmap_total).ok())
            .flatten(),
    }
}

/// Reads zram; none when there is no such disk, or one cannot be read.
pub fn read_zram(scan: &Scan) -> Option<Zram> {
    let mut sum = Zram { disks: 0, orig_bytes: 0, used_bytes: 0 };
    for n in scan.root().indices("sys/block", "zram") {
        let file = |what: &str| format!("sys/block/zram{n}/{what}");
        // A disk without a size is not set up.
        let size = scan.value("zram", &file("disksize"), parse::count);
        if size.ok()? == 0 {
            continue;
        }
        let (orig, used) = scan.value("zram", &file("mm_stat"), mm_stat).ok()?;
        sum.disks += 1;
        sum.orig_bytes = sum.orig_bytes.checked_add(orig)?;
        sum.used_bytes = sum.used_bytes.checked_add(used)?;
    }
    scan.note("zram", "sys/block/zram*/mm_stat", None);
    scan.note_empty("zram", sum.disks == 0, "sys/block", "no zram disk with a size");
    (sum.disks > 0).then_some(sum)
}

/// The line `NAME:   123 kB`.
///
/// # Errors
/// When there is no such line, or its unit is missing.
pub fn kib(meminfo: &str, name: &str) -> Result<u64, Absent> {
    let mut lines = meminfo.lines().filter_map(|line| line.split_once(':'));
    let (_, rest) = lines.find(|(n, _)| *n == name).ok_or(Absent::Says("no such line"))?;
    parse::count(rest.strip_suffix(" kB").ok_or(Absent::Malformed)?)
}

/// `orig_data_size compr_data_size mem_used_total ...`: the first and the third.
///
/// # Errors
/// When there are fewer than the seven that every kernel since 4.7 writes.
pub fn mm_stat(text: &str) -> Result<(u64, u64), Absent> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    match fields[..] {
        [orig, _, used, _, _, _, _, ..] => Ok((parse::count(orig)?, parse::count(used)?)),
        _ => Err(Absent::Malformed),
    }
}

/// The last line, `total   1331200K` (nvmap_dev.c of nv-oot r36).
///
/// # Errors
/// Anything else.
pub fn nvmap_total(text: &str) -> Result<u64, Absent> {
    let rest = text.lines().next_back().and_then(|line| line.strip_prefix("total"));
    parse::count(rest.and_then(|rest| rest.strip_suffix('K')).ok_or(Absent::Malformed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_only_with_its_unit() {
        let text = "MemTotal:        7803104 kB\nSwapTotal:             0 kB\nMemFree:  18446744073709551616 kB\n\
                    Bad:   x kB\nHugePages_Total:       0\nMemAvailable:    17";
        for (name, want) in [
            ("MemTotal", Ok(7_803_104)),
            ("SwapTotal", Ok(0)),
            ("MemFree", Err(Absent::OutOfRange)),
            ("Bad", Err(Absent::Malformed)),
            ("MemAvailable", Err(Absent::Malformed)),
            ("HugePages_Total", Err(Absent::Malformed)),
            ("NvMapMemUsed", Err(Absent::Says("no such line"))),
        ] {
            assert_eq!(kib(text, name), want, "{name}");
        }
    }

    #[test]
    fn zram_and_nvmap() {
        assert_eq!(
            mm_stat("152043520 51380224 53477376 0 62914560 812 0 0 0\n"),
            Ok((152_043_520, 53_477_376))
        );
        for text in ["", "1 2 3", "1 2 x 4 5 6 7", "1 2 -3 4 5 6 7"] {
            assert!(mm_stat(text).is_err(), "{text:?}");
        }
        assert_eq!(nvmap_total("CLIENT\nuser  x  1  5K\ntotal      1331200K\n"), Ok(1_331_200));
        for text in ["", "total", "total 5", "user  x  1  5K\n"] {
            assert!(nvmap_total(text).is_err(), "{text:?}");
        }
    }
}
