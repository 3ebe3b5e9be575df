//! Durable jobs per second: submitted and acknowledged, claimed, and their result acknowledged, all on the disk. As many
//! submitters as workers, each waiting for its own answer; at most two jobs a worker are under way, so nothing is
//! measured but a queue that moves. Rounds of all systems take turns.

use super::Options;
use super::known::{BEFORE, Known};
use crate::peers::{Said, System};
use crate::record::{Goal, Record, Series};
use crate::site::BOUND;
use anyhow::{Context, Result};
use dunlin_hub::clock::micros;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A round is as long, after a quarter of it that does not count.
const ROUND: Duration = Duration::from_secs(2);

/// How many jobs may still be submitted.
struct Room {
    free: Mutex<usize>,
    more: Condvar,
    open: AtomicBool,
}

impl Room {
    fn take(&self) -> bool {
        let lock = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |free: &mut usize| *free == 0 && self.open.load(Relaxed);
        let mut free = self.more.wait_while(lock, wait).unwrap_or_else(PoisonError::into_inner);
        let open = self.open.load(Relaxed);
        if open {
            *free -= 1;
        }
        open
    }

    /// One more. Wakes one submitter: to wake all for each job took a quarter of the machine from whom is measured.
    fn give(&self) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.more.notify_one();
    }
}

struct Running {
    known: &'static Known,
    system: Box<dyn System>,
    said: Receiver<Said>,
    workers: usize,
    rates: Vec<f64>,
}

impl Running {
    fn start(options: &Options, known: &'static Known, workers: usize) -> Result<Self> {
        eprintln!("claim: starting {} with {workers} workers", known.name);
        let start = || -> Result<Self> {
            let mut system = (known.make)(options, options.site()?)?;
            let (tell, said) = channel();
            system.workers(workers, &tell)?;
            Ok(Self { known, system, said, workers, rates: Vec::new() })
        };
        start().with_context(|| format!("{} did not start", known.name))
    }

    /// One round: jobs per second.
    fn round(&mut self) -> Result<f64> {
        let room = Arc::new(Room {
            free: Mutex::new(2 * self.workers),
            more: Condvar::new(),
            open: AtomicBool::new(true),
        });
        let mut submitters = Vec::new();
        for _ in 0..self.workers {
            let (mut submitter, room) = (self.system.submitter(false)?, room.clone());
            submitters.push(std::thread::spawn(move || -> Result<usize> {
                let mut count = 0;
                while room.take() {
                    submitter.submit()?;
                    count += 1;
                }
                Ok(count)
            }));
        }
        let (mut settled, mut counted, began) = (0, 0, micros());
        let (from, to) = (ROUND.as_micros() as u64 / 4, ROUND.as_micros() as u64 * 5 / 4);
        let (mut at, mut start) = (0, None);
        while at < to {
            self.settled()?;
            settled += 1;
            room.give();
            at = micros() - began;
            if at >= from {
                start.get_or_insert(at);
                counted += 1;
            }
        }
        // The first that counts begins the time and is not in it.
        let rate = (counted - 1) as f64 * 1e6 / (at - start.unwrap_or(from)).max(1) as f64;
        room.open.store(false, Relaxed);
        room.more.notify_all();
        let mut submitted = 0;
        for thread in submitters {
            submitted += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        // What is still under way would be in the next round's time.
        for _ in settled..submitted {
            self.settled()?;
        }
        Ok(rate)
    }

    /// Waits for a result.
    fn settled(&self) -> Result<()> {
        while !matches!(self.said.recv_timeout(BOUND).context("no result came")?, Said::Settled) {}
        Ok(())
    }
}

/// Measures every system that has a queue with each number of workers.
pub(super) fn measure(options: &Options, systems: &[&'static Known], record: &mut Record) -> Result<()> {
    for &workers in &options.workers {
        let mut all = Vec::new();
        // Real agents are processes: on one machine many of them would measure the scheduler.
        let fits = |known: &&&'static Known| known.queues && (known.name != "dunlin-agent" || workers <= 8);
        for &known in systems.iter().filter(fits) {
            all.push(Running::start(options, known, workers)?);
        }
        for round in 0..options.rounds {
            eprintln!("claim: {workers} workers, round {} of {}", round + 1, options.rounds);
            for one in &mut all {
                let rate = one.round().with_context(|| one.known.name)?;
                one.rates.push(rate);
            }
        }
        let name = format!("throughput, {workers} workers");
        for one in all {
            if let Some(counted) = one.system.counted()? {
                record.notes.push(format!("{}, {name}, by its own count: {counted}", one.known.name));
            }
            let series = Series::new([&name, one.known.name, &options.profile, "jobs/s"], one.rates);
            record.series.push(series.with(one.system.durable(), &one.system.settings()));
        }
        for peer in ["redis", "rabbitmq", "nats", "postgres", "beanstalkd", BEFORE] {
            let goal = match (peer, workers) {
                ("redis", 64) => Goal::Least(2.0),
                ("rabbitmq", 1) => Goal::Least(1.5),
                _ => Goal::None,
            };
            record.ratio((&name, &options.profile), ["dunlin", peer], 50, goal);
        }
    }
    Ok(())
}
