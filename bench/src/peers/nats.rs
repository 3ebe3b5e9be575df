//! NATS JetStream: a work queue of jobs that workers pull one at a time from, a stream of results, each publish acknowledged.
//! Up to 2.9, which is Debian's, a file is synced every two minutes and no setting says otherwise for each message.

use super::Said;
use super::{JOB, Server, Submitter, System, Wire, exactly, line, put, spawn, wire};
use crate::site::{Proc, Side, Site};
use anyhow::{Context, Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::io::Read;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;

/// A server's first line is not longer, in bytes.
const INFO_MAX: usize = 64 << 10;
/// What a worker asks its next job of.
const NEXT: &str = "$JS.API.CONSUMER.MSG.NEXT.jobs.w";
/// Subscriptions of a connection: answers, and what is delivered.
const ANSWERS: &str = "1";
const DELIVERED: &str = "2";

pub(crate) struct Nats {
    _proc: Proc,
    server: Server,
}

impl Nats {
    pub(crate) fn start(site: Site) -> Result<Self> {
        let server = Server::at(site)?;
        let text = format!(
            "listen: \"0.0.0.0:{}\"\nallow_non_tls: true\ntls {{\n cert_file: {:?}\n key_file: {:?}\n timeout: 30\n}}\n\
             jetstream {{\n store_dir: {:?}\n}}\n",
            server.plain,
            server.pair.cert,
            server.pair.key,
            server.site.file("jetstream")
        );
        let config = server.site.write("nats.conf", &text)?;
        let proc = server.site.start(Side::Hub, Command::new("nats-server").arg("-c").arg(config))?;
        server.site.wait_port(Side::Hub, server.plain)?;
        let nats = Self { _proc: proc, server };
        let mut setup = nats.connect(Side::Hub)?;
        for (name, retention) in [("jobs", "workqueue"), ("results", "limits")] {
            setup.ask(
                &format!("$JS.API.STREAM.CREATE.{name}"),
                &format!(
                    "{{\"name\":\"{name}\",\"subjects\":[\"{name}\"],\"retention\":\"{retention}\",\"storage\":\"file\",\
                     \"num_replicas\":1}}"
                ),
            )?;
        }
        setup.ask(
            "$JS.API.CONSUMER.DURABLE.CREATE.jobs.w",
            "{\"stream_name\":\"jobs\",\"config\":{\"durable_name\":\"w\",\"ack_policy\":\"explicit\",\
             \"deliver_policy\":\"all\",\"max_ack_pending\":-1}}",
        )?;
        Ok(nats)
    }

    /// A connection: plain beside the server, with TLS 1.3 across the link. Its server speaks first, in plain.
    fn connect(&self, from: Side) -> Result<Client> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let addr = self.server.site.addr(Side::Hub);
        let mut stream = self.server.site.connect(from, (addr, self.server.plain).into())?;
        let mut info = Vec::new();
        while info.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            info.push(byte[0]);
            ensure!(info.len() < INFO_MAX, "nats: no end of its first line");
        }
        let wire = if from == Side::Hub { wire(stream) } else { self.server.pair.wrap(stream)? };
        let inbox = format!("inbox.{}", COUNT.fetch_add(1, Relaxed));
        let mut client = Client { wire, inbox, results: 0 };
        let inbox = &client.inbox;
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {inbox}.a {ANSWERS}\r\nSUB {inbox}.d {DELIVERED}\r\n"
        );
        put(&mut client.wire, hello.as_bytes())?;
        Ok(client)
    }
}

impl System for Nats {
    fn durable(&self) -> bool {
        false
    }

    fn settings(&self) -> String {
        "JetStream, file storage, one replica, each publish acknowledged; 2.9 syncs its files every two minutes and not \
         before it acknowledges, so nothing is sure to be on the disk; pulled one at a time, explicit acks; TLS 1.3 to \
         the worker"
            .into()
    }

    fn submitter(&mut self, results: bool) -> Result<Box<dyn Submitter>> {
        let mut client = self.connect(Side::Hub)?;
        if results {
            let config = format!(
                "{{\"stream_name\":\"results\",\"config\":{{\"deliver_subject\":\"{}.d\",\"ack_policy\":\"none\",\
                 \"deliver_policy\":\"new\"}}}}",
                client.inbox
            );
            client.ask("$JS.API.CONSUMER.CREATE.results", &config)?;
        }
        Ok(Box::new(client))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        for _ in 0..count {
            let (mut client, tell) = (self.connect(Side::Board)?, tell.clone());
            spawn("nats", move || client.work(&tell));
        }
        Ok(())
    }
}

/// A connection, and how many results came on it that nobody waited for yet.
struct Client {
    wire: Wire,
    inbox: String,
    results: usize,
}

