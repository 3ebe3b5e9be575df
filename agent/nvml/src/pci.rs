//! Which GPUs of NVIDIA's the kernel has powered off. Asking the driver about one of them would wake it.
//! Format: Documentation/ABI/testing/sysfs-devices-power, `runtime_status`.

use std::io::Read;
use std::path::Path;

const DEVICES: &str = "sys/bus/pci/devices";

/// Addresses of NVIDIA's display devices, as `0000:01:00.0`, and whether each is powered off.
pub fn gpus(root: &Path) -> Vec<(String, bool)> {
    let entries = std::fs::read_dir(root.join(DEVICES)).into_iter().flatten().flatten().take(1024);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is = |name: &str, file: &str, start: &str| text(root, name, file).starts_with(start);
    let mut found: Vec<_> = names
        .filter(|name| is(name, "vendor", "0x10de") && is(name, "class", "0x03"))
        .map(|name| {
            let off = is_suspended(root, &name);
            (name, off)
        })
        .collect();
    found.sort();
    found
}

/// Whether the device at this address is powered off.
pub fn is_suspended(root: &Path, address: &str) -> bool {
    text(root, address, "power/runtime_status").trim() == "suspended"
}

fn text(root: &Path, address: &str, file: &str) -> String {
    let mut text = String::new();
    let path = root.join(DEVICES).join(address).join(file);
    let _ = std::fs::File::open(path).and_then(|file| file.take(64).read_to_string(&mut text));
    text
}
