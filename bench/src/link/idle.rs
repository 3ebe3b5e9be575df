//! IP bytes of an agent that has nothing to do, both ways, from a while after it connected; a line per minute. Beside it, at
//! the same time on a link of its own, an MQTT client that waits for jobs.

use super::Options;
use super::report::{Report, Unit};
use super::rig::Rig;
use super::{mqtt, passed};
use crate::peers::mosquitto::KEEP_ALIVE_S;
use crate::record::Goal;
use crate::stats::Sample;
use anyhow::Result;
use dunlin_hub::clock::micros;
use dunlin_wire::message::Profile;
use std::time::Duration;

/// Path discovery and what follows a connection is over by then.
const SETTLE: Duration = Duration::from_secs(15);

/// The idle client that it stands beside, in rows.
const PEER: &str = "mosquitto, an hour";

/// Watches for as long as was asked for.
pub(super) fn run(options: &Options, rig: &mut Rig) -> Result<Report> {
    let (name, link) = options.link();
    let nat = options.nat.map_or("no NAT".into(), |nat| format!("a NAT of {} s", nat.as_secs()));
    let profile = options.profile.as_str();
    let telemetry = if options.telemetry { "on" } else { "off" };
    let what = format!("an idle agent ({profile}, telemetry {telemetry}) on {name}, {nat}: IP bytes");
    let mut report = Report::new(what, Unit::Bytes);
    let start = passed(&rig.wan);
    let broker = mqtt::start(link)?;
    if let Some(broker) = &broker {
        broker.wait()?;
    }
    rig.enrol(profile)?;
    rig.start_agent()?;
    rig.wait_agent()?;
    std::thread::sleep(SETTLE);
    let (first, began) = (passed(&rig.wan), micros());
    let theirs = broker.as_ref().map(mqtt::bytes).transpose()?;
    let (classes, cpu_us) = (rig.classes()?, rig.agent_cpu_us()?);
    let mut minutes = Sample::new();
    let mut left = options.seconds;
    let mut before = first;
    while left > 0 {
        let step = left.min(60);
        left -= step;
        std::thread::sleep(Duration::from_secs(step));
        let now = passed(&rig.wan);
        let [packets, up, down] = [0, 1, 2].map(|i| now[i] - before[i]);
        eprintln!("idle: {step} s: {packets} packets, {up} bytes from the board, {down} from the hub");
        if step == 60 {
            minutes.push(up + down);
        }
        before = now;
    }
    let hours = (micros() - began) as f64 / 3.6e9;
    an_hour(&mut report, "an hour", [first, before], hours, options.profile != Profile::Lan);
    if let (Some(first), Some(broker)) = (theirs, &broker) {
        an_hour(&mut report, PEER, [first, mqtt::bytes(broker)?], hours, false);
    }
    report.note(format!(
        "{}; a ping every {KEEP_ALIVE_S} s, as its own clients have it",
        mqtt::note(broker.as_ref())
    ));
    if minutes.count() > 0 {
        report.row("a minute, both ways", minutes, None, &[]);
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

/// Rows of what passed, by the hour; `promised` where it stands beside the peer with a goal.
fn an_hour(report: &mut Report, name: &str, [first, last]: [[u64; 3]; 2], hours: f64, promised: bool) {
    let [packets, up, down] = [0, 1, 2].map(|i| ((last[i] - first[i]) as f64 / hours).round() as u64);
    let goal = if promised { Goal::Most(0.35) } else { Goal::None };
    for (what, value, goal) in [
        ("both ways", up + down, goal),
        ("from the board", up, Goal::None),
        ("from the hub", down, Goal::None),
        ("packets", packets, Goal::None),
    ] {
        let mut sample = Sample::new();
        sample.push(value);
        let peer = format!("{PEER}, {what}");
        let against: &[(&str, Goal)] = if name == PEER { &[] } else { &[(&peer, goal)] };
        report.row(&format!("{name}, {what}"), sample, None, against);
    }
}
