//! Raspberry Pi: what its firmware holds back. Formats: `get_throttled` of the Raspberry Pi documentation (vcgencmd),
//! drivers/hwmon/raspberrypi-hwmon.c (`rpi_volt`, `in0_lcrit_alarm`: under-voltage within the last poll of 2 s).

use super::hwmon::{self, Hwmons};
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

const PLATFORM: &str = "sys/devices/platform";

/// The firmware's bits: now, and since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firmware {
    /// All bits, in hex.
    pub get_throttled: String,
    /// Bit 0.
    pub undervoltage_now: bool,
    /// Bit 1.
    pub freq_capped_now: bool,
    /// Bit 2.
    pub throttled_now: bool,
    /// Bit 3: the soft temperature limit.
    pub soft_temp_now: bool,
    /// Bit 16.
    pub undervoltage_ever: bool,
    /// Bit 17.
    pub freq_capped_ever: bool,
    /// Bit 18.
    pub throttled_ever: bool,
    /// Bit 19.
    pub soft_temp_ever: bool,
}

/// Reads the firmware's bits; newer kernels have no such file.
pub fn read(scan: &Scan) -> Option<Firmware> {
    let root = scan.root();
    let socs = root.list(PLATFORM).into_iter().filter(|name| *name == "soc" || name.starts_with("soc@"));
    scan.note("rpi", &format!("{PLATFORM}/soc*/soc*:firmware/get_throttled"), Some(&Absent::Missing));
    socs.filter_map(|soc| {
        let path = format!("{PLATFORM}/{soc}/{soc}:firmware/get_throttled");
        scan.value("rpi", &path, parse::hex).ok().map(firmware)
    })
    .next()
}

/// Is the supply's voltage low? `rpi_volt` says it in kernels of all ages, the firmware's bit where it is.
pub fn undervoltage(scan: &Scan, hwmons: &Hwmons, firmware: Option<&Firmware>) -> Option<bool> {
    let alarm = hwmons.named("rpi_volt").next().and_then(|device| {
        scan.value("undervoltage", &format!("{}/in0_lcrit_alarm", device.dir), parse::flag).ok()
    });
    let found = alarm.or(firmware.map(|f| f.undervoltage_now));
    scan.note_empty("undervoltage", found.is_none(), hwmon::CLASS, "no rpi_volt with an alarm");
    if alarm.is_none() && found.is_some() {
        scan.note("undervoltage", "rpi.undervoltage_now", None);
    }
    found
}

/// The bits by name.
pub fn firmware(bits: u64) -> Firmware {
    let bit = |n: u32| bits >> n & 1 == 1;
    Firmware {
        get_throttled: format!("{bits:#x}"),
        undervoltage_now: bit(0),
        freq_capped_now: bit(1),
        throttled_now: bit(2),
        soft_temp_now: bit(3),
        undervoltage_ever: bit(16),
        freq_capped_ever: bit(17),
        throttled_ever: bit(18),
        soft_temp_ever: bit(19),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_has_its_name() {
        let on = |bits| {
            let f = firmware(bits);
            [
                f.undervoltage_now,
                f.freq_capped_now,
                f.throttled_now,
                f.soft_temp_now,
                f.undervoltage_ever,
                f.freq_capped_ever,
                f.throttled_ever,
                f.soft_temp_ever,
            ]
            .map(u8::from)
        };
        assert_eq!(on(0x50005), [1, 0, 1, 0, 1, 0, 1, 0]);
        assert_eq!(on(0xa000a), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(on(0), [0; 8]);
        assert_eq!(firmware(0x50005).get_throttled, "0x50005");
        assert_eq!(firmware(0).get_throttled, "0x0");
    }
}
