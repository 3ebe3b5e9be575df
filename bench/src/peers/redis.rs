//! Redis streams: one for jobs with a consumer group, one for results.

use super::Said;
use super::{JOB, Server, Submitter, System, Wire, exactly, line, put, spawn};
use crate::site::{Proc, Side, Site};
use anyhow::{Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::process::Command;
use std::sync::mpsc::Sender;

const SETTINGS: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""];

pub(crate) struct Redis {
    _proc: Proc,
    server: Server,
}

impl Redis {
    pub(crate) fn start(site: Site) -> Result<Self> {
        let server = Server::at(site)?;
        let mut command = Command::new("redis-server");
        command.args(SETTINGS).args(["--bind", "0.0.0.0", "--protected-mode", "no"]);
        command.args(["--port", &server.plain.to_string(), "--tls-port", &server.tls.to_string()]);
        command.arg("--tls-cert-file").arg(&server.pair.cert).arg("--tls-key-file").arg(&server.pair.key);
        command.arg("--tls-ca-cert-file").arg(&server.pair.cert);
        command.args(["--tls-auth-clients", "no", "--tls-protocols", "TLSv1.3"]);
        let proc = server.site.start(Side::Hub, &mut command)?;
        server.site.wait_port(Side::Hub, server.plain)?;
        let mut wire = server.near()?;
        say(&mut wire, &[b"XGROUP", b"CREATE", b"jobs", b"g", b"$", b"MKSTREAM"])?;
        hear(&mut wire)?;
        Ok(Self { _proc: proc, server })
    }
}

impl System for Redis {
    fn durable(&self) -> bool {
        true
    }

    fn settings(&self) -> String {
        "streams, appendfsync always; worker XREADGROUP BLOCK, XADD of the result with XACK; TLS 1.3 to the worker"
            .into()
    }

    fn submitter(&mut self, _: bool) -> Result<Box<dyn Submitter>> {
        Ok(Box::new(Client { jobs: self.server.near()?, results: self.server.near()?, last: b"0".to_vec() }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        for n in 0..count {
            let (mut wire, tell) = (self.server.far()?, tell.clone());
            spawn("redis", move || work(&mut wire, n, &tell));
        }
        Ok(())
    }
}

fn work(wire: &mut Wire, n: usize, tell: &Sender<Said>) -> Result<()> {
    let name = format!("w{n}");
    let read = [b"XREADGROUP", b"GROUP" as &[u8], b"g", name.as_bytes(), b"COUNT", b"1", b"BLOCK", b"0"];
    let read = [&read[..], &[b"STREAMS", b"jobs", b">"]].concat();
    say(wire, &read)?;
    loop {
        let id = entry(hear(wire)?)?;
        tell.send(Said::Claimed(micros()))?;
        let mut bytes = command(&[b"XADD", b"results", b"*", b"r", &JOB]);
        bytes.extend(command(&[b"XACK", b"jobs", b"g", &id]));
        bytes.extend(command(&read));
        put(wire, &bytes)?;
        hear(wire)?;
        tell.send(Said::Settled)?;
        hear(wire)?;
    }
}

struct Client {
    jobs: Wire,
    results: Wire,
    last: Vec<u8>,
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        say(&mut self.jobs, &[b"XADD", b"jobs", b"*", b"p", &JOB])?;
        hear(&mut self.jobs).map(drop)
    }

    fn result(&mut self) -> Result<()> {
        say(
            &mut self.results,
            &[b"XREAD", b"COUNT", b"1", b"BLOCK", b"0", b"STREAMS", b"results", &self.last],
        )?;
        self.last = entry(hear(&mut self.results)?)?;
        Ok(())
    }
}

/// RESP 2, as much of it as there is here.
enum Reply {
    Bytes(Vec<u8>),
    List(Vec<Reply>),
    Other,
}

fn command(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend_from_slice(arg);
        out.extend(b"\r\n");
    }
    out
}

fn say(wire: &mut Wire, args: &[&[u8]]) -> Result<()> {
    put(wire, &command(args))
}

fn hear(wire: &mut Wire) -> Result<Reply> {
    let head = line(wire)?;
    let Some((kind, rest)) = head.split_at_checked(1) else { bail!("redis said nothing") };
    match kind {
        "-" => bail!("redis: {rest}"),
        "$" if rest != "-1" => {
            let len: usize = rest.parse()?;
            let mut bytes = exactly(wire, len + 2)?;
            bytes.truncate(len);
            Ok(Reply::Bytes(bytes))
        }
        "*" if rest != "-1" => {
            let len: usize = rest.parse()?;
            ensure!(len <= 1000, "redis: a list of {len}");
            Ok(Reply::List((0..len).map(|_| hear(wire)).collect::<Result<_>>()?))
        }
        _ => Ok(Reply::Other),
    }
}

/// The id in `[[stream, [[id, fields]]]]`.
fn entry(reply: Reply) -> Result<Vec<u8>> {
    let first = |reply: Reply, at: usize| match reply {
        Reply::List(list) => list.into_iter().nth(at),
        _ => None,
    };
    let entries = first(reply, 0).and_then(|stream| first(stream, 1));
    match entries.and_then(|list| first(list, 0)).and_then(|entry| first(entry, 0)) {
        Some(Reply::Bytes(id)) => Ok(id),
        _ => bail!("redis: no entry came"),
    }
}
