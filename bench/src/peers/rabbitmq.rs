//! RabbitMQ: AMQP 0-9-1, quorum queues for jobs and results, publisher confirms, one job unacknowledged at a time.

use super::Said;
use super::{JOB, Server, Submitter, System, Wire, exactly, put, spawn};
use crate::site::{Proc, Side, Site, until};
use anyhow::{Context, Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Debian's own script changes the user; this one does not.
const SCRIPT: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub(crate) struct Rabbit {
    _proc: Proc,
    _names: Proc,
    server: Server,
}

impl Rabbit {
    pub(crate) fn start(site: Site) -> Result<Self> {
        let server = Server::at(site)?;
        let text = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nlisteners.ssl.1 = 0.0.0.0:{}\nssl_options.cacertfile = {cert}\n\
             ssl_options.certfile = {cert}\nssl_options.keyfile = {}\nssl_options.versions.1 = tlsv1.3\n\
             ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\nloopback_users = none\n",
            server.plain,
            server.tls,
            server.pair.key.display(),
            cert = server.pair.cert.display()
        );
        let site = &server.site;
        site.write("rabbitmq.conf", &text)?;
        site.write("enabled_plugins", "[].\n")?;
        let (names, nodes) = (site.port(Side::Hub)?.to_string(), site.port(Side::Hub)?.to_string());
        // Erlang's port mapper, which would otherwise stay behind as a daemon.
        let mapper = site.start(Side::Hub, Command::new("epmd").args(["-port", &names]))?;
        site.wait_port(Side::Hub, names.parse()?)?;
        let mut command = Command::new(SCRIPT);
        for (name, value) in [
            ("HOME", site.dir().to_owned()),
            ("RABBITMQ_MNESIA_BASE", site.file("mnesia")),
            ("RABBITMQ_LOG_BASE", site.file("log")),
            ("RABBITMQ_CONFIG_FILE", site.file("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", site.file("enabled_plugins")),
        ] {
            command.env(name, value);
        }
        command.env("RABBITMQ_NODENAME", format!("bench{}@localhost", server.plain));
        command.env("RABBITMQ_DIST_PORT", &nodes).env("ERL_EPMD_PORT", &names);
        command.env("RABBITMQ_CONF_ENV_FILE", "/dev/null");
        // The script becomes the server, so that the server ends as every other process here does.
        command.env("RUNNING_UNDER_SYSTEMD", "true");
        let proc = site.start(Side::Hub, &mut command)?;
        let rabbit = Self { _proc: proc, _names: mapper, server };
        rabbit.server.site.wait_port(Side::Hub, rabbit.server.plain)?;
        // It listens before it serves.
        let make = || Ok(rabbit.channel(true, &["jobs", "results"]).ok());
        until("rabbitmq's queues", Duration::from_millis(200), make)?;
        Ok(rabbit)
    }

    fn channel(&self, near: bool, queues: &[&str]) -> Result<Channel> {
        let wire = if near { self.server.near()? } else { self.server.far()? };
        let mut channel = Channel { wire };
        channel.open()?;
        for queue in queues {
            // S: a long string (the errata of AMQP 0-9-1, and RabbitMQ's).
            let table = [&short("x-queue-type")[..], b"S", &long(b"quorum")[..]].concat();
            channel.ask(
                (50, 10),
                &[&[0, 0], &short(queue)[..], &[2], &long(&table)[..]].concat(),
                (50, 11),
            )?;
        }
        channel.ask((85, 10), &[0], (85, 11))?;
        Ok(channel)
    }
}

impl System for Rabbit {
    fn durable(&self) -> bool {
        true
    }

    fn settings(&self) -> String {
        "quorum queues, persistent messages, publisher confirms, prefetch 1; TLS 1.3 to the worker".into()
    }

    fn submitter(&mut self, results: bool) -> Result<Box<dyn Submitter>> {
        let mut channel = self.channel(true, &[])?;
        if results {
            // 2: no acknowledgement is asked for.
            channel.consume("results", 2)?;
        }
        Ok(Box::new(Client { channel, results: 0 }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        for _ in 0..count {
            let mut channel = self.channel(false, &[])?;
            channel.ask((60, 10), &[0, 0, 0, 0, 0, 1, 0], (60, 11))?;
            channel.consume("jobs", 0)?;
            let tell = tell.clone();
            spawn("rabbitmq", move || {
                // Results are numbered from 1 as they are published; one confirm may be for several.
                let (mut published, mut open) = (0u64, BTreeSet::new());
                loop {
                    match channel.hear()? {
                        Saying::Deliver(tag) => {
                            tell.send(Said::Claimed(micros()))?;
                            let ack = method((60, 80), &[&tag[..], &[0]].concat());
                            published += 1;
                            open.insert(published);
                            put(&mut channel.wire, &[publish("results"), ack].concat())?;
                        }
                        Saying::Ack { tag, multiple } => {
                            let tag = u64::from_be_bytes(tag);
                            let from = if multiple { 0 } else { tag };
                            let confirmed: Vec<u64> = open.range(from..=tag).copied().collect();
                            for one in confirmed {
                                open.remove(&one);
                                tell.send(Said::Settled)?;
                            }
                        }
                        Saying::Other => {}
                    }
                }
            });
        }
        Ok(())
    }
}

struct Client {
    channel: Channel,
    results: usize,
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        put(&mut self.channel.wire, &publish("jobs"))?;
        loop {
            match self.channel.hear()? {
                Saying::Ack { .. } => return Ok(()),
                Saying::Deliver(_) => self.results += 1,
                Saying::Other => {}
            }
        }
    }

    fn result(&mut self) -> Result<()> {
        while self.results == 0 {
            self.results += usize::from(matches!(self.channel.hear()?, Saying::Deliver(_)));
        }
        self.results -= 1;
        Ok(())
    }
}

/// Class and method.
type Id = (u16, u16);

/// What a server says on a channel.
enum Saying {
    /// A message, with its delivery tag.
    Deliver([u8; 8]),
    /// The publish with this number is confirmed, or all up to it.
    Ack {
        tag: [u8; 8],
        multiple: bool,
    },
    Other,
}

struct Channel {
    wire: Wire,
}

impl Channel {
    fn open(&mut self) -> Result<()> {
        put(&mut self.wire, b"AMQP\0\0\x09\x01")?;
        self.wait((10, 10))?;
        let start =
            [&long(b"")[..], &short("PLAIN")[..], &long(b"\0guest\0guest")[..], &short("en_US")[..]].concat();
        put(&mut self.wire, &frame(1, 0, &body((10, 11), &start)))?;
        let tune = self.wait((10, 30))?;
        // As it proposes, without heartbeats.
        let tune = [tune.get(..6).context("rabbitmq: a short tune")?, &[0, 0]].concat();
        put(&mut self.wire, &frame(1, 0, &body((10, 31), &tune)))?;
        put(&mut self.wire, &frame(1, 0, &body((10, 40), &[&short("/")[..], &[0, 0]].concat())))?;
        self.wait((10, 41))?;
        self.ask((20, 10), &[0], (20, 11))
    }

    fn consume(&mut self, queue: &str, bits: u8) -> Result<()> {
        let args = [&[0, 0], &short(queue)[..], &short("")[..], &[bits], &long(b"")[..]].concat();
        self.ask((60, 20), &args, (60, 21))
    }

    fn ask(&mut self, id: Id, args: &[u8], answer: Id) -> Result<()> {
        put(&mut self.wire, &method(id, args))?;
        self.wait(answer).map(drop)
    }

    /// The arguments of the next method, which must be this one.
    fn wait(&mut self, id: Id) -> Result<Vec<u8>> {
        let (kind, payload) = self.frame()?;
        let (got, args) = split(&payload)?;
        ensure!(
            kind == 1 && got == id,
            "rabbitmq said {got:?} for {id:?}: {}",
            String::from_utf8_lossy(args)
        );
        Ok(args.to_vec())
    }

    fn hear(&mut self) -> Result<Saying> {
        loop {
            let (kind, payload) = self.frame()?;
            // A message's header and body: only that it came counts, and they come with their method.
            if kind != 1 {
                continue;
            }
            let (id, args) = split(&payload)?;
            return match id {
                (60, 60) => {
                    let at = 1 + usize::from(*args.first().context("rabbitmq: a short delivery")?);
                    let tag = args.get(at..at + 8).context("rabbitmq: a short delivery")?;
                    // Header, then body: a job is claimed when all of it is here.
                    self.frame()?;
                    self.frame()?;
                    Ok(Saying::Deliver(tag.try_into()?))
                }
                (60, 80) => {
                    let (tag, bits) = args.split_first_chunk::<8>().context("rabbitmq: a short confirm")?;
                    Ok(Saying::Ack { tag: *tag, multiple: bits.first() == Some(&1) })
                }
                (20, 40) | (10, 50) => bail!("rabbitmq closed: {}", String::from_utf8_lossy(args)),
                _ => Ok(Saying::Other),
            };
        }
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        let head = exactly(&mut self.wire, 7)?;
        let len = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = exactly(&mut self.wire, len + 1)?;
        ensure!(payload.pop() == Some(0xce), "rabbitmq: a frame without its end");
        Ok((head[0], payload))
    }
}

fn split(payload: &[u8]) -> Result<(Id, &[u8])> {
    let (head, args) = payload.split_first_chunk::<4>().context("rabbitmq: a short method")?;
    Ok(((u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]])), args))
}

fn publish(queue: &str) -> Vec<u8> {
    let args = [&[0, 0], &short("")[..], &short(queue)[..], &[0]].concat();
    // Class, weight, length, flags: only the delivery mode, which is persistent.
    let header = [&[0, 60, 0, 0], &(JOB.len() as u64).to_be_bytes()[..], &[0x10, 0, 2]].concat();
    [method((60, 40), &args), frame(2, 1, &header), frame(3, 1, &JOB)].concat()
}

fn method(id: Id, args: &[u8]) -> Vec<u8> {
    frame(1, 1, &body(id, args))
}

fn body((class, method): Id, args: &[u8]) -> Vec<u8> {
    [&class.to_be_bytes(), &method.to_be_bytes(), args].concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let head = [&[kind], &channel.to_be_bytes()[..], &(payload.len() as u32).to_be_bytes()].concat();
    [&head, payload, &[0xce]].concat()
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}
