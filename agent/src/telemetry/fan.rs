//! The fan. Formats: Documentation/hwmon/pwm-fan.rst (`pwmfan`), L4T 34 and later have a `pwm_tach` device beside it;
//! L4T 32 has /sys/devices/pwm-fan.

use super::hwmon::Hwmons;
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

const L4T_32: &str = "sys/devices/pwm-fan";
/// What pwm counts to (Documentation/hwmon/sysfs-interface.rst).
const PWM_MAX: i64 = 255;
const RPM_MAX: i64 = 100_000;

/// The board's fan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fan {
    /// Which drivers.
    pub source: &'static str,
    /// What it is driven with.
    pub pwm: Option<u32>,
    /// What that counts to.
    pub pwm_max: u32,
    /// Measured; none without a tachometer.
    pub rpm: Option<u32>,
}

/// Reads it; nothing when the board has none.
pub fn read(scan: &Scan, hwmons: &Hwmons) -> Option<Fan> {
    let pwm_max = PWM_MAX as u32;
    if let Some(fan) = hwmons.named("pwmfan").next() {
        let value = scan.value("fan.pwm", &format!("{}/pwm1", fan.dir), pwm).ok();
        let tach = hwmons.named("pwm_tach").next();
        let path = tach.map_or(format!("{}/fan1_input", fan.dir), |tach| format!("{}/rpm", tach.dir));
        scan.note("fan", &fan.dir, None);
        let source = if tach.is_some() { "pwmfan+pwm_tach" } else { "pwmfan" };
        return Some(Fan { source, pwm: value, pwm_max, rpm: scan.value("fan.rpm", &path, rpm).ok() });
    }
    let file = |what: &str| format!("{L4T_32}/{what}");
    let value = scan
        .value("fan.pwm", &file("cur_pwm"), pwm)
        .or_else(|_| scan.value("fan.pwm", &file("target_pwm"), pwm));
    let turns = scan.value("fan.rpm", &file("rpm_measured"), rpm_or_nothing);
    if value.is_err() && turns.is_err() {
        scan.note("fan", L4T_32, Some(&Absent::Missing));
        return None;
    }
    scan.note("fan", L4T_32, None);
    Some(Fan { source: "pwm-fan", pwm: value.ok(), pwm_max, rpm: turns.ok() })
}

fn pwm(text: &str) -> Result<u32, Absent> {
    parse::within(text, 0, PWM_MAX).map(|n| n as u32)
}

fn rpm(text: &str) -> Result<u32, Absent> {
    parse::within(text, 0, RPM_MAX).map(|n| n as u32)
}

/// That driver says 0 for a fan without a tachometer, whatever it does.
fn rpm_or_nothing(text: &str) -> Result<u32, Absent> {
    match rpm(text)? {
        0 => Err(Absent::Says("0 is also what a fan without a tachometer gives")),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_still_is_known_only_with_a_tachometer() {
        assert_eq!(rpm("0\n"), Ok(0));
        assert!(rpm_or_nothing("0\n").is_err());
        assert_eq!(rpm_or_nothing("1786\n"), Ok(1786));
        assert_eq!(pwm("256"), Err(Absent::OutOfRange));
        assert_eq!(pwm("-1"), Err(Absent::OutOfRange));
    }
}
