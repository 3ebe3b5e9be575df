//! beanstalkd: a tube of jobs, a tube of results. It has no TLS, so its worker's link has none.

use super::Said;
use super::{JOB, Server, Submitter, System, Wire, exactly, line, put, spawn, wire};
use crate::site::{Proc, Side, Site};
use anyhow::{Context, Result, ensure};
use dunlin_hub::clock::micros;
use std::process::Command;
use std::sync::mpsc::Sender;

pub(crate) struct Beanstalk {
    _proc: Proc,
    server: Server,
}

impl Beanstalk {
    pub(crate) fn start(site: Site) -> Result<Self> {
        let server = Server::at(site)?;
        let log = server.site.file("binlog");
        std::fs::create_dir(&log)?;
        let mut command = Command::new("beanstalkd");
        command.args(["-l", "0.0.0.0", "-p", &server.plain.to_string(), "-f0", "-b"]).arg(&log);
        let proc = server.site.start(Side::Hub, &mut command)?;
        server.site.wait_port(Side::Hub, server.plain)?;
        Ok(Self { _proc: proc, server })
    }
}

impl System for Beanstalk {
    fn durable(&self) -> bool {
        true
    }

    fn settings(&self) -> String {
        "-f0: fsync of each write of its log; no TLS, it has none".into()
    }

    fn submitter(&mut self, _: bool) -> Result<Box<dyn Submitter>> {
        let (mut jobs, mut results) = (self.server.near()?, self.server.near()?);
        put(&mut jobs, b"use jobs\r\n")?;
        line(&mut jobs)?;
        put(&mut results, b"watch results\r\n")?;
        line(&mut results)?;
        Ok(Box::new(Client { jobs, results }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        for _ in 0..count {
            let addr = (self.server.site.addr(Side::Hub), self.server.plain).into();
            let mut wire = wire(self.server.site.connect(Side::Board, addr)?);
            let tell = tell.clone();
            spawn("beanstalkd", move || work(&mut wire, &tell));
        }
        Ok(())
    }
}

fn work(wire: &mut Wire, tell: &Sender<Said>) -> Result<()> {
    put(wire, b"use results\r\nwatch jobs\r\nreserve\r\n")?;
    line(wire)?;
    line(wire)?;
    loop {
        let id = reserved(wire)?;
        tell.send(Said::Claimed(micros()))?;
        let mut bytes = job();
        bytes.extend(format!("delete {id}\r\nreserve\r\n").bytes());
        put(wire, &bytes)?;
        inserted(wire)?;
        tell.send(Said::Settled)?;
        line(wire)?;
    }
}

struct Client {
    jobs: Wire,
    results: Wire,
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        put(&mut self.jobs, &job())?;
        inserted(&mut self.jobs)
    }

    fn result(&mut self) -> Result<()> {
        put(&mut self.results, b"reserve\r\n")?;
        let id = reserved(&mut self.results)?;
        put(&mut self.results, format!("delete {id}\r\n").as_bytes())?;
        line(&mut self.results).map(drop)
    }
}

fn job() -> Vec<u8> {
    [format!("put 0 0 600 {}\r\n", JOB.len()).as_bytes(), &JOB, b"\r\n"].concat()
}

fn inserted(wire: &mut Wire) -> Result<()> {
    let said = line(wire)?;
    ensure!(said.starts_with("INSERTED"), "beanstalkd: {said}");
    Ok(())
}

/// The id of the job that was reserved.
fn reserved(wire: &mut Wire) -> Result<String> {
    let said = line(wire)?;
    let mut words = said.split(' ');
    ensure!(words.next() == Some("RESERVED"), "beanstalkd: {said}");
    let id = words.next().context("no id")?.to_owned();
    exactly(wire, words.next().context("no length")?.parse::<usize>()? + 2)?;
    Ok(id)
}
