//! From the start of a connection to the first grant, with a task waiting, in round trips of the link; beside it a TCP
//! peer with TLS 1.3 from connect() to its first answer.
//!
//! The bare agent is timed from before its first packet to the grant in its hands; the real one from before its process
//! is made to the first instruction of its job, so policy, journal, guard and exec are in that figure.

use super::bare::{BARE, Bare, Mode};
use super::report::{Report, Unit};
use super::rig::Rig;
use super::{Options, tcp};
use crate::stats::Sample;
use crate::wan::Link;
use anyhow::{Result, ensure};

/// The kinds of connection, in the order of the table.
const KINDS: [&str; 7] = [
    "QUIC full",
    "QUIC resumed, nothing early",
    "QUIC 0-RTT",
    "QUIC 0-RTT, hub killed before",
    "TCP + TLS 1.3 full",
    "TCP + TLS 1.3 resumed",
    "agent process -> job runs",
];

/// Measures every kind at each round-trip time in turn.
pub(super) fn run(options: &Options, rig: &mut Rig) -> Result<Report> {
    let n = options.n.unwrap_or(20);
    let links = match &options.link {
        Some(named) => vec![named.clone()],
        None => vec![("100ms".into(), Link::delay(100)), ("300ms".into(), Link::delay(300))],
    };
    let mut report = Report::new(format!("connect -> first grant, {n} rounds each"), Unit::Micros);
    let mut bare = Bare::enrol(rig)?;
    rig.enrol("wan")?;
    let peer = tcp::Peer::start(&rig.wan)?;
    peer.prepare(&rig.wan)?;
    let mut samples = vec![[const { Sample::new() }; KINDS.len()]; links.len()];
    let mut refused = 0;
    for round in 0..n {
        for ((name, link), samples) in links.iter().zip(&mut samples) {
            eprintln!("connect: round {} of {n} on {name}", round + 1);
            rig.wan.set(*link);
            for (kind, sample) in samples.iter_mut().enumerate() {
                let took = match kind {
                    4 | 5 => peer.connect(&rig.wan, kind == 5)?,
                    6 => start_agent(rig)?,
                    _ => {
                        rig.submit(BARE, &["/bin/true"])?;
                        if kind == 3 {
                            rig.restart_hub()?;
                        }
                        let mode = [Mode::Full, Mode::Resumed, Mode::Early, Mode::Early][kind];
                        let took = bare.connect(&rig.wan, rig.quic(), mode)?;
                        refused += usize::from(took.refused);
                        took.us
                    }
                };
                sample.push(took);
            }
        }
    }
    let tcp = |link: &str| format!("{} {link}", KINDS[5]);
    for ((name, link), samples) in links.iter().zip(&samples) {
        for (kind, sample) in samples.iter().enumerate() {
            let rtt = link.rtt.as_micros() as u64;
            let beside = tcp(name);
            let beside = (kind != 5).then_some(beside.as_str());
            report.row(&format!("{} {name}", KINDS[kind]), sample.clone(), Some(rtt), beside);
        }
    }
    if let [(_, near), (_, far)] = links.as_slice() {
        let more = (far.rtt - near.rtt).as_micros() as f64;
        let slope = |kind: usize| {
            let [near, far] = [0, 1].map(|i: usize| samples[i][kind].percentile(50) as f64);
            format!("{} {:.2}", KINDS[kind], (far - near) / more)
        };
        let slopes: Vec<String> = (0..KINDS.len()).map(slope).collect();
        report.note(format!("round trips without what each costs by itself (slope): {}", slopes.join("; ")));
    }
    ensure!(samples.iter().flatten().all(|s| s.count() == n), "a round is missing");
    report.note(format!("early data refused by the hub: {refused} of {}", 2 * n * links.len()));
    report.note(
        "`agent process`: from before the process is made to the first instruction of the job, by the job's own stamp"
            .into(),
    );
    Ok(report)
}

fn start_agent(rig: &mut Rig) -> Result<u64> {
    let (id, stamp) = rig.submit_stamp()?;
    let began = rig.start_agent()?;
    let ran = rig.wait_stamp(&stamp)?;
    rig.wait_done(&id)?;
    rig.stop_agent()?;
    Ok(ran - began)
}
