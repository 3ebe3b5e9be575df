//! From the start of a connection to the first grant, with a task waiting, in round trips of the link; beside it a TCP
//! peer with TLS 1.3 from connect() to its first answer, and an MQTT client whose session the broker kept, from connect() to
//! the job that waits for it.
//!
//! The bare agent is timed from before its first packet to the grant in its hands; the real one from before its process
//! is made to the first instruction of its job, so policy, journal, guard and exec are in that figure.

use super::bare::{BARE, Bare, Mode};
use super::report::{Report, Unit};
use super::rig::Rig;
use super::{Options, mqtt, tcp};
use crate::record::Goal;
use crate::stats::Sample;
use crate::wan::Link;
use anyhow::{Context, Result, ensure};

/// The kinds of connection, in the order of the table.
const KINDS: [&str; 9] = [
    "QUIC full",
    "QUIC resumed, nothing early",
    "QUIC 0-RTT",
    "QUIC 0-RTT, hub killed before",
    "TCP + TLS 1.3 full",
    "TCP + TLS 1.3 resumed",
    "agent process -> job runs",
    "mosquitto, TLS full",
    "mosquitto, TLS resumed",
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
    let mut broker = mqtt::start(links[0].1)?;
    if let Some(broker) = &mut broker {
        broker.leave_job()?;
        broker.reconnect(true)?;
    }
    let kinds = if broker.is_some() { KINDS.len() } else { KINDS.len() - 2 };
    let mut samples = vec![[const { Sample::new() }; KINDS.len()]; links.len()];
    let mut refused = 0;
    for round in 0..n {
        for ((name, link), samples) in links.iter().zip(&mut samples) {
            eprintln!("connect: round {} of {n} on {name}", round + 1);
            rig.wan.set(*link);
            for (kind, sample) in samples.iter_mut().enumerate().take(kinds) {
                let took = match kind {
                    4 | 5 => peer.connect(&rig.wan, kind == 5)?,
                    6 => start_agent(rig)?,
                    7 | 8 => {
                        let broker = broker.as_mut().context("no broker")?;
                        mqtt::wan(broker)?.set(*link);
                        broker.leave_job()?;
                        broker.reconnect(kind == 8)?
                    }
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
    for ((name, link), samples) in links.iter().zip(&samples) {
        for (kind, sample) in samples.iter().enumerate().take(kinds) {
            let rtt = link.rtt.as_micros() as u64;
            let [tcp, mqtt] = [5, 7].map(|kind: usize| format!("{} {name}", KINDS[kind]));
            // Promised on lte: a lost link that is back, and a board that starts.
            let goal = match (name.as_str(), kind) {
                ("lte", 2) => Goal::Most(0.35),
                ("lte", 6) => Goal::Most(0.65),
                _ => Goal::None,
            };
            let against = [(tcp.as_str(), Goal::None), (mqtt.as_str(), goal)];
            let against = match kind {
                5 | 7 | 8 => &[][..],
                4 => &against[..1],
                _ => &against,
            };
            report.row(&format!("{} {name}", KINDS[kind]), sample.clone(), Some(rtt), against);
        }
    }
    if let [(_, near), (_, far)] = links.as_slice() {
        let more = (far.rtt - near.rtt).as_micros() as f64;
        let slope = |kind: usize| {
            let [near, far] = [0, 1].map(|i: usize| samples[i][kind].percentile(50) as f64);
            format!("{} {:.2}", KINDS[kind], (far - near) / more)
        };
        let slopes: Vec<String> = (0..kinds).map(slope).collect();
        report.note(format!("round trips without what each costs by itself (slope): {}", slopes.join("; ")));
    }
    ensure!(samples.iter().all(|s| s[..kinds].iter().all(|s| s.count() == n)), "a round is missing");
    report.note(mqtt::note(broker.as_ref()));
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
