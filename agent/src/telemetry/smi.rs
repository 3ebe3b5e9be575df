//! `nvidia-smi`, for boards where the helper is not installed or its library does not load.
//! Format: `nvidia-smi --help-query-gpu`; one GPU a line, columns separated by comma and blank, `[N/A]` or
//! `[Not Supported]` where there is no figure.

use super::parse;
use super::sysroot::Absent;
use dunlin_wire::nvml::{GPUS_MAX, Gpu, metric};

/// What it is asked. The name is last: it may hold anything.
pub const ARGS: [&str; 2] = [
    "--query-gpu=index,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu,clocks.sm,mig.mode.current,name",
    "--format=csv,noheader,nounits",
];

/// Its GPUs.
///
/// # Errors
/// What is no such table: an error message of the program, for example.
pub fn parse(text: &str) -> Result<Vec<Gpu>, Absent> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let gpus = lines.take(GPUS_MAX).map(row).collect::<Result<Vec<_>, _>>()?;
    if gpus.is_empty() { Err(Absent::Malformed) } else { Ok(gpus) }
}

fn row(line: &str) -> Result<Gpu, Absent> {
    let cells: Vec<&str> = line.splitn(9, ',').map(str::trim).collect();
    let [index, busy, used, total, power, temperature, clock, mig, name] = cells[..] else {
        return Err(Absent::Malformed);
    };
    parse::count(index)?;
    let within = |text, high| parse::within(text, 0, high).ok();
    // Memory of a partitioned GPU is its instances', which are not told here.
    let memory = within(used, 1 << 32).zip(within(total, 1 << 32)).filter(|_| mig != "Enabled");
    let mut gpu = Gpu {
        unit: index.to_owned(),
        name: parse::name(name).ok(),
        busy_permille: within(busy, 100).map(|percent| percent as u16 * 10),
        memory_mib: memory.map(|(used, total)| (used as u64, total as u64)),
        power_mw: watts(power),
        temperature_c: within(temperature, 200).map(|c| c as u16),
        clock_mhz: within(clock, 1 << 20).filter(|mhz| *mhz > 0).map(|mhz| mhz as u32),
        ..Gpu::default()
    };
    for (bit, is_there) in [
        (metric::BUSY, gpu.busy_permille.is_some()),
        (metric::MEMORY, gpu.memory_mib.is_some()),
        (metric::POWER, gpu.power_mw.is_some()),
        (metric::TEMPERATURE, gpu.temperature_c.is_some()),
        (metric::CLOCK, gpu.clock_mhz.is_some()),
    ] {
        gpu.supported |= if is_there { bit } else { 0 };
    }
    Ok(gpu)
}

/// `123.45` W, in mW.
fn watts(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let whole = parse::within(whole, 0, 100_000).ok()?;
    let is_fraction = !rest.is_empty() && rest.len() <= 3 && rest.bytes().all(|b| b.is_ascii_digit());
    let fraction: i64 = is_fraction.then(|| format!("{rest:0<3}").parse().ok())??;
    u32::try_from(whole * 1000 + fraction).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_gpus_and_what_is_no_figure_is_unknown() {
        let text = "0, 41, 3072, 8192, 123.45, 51, 1980, [N/A], NVIDIA A, B\n\
                    1, [N/A], 5, 81559, [Not Supported], 34, 0, Enabled, NVIDIA H100 PCIe\n\
                    2, [Unknown Error], 9, 8, -1, 999, [GPU is lost], Disabled, X\n";
        let gpus = parse(text).unwrap();
        let first = Gpu {
            unit: "0".into(),
            name: Some("NVIDIA A, B".into()),
            busy_permille: Some(410),
            memory_mib: Some((3072, 8192)),
            power_mw: Some(123_450),
            temperature_c: Some(51),
            clock_mhz: Some(1980),
            supported: metric::BUSY | metric::MEMORY | metric::POWER | metric::TEMPERATURE | metric::CLOCK,
            ..Gpu::default()
        };
        assert_eq!(gpus[0], first);
        let second = Gpu {
            unit: "1".into(),
            name: Some("NVIDIA H100 PCIe".into()),
            temperature_c: Some(34),
            supported: metric::TEMPERATURE,
            ..Gpu::default()
        };
        assert_eq!(gpus[1], second);
        assert_eq!((gpus[2].busy_permille, gpus[2].power_mw, gpus[2].temperature_c), (None, None, None));
    }

    #[test]
    fn what_is_no_table_is_no_gpu() {
        for text in [
            "",
            "\n\n",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
            "No devices were found\n",
            "x, 41, 3072, 8192, 123.45, 51, 1980, [N/A], name\n",
            "0, 41, 3072\n",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(watts("1.2345"), None);
        assert_eq!(watts("1."), None);
        assert_eq!(watts("7"), Some(7000));
        assert_eq!(watts("7.5"), Some(7500));
    }
}
