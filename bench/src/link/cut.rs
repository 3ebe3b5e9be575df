//! An outage both ways. In its middle half, each round at another point, a task is submitted at the hub, and a TCP + TLS 1.3 peer at the same place
//! writes a line to its connected worker: from when the link is back to when the job runs, and to when the line is there.

use super::report::{Report, Unit};
use super::rig::Rig;
use super::{Options, tcp};
use crate::record::Goal;
use crate::stats::Sample;
use anyhow::{Context, Result};
use dunlin_hub::clock::micros;
use std::time::Duration;

/// Only a failure waits so long.
const BOUND: Duration = Duration::from_secs(180);
/// The link is whole for so long before each cut, and up to a second more, so that cuts meet every phase of keep-alives.
const WHOLE: Duration = Duration::from_secs(3);

/// Measures every length of cut in turn.
pub(super) fn run(options: &Options, rig: &mut Rig) -> Result<Report> {
    let (n, (name, link)) = (options.n.unwrap_or(20), options.link());
    let what = format!("cut on {name}: link back -> received, {n} rounds each");
    let mut report = Report::new(what, Unit::Micros);
    rig.enrol(options.profile.as_str())?;
    rig.start_agent()?;
    rig.wait_agent()?;
    let (mut push, came) = tcp::Peer::start(&rig.wan)?.worker(&rig.wan)?;
    // Whatever is done once is not counted.
    let (id, _) = rig.submit_stamp()?;
    rig.wait_done(&id)?;
    let mut samples = vec![[Sample::new(), Sample::new()]; options.cuts.len()];
    for round in 0..n {
        for (seconds, samples) in options.cuts.iter().zip(&mut samples) {
            rig.wait_agent()?;
            std::thread::sleep(WHOLE + Duration::from_millis(round as u64 * 377 % 1000));
            let (cut, at) = (Duration::from_secs(*seconds), micros());
            rig.wan.cut(true);
            std::thread::sleep(cut.mul_f64(point(round)));
            let (id, stamp) = rig.submit_stamp()?;
            push()?;
            std::thread::sleep(cut.saturating_sub(Duration::from_micros(micros() - at)));
            let back = micros();
            rig.wan.cut(false);
            let took = [
                rig.wait_stamp(&stamp)? - back,
                came.recv_timeout(BOUND).context("the TCP peer's line did not come")? - back,
            ];
            rig.wait_done(&id)?;
            eprintln!(
                "cut: round {} of {n}, {seconds} s: job {} ms, TCP {} ms after the link was back",
                round + 1,
                took[0] / 1000,
                took[1] / 1000
            );
            samples.iter_mut().zip(took).for_each(|(sample, us)| sample.push(us));
        }
    }
    let rtt = link.rtt.as_micros() as u64;
    for (seconds, [job, line]) in options.cuts.iter().zip(samples) {
        let tcp = format!("TCP + TLS 1.3 line, {seconds} s cut");
        report.row(&format!("job, {seconds} s cut"), job, Some(rtt), &[(&tcp, Goal::None)]);
        report.row(&tcp, line, Some(rtt), &[]);
    }
    report.note(format!("profile {}; the job's own start is in its figure", options.profile.as_str()));
    Ok(report)
}

/// When a round submits, as a share of the cut: spread evenly over its middle half, however many rounds there are. Were
/// it always the same, each peer's back-off would stand at the same step whenever the link is back.
fn point(round: usize) -> f64 {
    0.25 + (round as f64 * 0.618_034).fract() / 2.0
}
