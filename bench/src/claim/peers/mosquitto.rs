//! Mosquitto: MQTT 3.1.1 at QoS 1. It writes what it holds only now and then, so nothing it acknowledges is on the disk.

use super::{JOB, Server, Submitter, System, Wire, exactly, put, spawn};
use crate::claim::Said;
use crate::claim::site::{Proc, Side, Site};
use anyhow::{Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::process::Command;
use std::sync::mpsc::Sender;

pub(super) struct Mosquitto {
    _proc: Proc,
    server: Server,
    clients: usize,
}

impl Mosquitto {
    pub(super) fn start(site: Site) -> Result<Self> {
        let server = Server::at(site)?;
        let text = format!(
            "user root\nallow_anonymous true\nset_tcp_nodelay true\nlistener {} 127.0.0.1\nlistener {} 0.0.0.0\n\
             certfile {}\nkeyfile {}\ntls_version tlsv1.3\n",
            server.plain,
            server.tls,
            server.pair.cert.display(),
            server.pair.key.display()
        );
        let config = server.site.write("mosquitto.conf", &text)?;
        let proc = server.site.start(Side::Hub, Command::new("mosquitto").arg("-c").arg(config))?;
        server.site.wait_port(Side::Hub, server.plain)?;
        Ok(Self { _proc: proc, server, clients: 0 })
    }
}

impl System for Mosquitto {
    fn durable(&self) -> bool {
        false
    }

    fn settings(&self) -> String {
        "MQTT 3.1.1, QoS 1 all the way, no persistence; TLS 1.3 to the worker".into()
    }

    fn submitter(&mut self, _: bool) -> Result<Box<dyn Submitter>> {
        self.clients += 1;
        let wire = connect(self.server.near()?, &format!("s{}", self.clients), "results")?;
        Ok(Box::new(Client { wire, results: 0 }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        ensure!(count == 1, "mosquitto: one worker; its shared subscriptions are another protocol's");
        self.clients += 1;
        let mut wire = connect(self.server.far()?, &format!("w{}", self.clients), "jobs")?;
        let tell = tell.clone();
        spawn("mosquitto", move || {
            loop {
                match hear(&mut wire)? {
                    Packet::Publish(id) => {
                        tell.send(Said::Claimed(micros()))?;
                        put(&mut wire, &[publish("results"), vec![0x40, 2, id[0], id[1]]].concat())?;
                    }
                    Packet::Ack => tell.send(Said::Settled)?,
                    Packet::Other => {}
                }
            }
        });
        Ok(())
    }
}

struct Client {
    wire: Wire,
    results: usize,
}

impl Client {
    /// The next packet; whether it is an acknowledgement.
    fn next(&mut self) -> Result<bool> {
        match hear(&mut self.wire)? {
            Packet::Publish(id) => {
                self.results += 1;
                put(&mut self.wire, &[0x40, 2, id[0], id[1]])?;
                Ok(false)
            }
            packet => Ok(matches!(packet, Packet::Ack)),
        }
    }
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        put(&mut self.wire, &publish("jobs"))?;
        while !self.next()? {}
        Ok(())
    }

    fn result(&mut self) -> Result<()> {
        while self.results == 0 {
            self.next()?;
        }
        self.results -= 1;
        Ok(())
    }
}

/// CONNECT and SUBSCRIBE (MQTT 3.1.1, sections 3.1 and 3.8).
fn connect(mut wire: Wire, name: &str, topic: &str) -> Result<Wire> {
    let head = [b"\x00\x04MQTT\x04\x02\x00\x00", &text(name)[..]].concat();
    put(&mut wire, &packet(0x10, &head))?;
    hear(&mut wire)?;
    put(&mut wire, &packet(0x82, &[&[0, 1], &text(topic)[..], &[1]].concat()))?;
    hear(&mut wire)?;
    Ok(wire)
}

fn publish(topic: &str) -> Vec<u8> {
    packet(0x32, &[&text(topic)[..], &[0, 9], &JOB].concat())
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    let mut left = body.len();
    while left > 127 {
        out.push((left % 128) as u8 | 0x80);
        left /= 128;
    }
    out.push(left as u8);
    out.extend_from_slice(body);
    out
}

enum Packet {
    /// PUBLISH, with its identifier.
    Publish([u8; 2]),
    /// PUBACK.
    Ack,
    Other,
}

fn hear(wire: &mut Wire) -> Result<Packet> {
    let kind = exactly(wire, 1)?[0];
    let (mut len, mut shift) = (0, 0);
    loop {
        let byte = exactly(wire, 1)?[0];
        len |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
        ensure!(shift < 28, "mosquitto: a length without an end");
    }
    let body = exactly(wire, len)?;
    match kind & 0xf0 {
        0x30 => {
            let at = 2 + body.first_chunk::<2>().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
            match body.get(at..at + 2) {
                Some(id) => Ok(Packet::Publish([id[0], id[1]])),
                None => bail!("mosquitto: a publish without an identifier"),
            }
        }
        0x40 => Ok(Packet::Ack),
        _ => Ok(Packet::Other),
    }
}
