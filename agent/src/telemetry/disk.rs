//! Whole disks: counters, and wear of eMMC.
//! Formats: Documentation/admin-guide/iostats.rst (/proc/diskstats has 11, 15 or 17 counters), Documentation/mmc/
//! mmc-dev-attrs.rst (`type`, `life_time`, `pre_eol_info`; JEDEC JESD84-B51, registers 267 to 269).

use super::named::Named;
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

/// /proc/diskstats counts in these, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;
/// Disks that are looked at.
const DISKS_MAX: usize = 32;

/// What a disk is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Storage {
    /// `MMC` (eMMC), `SD`, `nvme`, `disk`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Life used of its two kinds of memory, upper bound in steps of 10 %; 110 is beyond the maker's estimate. SD cards
    /// have none.
    pub life_used_pct: Option<[Option<u32>; 2]>,
    /// Reserve blocks: `normal`, `warning` (80 % used), `urgent`.
    pub pre_eol: Option<&'static str>,
}

/// Since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads that ended.
    pub reads: u64,
    /// Writes that ended.
    pub writes: u64,
    /// Milliseconds in which at least one was under way.
    pub io_ms: u64,
}

/// Reads the counters of whole disks; none when /proc/diskstats is not there or not in order.
pub fn read_counters(scan: &Scan) -> Option<Named<Counters>> {
    scan.table("disks", "proc/diskstats", diskstats).ok()
}

/// Reads what the disks are.
pub fn read(scan: &Scan, counters: Option<&Named<Counters>>) -> Named<Storage> {
    let mut names = scan.root().list("sys/block");
    names.extend(counters.into_iter().flat_map(Named::iter).map(|(name, _)| name.to_owned()));
    names.retain(|name| is_whole(name));
    names.sort_unstable();
    names.dedup();
    names.truncate(DISKS_MAX);
    scan.note_empty("storage", names.is_empty(), "sys/block", "no whole disk");
    let mut found = Named::default();
    names.into_iter().for_each(|name| found.insert(name.clone(), storage(scan, &name)));
    found
}

fn storage(scan: &Scan, name: &str) -> Storage {
    let kind = |kind: &str| {
        let why = Absent::Says("only eMMC says");
        scan.note(format_args!("storage.{name}"), "the disk's name", Some(&why));
        scan.note(format_args!("storage.{name}.type"), "the disk's name", None);
        Storage { kind: Some(kind.to_owned()), ..Storage::default() }
    };
    if name.starts_with("nvme") {
        return kind("nvme");
    }
    if !name.starts_with("mmcblk") {
        return kind("disk");
    }
    let file = |what: &str| format!("sys/block/{name}/device/{what}");
    let field = |what: &str| format!("storage.{name}.{what}");
    Storage {
        kind: scan.value(field("type"), &file("type"), parse::name).ok(),
        life_used_pct: scan.value(field("life_used_pct"), &file("life_time"), life_time).ok(),
        pre_eol: scan.value(field("pre_eol"), &file("pre_eol_info"), pre_eol).ok(),
    }
}

/// By its name: a disk, and neither a partition, a boot area of an eMMC, nor something built from other disks.
pub fn is_whole(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = name.strip_prefix("mmcblk") {
        return digits(rest);
    }
    if let Some(rest) = name.strip_prefix("nvme") {
        return rest.split_once('n').is_some_and(|(controller, space)| digits(controller) && digits(space));
    }
    ["sd", "vd", "xvd", "hd"].iter().any(|kind| {
        name.strip_prefix(kind)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase()))
    })
}

/// `major minor name` and 11 counters or more, a line a device.
///
/// # Errors
/// When the line of a whole disk is not in order.
pub fn diskstats(text: &str) -> Result<Named<Counters>, Absent> {
    let mut found = Named::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, name, ref counters @ ..] = fields[..] else { return Err(Absent::Malformed) };
        if !is_whole(name) || found.len() == DISKS_MAX {
            continue;
        }
        let [reads, _, sectors_read, _, writes, _, sectors_written, _, _, io_ms, _, ..] = counters else {
            return Err(Absent::Malformed);
        };
        let bytes = |sectors| parse::count(sectors)?.checked_mul(SECTOR_BYTES).ok_or(Absent::OutOfRange);
        let counters = Counters {
            read_bytes: bytes(sectors_read)?,
            write_bytes: bytes(sectors_written)?,
            reads: parse::count(reads)?,
            writes: parse::count(writes)?,
            io_ms: parse::count(io_ms)?,
        };
        found.insert(name.to_owned(), counters);
    }
    if found.is_empty() { Err(Absent::Says("no whole disk is listed")) } else { Ok(found) }
}