impl Client {
    fn work(&mut self, tell: &Sender<Said>) -> Result<()> {
        let next = publish(NEXT, Some(&format!("{}.d", self.inbox)), b"{\"batch\":1}");
        let result = publish("results", Some(&format!("{}.a", self.inbox)), &JOB);
        put(&mut self.wire, &next)?;
        loop {
            match self.hear()? {
                Message { to: DELIVERED, reply, .. } => {
                    tell.send(Said::Claimed(micros()))?;
                    let ack = publish(
                        &reply.context("nats: a job without a way to say that it is done")?,
                        None,
                        b"+ACK",
                    );
                    put(&mut self.wire, &[&result[..], &ack, &next].concat())?;
                }
                Message { payload, .. } => {
                    kept(&payload)?;
                    tell.send(Said::Settled)?;
                }
            }
        }
    }

    /// A request, and that its answer is no error.
    fn ask(&mut self, subject: &str, body: &str) -> Result<()> {
        self.publish(subject, body.as_bytes()).with_context(|| subject.to_owned())
    }

    /// Publishes, and waits until that is acknowledged.
    fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<()> {
        put(&mut self.wire, &publish(subject, Some(&format!("{}.a", self.inbox)), payload))?;
        loop {
            match self.hear()? {
                Message { to: DELIVERED, .. } => self.results += 1,
                Message { payload, .. } => return kept(&payload),
            }
        }
    }

    fn hear(&mut self) -> Result<Message> {
        loop {
            let said = line(&mut self.wire)?;
            if said == "PING" {
                put(&mut self.wire, b"PONG\r\n")?;
            } else if let Some(error) = said.strip_prefix("-ERR") {
                bail!("nats: {error}");
            } else if let Some(head) = said.strip_prefix("MSG ") {
                let (mut message, len) = parse(head).with_context(|| format!("nats: {said}"))?;
                message.payload = exactly(&mut self.wire, len + 2)?;
                message.payload.truncate(len);
                return Ok(message);
            }
        }
    }
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        self.publish("jobs", &JOB)
    }

    fn result(&mut self) -> Result<()> {
        while self.results == 0 {
            self.results += usize::from(self.hear()?.to == DELIVERED);
        }
        self.results -= 1;
        Ok(())
    }
}

/// What came on a subscription.
#[derive(Debug, PartialEq)]
struct Message {
    /// One of the two subscriptions.
    to: &'static str,
    reply: Option<String>,
    payload: Vec<u8>,
}

/// `SUBJECT SID [REPLY] LENGTH` behind `MSG`: the message without its payload, and the payload's length.
fn parse(head: &str) -> Option<(Message, usize)> {
    let words: Vec<&str> = head.split_ascii_whitespace().collect();
    let (sid, reply, len) = match words[..] {
        [_, sid, len] => (sid, None, len),
        [_, sid, reply, len] => (sid, Some(reply.to_owned()), len),
        _ => return None,
    };
    let to = [ANSWERS, DELIVERED].into_iter().find(|one| *one == sid)?;
    Some((Message { to, reply, payload: Vec::new() }, len.parse().ok()?))
}

/// Whether JetStream did what it was asked.
fn kept(answer: &[u8]) -> Result<()> {
    let answer: serde_json::Value =
        serde_json::from_slice(answer).context("nats: an answer that is no JSON")?;
    ensure!(answer.get("error").is_none(), "nats: {}", answer["error"]);
    Ok(())
}

fn publish(subject: &str, reply: Option<&str>, payload: &[u8]) -> Vec<u8> {
    let reply = reply.map_or(String::new(), |reply| format!("{reply} "));
    [format!("PUB {subject} {reply}{}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_subscription_and_perhaps_a_reply() {
        let message =
            |to, reply: Option<&str>| Message { to, reply: reply.map(str::to_owned), payload: vec![] };
        for (head, want) in [
            ("jobs 2 $JS.ACK.jobs.w.1 100", Some((message("2", Some("$JS.ACK.jobs.w.1")), 100))),
            ("inbox.0.a 1 31", Some((message("1", None), 31))),
            ("inbox.0.a 3 31", None),
            ("inbox.0.a 1 x", None),
            ("inbox.0.a 1", None),
        ] {
            assert_eq!(parse(head), want, "{head}");
        }
        assert_eq!(publish("a", Some("b"), b"xyz"), b"PUB a b 3\r\nxyz\r\n");
    }

    #[test]
    fn an_error_is_not_an_acknowledgement() {
        kept(b"{\"stream\":\"jobs\",\"seq\":1}").unwrap();
        let error = kept(b"{\"error\":{\"code\":503,\"description\":\"no space\"}}").unwrap_err().to_string();
        assert!(error.contains("no space"), "{error}");
    }
}
