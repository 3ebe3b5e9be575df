//! Devices of /sys/class/hwmon. Their numbers move between boots, so they are known by `name`.
//! Format: Documentation/hwmon/sysfs-interface.rst.

use super::parse;
use super::scan::Scan;

/// Where they are.
pub const CLASS: &str = "sys/class/hwmon";
/// Devices that are looked at.
const DEVICES_MAX: usize = 64;

/// All devices, in the order of their numbers.
#[derive(Debug, Default)]
pub struct Hwmons {
    /// Those with a name.
    pub devices: Vec<Hwmon>,
    /// Did all say their names? A sum over devices is none where one may be missing.
    pub complete: bool,
}

/// One device.
#[derive(Debug)]
pub struct Hwmon {
    /// Directory, below the root.
    pub dir: String,
    /// What its driver calls it.
    pub name: String,
}

impl Hwmons {
    /// Those called `name`.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Hwmon> {
        self.devices.iter().filter(move |device| device.name == name)
    }
}

/// Looks for them.
pub fn read(scan: &Scan) -> Hwmons {
    let mut found = Hwmons { devices: Vec::new(), complete: true };
    for n in scan.root().indices(CLASS, "hwmon").into_iter().take(DEVICES_MAX) {
        let dir = format!("{CLASS}/hwmon{n}");
        match scan.look(&format!("{dir}/name"), parse::name) {
            // Chargers on USB-C: no part of the board.
            Ok(name) if name.starts_with("ucsi-source-psy-") => {}
            Ok(name) => found.devices.push(Hwmon { dir, name }),
            Err(why) => {
                scan.note(format_args!("hwmon.hwmon{n}"), &format!("{dir}/name"), Some(&why));
                found.complete = false;
            }
        }
    }
    found
}
