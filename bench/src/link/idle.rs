//! IP bytes of an agent that has nothing to do, both ways, from a while after it connected; a line per minute.

use super::Options;
use super::report::{Report, Unit};
use super::rig::Rig;
use crate::stats::Sample;
use anyhow::Result;
use dunlin_hub::clock::micros;
use std::time::Duration;

/// Path discovery and what follows a connection is over by then.
const SETTLE: Duration = Duration::from_secs(15);

/// Watches for as long as was asked for.
pub(super) fn run(options: &Options, rig: &mut Rig) -> Result<Report> {
    let (name, _) = options.link();
    let nat = options.nat.map_or("no NAT".into(), |nat| format!("a NAT of {} s", nat.as_secs()));
    let profile = options.profile.as_str();
    let telemetry = if options.telemetry { "on" } else { "off" };
    let what = format!("an idle agent ({profile}, telemetry {telemetry}) on {name}, {nat}: IP bytes");
    let mut report = Report::new(what, Unit::Bytes);
    let start = rig.passed();
    rig.enrol(profile)?;
    rig.start_agent()?;
    rig.wait_agent()?;
    std::thread::sleep(SETTLE);
    let (first, began) = (rig.passed(), micros());
    let (classes, cpu_us) = (rig.classes()?, rig.agent_cpu_us()?);
    let mut minutes = Sample::new();
    let mut left = options.seconds;
    let mut before = first;
    while left > 0 {
        let step = left.min(60);
        left -= step;
        std::thread::sleep(Duration::from_secs(step));
        let now = rig.passed();
        let [packets, up, down] = [0, 1, 2].map(|i| now[i] - before[i]);
        eprintln!("idle: {step} s: {packets} packets, {up} bytes from the board, {down} from the hub");
        if step == 60 {
            minutes.push(up + down);
        }
        before = now;
    }
    let hours = (micros() - began) as f64 / 3.6e9;
    let per_hour = [0, 1, 2].map(|i| ((before[i] - first[i]) as f64 / hours).round() as u64);
    for (name, value) in [
        ("an hour, both ways", per_hour[1] + per_hour[2]),
        ("an hour, from the board", per_hour[1]),
        ("an hour, from the hub", per_hour[2]),
        ("an hour, packets", per_hour[0]),
    ] {
        let mut sample = Sample::new();
        sample.push(value);
        report.row(name, sample, None, None);
    }
    if minutes.count() > 0 {
        report.row("a minute, both ways", minutes, None, None);
    }
    let seconds = hours * 3600.0;
    for (class, bytes) in rig.classes()? {
        let bytes = bytes.saturating_sub(classes.get(&class).copied().unwrap_or(0));
        let a_day = (bytes as f64 / hours * 24.0).round();
        report.note(format!("{class}: {bytes} bytes, which would be {a_day} a day"));
    }
    let cpu_us = rig.agent_cpu_us()? - cpu_us;
    let share = cpu_us as f64 / 1e4 / seconds;
    report.note(format!(
        "the agent used {} ms of CPU in {seconds:.0} s: {share:.3} % of a core",
        cpu_us / 1000
    ));
    let connect: u64 = [1, 2].map(|i| first[i] - start[i]).iter().sum();
    report.note(format!(
        "watched for {} s; before that joining, connecting and the first {} s took {connect} bytes",
        options.seconds,
        SETTLE.as_secs()
    ));
    Ok(report)
}
