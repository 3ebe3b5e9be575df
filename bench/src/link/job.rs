//! IP bytes of a job with its result, both ways, beside a line out and a line back over TCP + TLS 1.3, and beside the
//! same by MQTT. Jobs follow each
//! other at once. Only what arrives is counted; the link is otherwise idle.

use super::report::{Report, Unit};
use super::rig::{BOARD, Rig};
use super::{Options, mqtt, passed, tcp};
use crate::peers::System;
use crate::peers::mosquitto::Mosquitto;
use crate::record::Goal;
use crate::stats::Sample;
use crate::wan::Wan;
use anyhow::Result;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Jobs that one value of the sample is the mean of, so that acknowledgements which come late are in it.
const BLOCK: usize = 10;
/// What is on its way has come after this.
const SETTLE: Duration = Duration::from_secs(1);
/// How long an idle agent is watched, for its share.
const IDLE: Duration = Duration::from_secs(60);

/// Measures blocks of jobs, after as many exchanges of the TCP peer.
pub(super) fn run(options: &Options, rig: &mut Rig) -> Result<Report> {
    let (n, (name, link)) = (options.n.unwrap_or(200), options.link());
    let blocks = n.div_ceil(BLOCK);
    let what = format!("a job with its result on {name}, {blocks} blocks of {BLOCK}: IP bytes of one");
    let mut report = Report::new(what, Unit::Bytes);
    // Before there is an agent, so that nothing else is on the link.
    let wan = rig.wan.clone();
    let mut exchange = tcp::Peer::start(&wan)?.asker(&wan)?;
    exchange()?;
    let tcp = measure(&wan, blocks, exchange)?;
    let mut broker = mqtt::start(link)?;
    let mqtt = broker.as_mut().map(|broker| jobs_of(broker, blocks)).transpose()?;
    rig.enrol(options.profile.as_str())?;
    rig.start_agent()?;
    rig.wait_agent()?;
    let mut job = || {
        let id = rig.submit(BOARD, &["/bin/true"])?;
        rig.wait_done(&id)
    };
    job()?;
    eprintln!("job: watching the idle agent for {} s", IDLE.as_secs());
    // Path discovery and what follows a connection is over by then.
    std::thread::sleep(Duration::from_secs(5));
    let before = passed(&wan);
    std::thread::sleep(IDLE);
    let after = passed(&wan);
    let idle = (after[1] + after[2] - before[1] - before[2]) as f64 / IDLE.as_secs_f64();
    let began = dunlin_hub::clock::micros();
    let jobs = measure(&wan, blocks, job)?;
    let seconds = (dunlin_hub::clock::micros() - began) as f64 / 1e6;
    let names = ["both ways", "from the board", "from the hub", "packets"];
    for (i, name) in names.iter().enumerate() {
        let tcp_name = format!("TCP + TLS 1.3 line and answer, {name}");
        let mqtt_name = format!("mosquitto job and result, {name}");
        // Promised of all of them together.
        let goal = if i == 0 { Goal::Most(0.7) } else { Goal::None };
        let against = [(tcp_name.as_str(), Goal::None), (mqtt_name.as_str(), goal)];
        report.row(&format!("job, {name}"), jobs[i].clone(), None, &against);
        report.row(&tcp_name, tcp[i].clone(), None, &[]);
        if let Some(mqtt) = &mqtt {
            report.row(&mqtt_name, mqtt[i].clone(), None, &[]);
        }
    }
    report.note(mqtt::note(broker.as_ref()));
    report.note(format!(
        "an idle agent ({}) moves {idle:.1} bytes/s; over these {seconds:.0} s that would be {:.1} bytes of each job, \
         less where jobs stand in for heartbeats",
        options.profile.as_str(),
        idle * seconds / (blocks * BLOCK) as f64
    ));
    Ok(report)
}

/// The same jobs by MQTT: 100 bytes each way, the worker's result and its acknowledgement in one write.
fn jobs_of(broker: &mut Mosquitto, blocks: usize) -> Result<[Sample; 4]> {
    // Nobody listens to what the worker tells: the submitter hears of each result.
    let (tell, _said) = channel();
    broker.workers(1, &tell)?;
    let mut submitter = broker.submitter(true)?;
    measure(mqtt::wan(broker)?, blocks, || {
        submitter.submit()?;
        submitter.result()
    })
}

fn measure(wan: &Wan, blocks: usize, mut once: impl FnMut() -> Result<()>) -> Result<[Sample; 4]> {
    let mut samples = [const { Sample::new() }; 4];
    std::thread::sleep(SETTLE);
    for _ in 0..blocks {
        let before = passed(wan);
        for _ in 0..BLOCK {
            once()?;
        }
        std::thread::sleep(SETTLE);
        let after = passed(wan);
        let [packets, up, down] = [0, 1, 2].map(|i| after[i] - before[i]);
        for (sample, passed) in samples.iter_mut().zip([up + down, up, down, packets]) {
            sample.push(passed / BLOCK as u64);
        }
    }
    Ok(samples)
}
