//! Mosquitto: MQTT 3.1.1 at QoS 1. It writes what it holds only now and then, so nothing it acknowledges is on the disk.

use super::Said;
use super::{JOB, Server, Submitter, System, Wire, exactly, put, spawn};
use crate::site::{Proc, Side, Site};
use anyhow::{Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::process::Command;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How often mosquitto's own clients show that they live, when they are not told otherwise, in seconds.
pub(crate) const KEEP_ALIVE_S: u16 = 60;
const DISCONNECT: [u8; 2] = [0xe0, 0];

pub(crate) struct Mosquitto {
    _proc: Proc,
    pub(crate) server: Server,
    clients: usize,
}

impl Mosquitto {
    pub(crate) fn start(site: Site) -> Result<Self> {
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

impl Mosquitto {
    /// Makes a job wait for a board that is away and whose session is kept; `reconnect` takes it.
    pub(crate) fn leave_job(&mut self) -> Result<()> {
        let mut away =
            Session { name: "away", clean: false, ..Session::default() }.begin(self.server.near()?)?;
        subscribe(&mut away, "away")?;
        put(&mut away, &DISCONNECT)?;
        self.clients += 1;
        let name = format!("s{}", self.clients);
        let mut submitter = Session { name: &name, ..Session::default() }.begin(self.server.near()?)?;
        put(&mut submitter, &publish("away"))?;
        while !matches!(hear(&mut submitter)?, Packet::Ack) {}
        Ok(())
    }

    /// Connects across the link, with the TLS session of before or without, while a job waits: microseconds from before
    /// the first packet until the job is there.
    pub(crate) fn reconnect(&self, resumed: bool) -> Result<u64> {
        let began = micros();
        let stream = self.server.dial()?;
        let wire =
            if resumed { self.server.pair.wrap(stream)? } else { self.server.pair.wrap_anew(stream)? };
        let mut wire = Session { name: "away", clean: false, ..Session::default() }.begin(wire)?;
        loop {
            if let Packet::Publish(id) = hear(&mut wire)? {
                let took = micros() - began;
                put(&mut wire, &[&[0x40, 2, id[0], id[1]], &DISCONNECT[..]].concat())?;
                // Until the broker hangs up: then it has the acknowledgement.
                while hear(&mut wire).is_ok() {}
                return Ok(took);
            }
        }
    }

    /// A worker that waits for jobs and shows that it lives as often as mosquitto's own clients do, until the broker ends.
    pub(crate) fn wait(&self) -> Result<()> {
        let session = Session { name: "waits", keep_alive_s: KEEP_ALIVE_S, ..Session::default() };
        let mut wire = session.begin(self.server.far()?)?;
        subscribe(&mut wire, "jobs")?;
        spawn("mosquitto", move || {
            loop {
                std::thread::sleep(Duration::from_secs(KEEP_ALIVE_S.into()));
                put(&mut wire, &[0xc0, 0])?;
                hear(&mut wire)?;
            }
        });
        Ok(())
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
        let name = format!("s{}", self.clients);
        let mut wire = Session { name: &name, ..Session::default() }.begin(self.server.near()?)?;
        subscribe(&mut wire, "results")?;
        Ok(Box::new(Client { wire, results: 0 }))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        ensure!(count == 1, "mosquitto: one worker; its shared subscriptions are another protocol's");
        self.clients += 1;
        let name = format!("w{}", self.clients);
        let mut wire = Session { name: &name, ..Session::default() }.begin(self.server.far()?)?;
        subscribe(&mut wire, "jobs")?;
        let tell = tell.clone();
        spawn("mosquitto", move || {
            loop {
                match hear(&mut wire)? {
                    Packet::Publish(id) => {
                        tell.send(Said::Claimed(micros()))?;
                        put(&mut wire, &[publish("results"), vec![0x40, 2, id[0], id[1]]].concat())?;
                    }
                    Packet::Ack => tell.send(Said::Settled)?,
                    Packet::Welcome | Packet::Other => {}
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

/// How a connection begins: CONNECT (MQTT 3.1.1, section 3.1).
struct Session<'a> {
    name: &'a str,
    /// Whether the broker forgets what was meant for it.
    clean: bool,
    /// Longest silence that the client promises; 0 for none.
    keep_alive_s: u16,
}

impl Default for Session<'_> {
    fn default() -> Self {
        Self { name: "", clean: true, keep_alive_s: 0 }
    }
}

impl Session<'_> {
    fn begin(&self, mut wire: Wire) -> Result<Wire> {
        put(&mut wire, &self.packet())?;
        ensure!(matches!(hear(&mut wire)?, Packet::Welcome), "mosquitto does not want {}", self.name);
        Ok(wire)
    }

    fn packet(&self) -> Vec<u8> {
        let flags = [4, u8::from(self.clean) << 1];
        let head = [&text("MQTT")[..], &flags, &self.keep_alive_s.to_be_bytes(), &text(self.name)];
        packet(0x10, &head.concat())
    }
}

/// SUBSCRIBE at QoS 1 (section 3.8).
fn subscribe(wire: &mut Wire, topic: &str) -> Result<()> {
    put(wire, &packet(0x82, &[&[0, 1], &text(topic)[..], &[1]].concat()))?;
    hear(wire).map(drop)
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
    /// CONNACK that accepts.
    Welcome,
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
        0x20 if body.get(1) == Some(&0) => Ok(Packet::Welcome),
        _ => Ok(Packet::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(bytes: &'static [u8]) -> Result<Packet> {
        struct Ended(&'static [u8]);
        impl std::io::Read for Ended {
            fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
                self.0.read(to)
            }
        }
        impl std::io::Write for Ended {
            fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
                Ok(from.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        hear(&mut super::super::wire(Ended(bytes)))
    }

    #[test]
    fn packets_are_told_apart() {
        assert!(matches!(heard(b"\x20\x02\x01\x00"), Ok(Packet::Welcome)));
        assert!(matches!(heard(b"\x20\x02\x00\x05"), Ok(Packet::Other)));
        assert!(matches!(heard(b"\x40\x02\x00\x09"), Ok(Packet::Ack)));
        assert!(matches!(heard(b"\x32\x06\x00\x01j\x12\x34x"), Ok(Packet::Publish([0x12, 0x34]))));
        assert!(heard(b"\x32\x03\x00\x01j").is_err());
        assert!(heard(b"\x32\xff\xff\xff\xff\x01").is_err());
    }

    #[test]
    fn a_session_that_is_kept_says_so() {
        let kept = Session { name: "a", clean: false, keep_alive_s: 60 };
        assert_eq!(kept.packet(), b"\x10\x0d\x00\x04MQTT\x04\x00\x00\x3c\x00\x01a");
        assert_eq!(Session::default().packet()[9], 2);
    }
}