/// What all disks together did between two readings; none when one came, went or was reset.
pub fn since(before: &Named<Counters>, after: &Named<Counters>) -> Option<Counters> {
    if !before.iter().map(|(name, _)| name).eq(after.iter().map(|(name, _)| name)) {
        return None;
    }
    before.iter().zip(after.iter()).map(|((_, before), (_, after))| (before, after)).try_fold(
        Counters::default(),
        |sum, (before, after)| {
            let add = |sum: u64, before: u64, after: u64| sum.checked_add(after.checked_sub(before)?);
            Some(Counters {
                read_bytes: add(sum.read_bytes, before.read_bytes, after.read_bytes)?,
                write_bytes: add(sum.write_bytes, before.write_bytes, after.write_bytes)?,
                reads: add(sum.reads, before.reads, after.reads)?,
                writes: add(sum.writes, before.writes, after.writes)?,
                io_ms: add(sum.io_ms, before.io_ms, after.io_ms)?,
            })
        },
    )
}

/// `0x02 0x02`: n means (n-1)*10 to n*10 % of the life used, 0 that the card does not say.
///
/// # Errors
/// Anything else.
pub fn life_time(text: &str) -> Result<[Option<u32>; 2], Absent> {
    let used = |text: &str| match parse::hex(text.strip_prefix("0x").ok_or(Absent::Malformed)?)? {
        0 => Ok(None),
        n @ 1..=11 => Ok(Some(n as u32 * 10)),
        _ => Err(Absent::OutOfRange),
    };
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [a, b] => match [used(a)?, used(b)?] {
            [None, None] => Err(Absent::Says("the card does not say")),
            both => Ok(both),
        },
        _ => Err(Absent::Malformed),
    }
}

/// `0x01` and so on.
///
/// # Errors
/// Anything else.
pub fn pre_eol(text: &str) -> Result<&'static str, Absent> {
    match parse::hex(text)? {
        0 => Err(Absent::Says("the card does not say")),
        1 => Ok("normal"),
        2 => Ok("warning"),
        3 => Ok("urgent"),
        _ => Err(Absent::OutOfRange),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_disks_by_name() {
        for name in ["mmcblk0", "nvme0n1", "nvme12n3", "sda", "sdab", "vdb"] {
            assert!(is_whole(name), "{name}");
        }
        for name in [
            "mmcblk0p1",
            "mmcblk0boot0",
            "mmcblk0rpmb",
            "nvme0n1p1",
            "nvme0c0n1",
            "sda1",
            "loop0",
            "zram0",
            "dm-0",
            "",
        ] {
            assert!(!is_whole(name), "{name}");
        }
    }

    #[test]
    fn diskstats_of_three_ages() {
        let eleven = "179 0 mmcblk0 41230 10221 2811202 51230 20110 30211 1422310 90122 0 61230 141352";
        let want = Counters {
            read_bytes: 2_811_202 * 512,
            write_bytes: 1_422_310 * 512,
            reads: 41230,
            writes: 20110,
            io_ms: 61230,
        };
        for more in ["", " 0 0 0 0", " 0 0 0 0 7 8"] {
            let text = format!(" {eleven}{more}\n 179 1 mmcblk0p1 1 2 3\n");
            assert_eq!(diskstats(&text).unwrap().get("mmcblk0"), Some(&want));
        }
        for text in [
            "",
            "179 0",
            "179 1 mmcblk0p1 1 2 3 4 5 6 7 8 9 10 11\n",
            "179 0 mmcblk0 1 2 3 4 5 6 7 8 9 10\n",
            "179 0 mmcblk0 1 2 x 4 5 6 7 8 9 10 11\n",
            "179 0 mmcblk0 1 2 9223372036854775807 4 5 6 7 8 9 10 11\n",
        ] {
            assert!(diskstats(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn wear() {
        assert_eq!(life_time("0x02 0x01\n"), Ok([Some(20), Some(10)]));
        assert_eq!(life_time("0x00 0x0b\n"), Ok([None, Some(110)]));
        for text in ["", "0x02", "0x00 0x00", "0x0c 0x01", "2 2", "0x 0x"] {
            assert!(life_time(text).is_err(), "{text:?}");
        }
        assert_eq!(pre_eol("0x02\n"), Ok("warning"));
        assert!(pre_eol("0x00").is_err() && pre_eol("0x4").is_err());
    }
}
