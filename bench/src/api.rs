//! A client of the hub's API, as small as it can be: one kept connection, one call at a time.

use crate::wan::{Namespace, inside};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// An answer is no longer than this, in bytes; 10,000 nodes are.
const ANSWER_MAX: usize = 64 << 20;
/// An answer comes within this time.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to the API; made when it is first used, and made anew by the next call when it failed.
pub(crate) struct Api {
    addr: SocketAddr,
    at: Option<Namespace>,
    token: PathBuf,
    stream: Option<(BufReader<TcpStream>, String)>,
}

impl Api {
    /// To `addr` as it is seen in `at`, with the token of that file.
    pub(crate) fn new(addr: SocketAddr, at: Option<Namespace>, token: PathBuf) -> Self {
        Self { addr, at, token, stream: None }
    }

    /// One call: status and body. What only reads is said again when a kept connection turns out to be closed.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let (status, bytes) = self.ask(method, path, body)?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// The body of an answer that is no JSON; `None` unless it is 200.
    pub(crate) fn bytes(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let (status, bytes) = self.ask("GET", path, None)?;
        Ok((status == 200).then_some(bytes))
    }

    /// A call that must succeed.
    pub(crate) fn must(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        match self.call(method, path, body)? {
            (200..=299, value) => Ok(value),
            (status, value) => bail!("{method} {path}: {status} {value}"),
        }
    }

    /// Invites a board, as `body` says; its ticket.
    pub(crate) fn invite(&mut self, body: &Value) -> Result<String> {
        let answer = self.must("POST", "/v1/invites", Some(body))?;
        Ok(answer["ticket"].as_str().with_context(|| answer.to_string())?.to_owned())
    }

    /// Server-sent events on a connection of their own: those behind `since`, or those from now on.
    pub(crate) fn events(&mut self, since: Option<u64>) -> Result<Events> {
        let since = since.map_or(String::new(), |id| format!("?since={id}"));
        self.connect()?;
        let (mut stream, token) = self.stream.take().context("no connection")?;
        let head = format!(
            "GET /v1/events{since} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\naccept: \
             text/event-stream\r\n\r\n"
        );
        stream.get_mut().write_all(head.as_bytes())?;
        let mut status = String::new();
        stream.read_line(&mut status)?;
        ensure!(status.contains(" 200 "), "/v1/events: {}", status.trim());
        // The next event may be long in coming.
        stream.get_mut().set_read_timeout(None)?;
        Ok(Events(stream))
    }

    fn connect(&mut self) -> Result<&mut (BufReader<TcpStream>, String)> {
        if self.stream.is_none() {
            let stream = inside(self.at.as_ref(), || Ok(TcpStream::connect(self.addr)?))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER))?;
            let token = std::fs::read_to_string(&self.token).unwrap_or_default();
            self.stream = Some((BufReader::new(stream), token.trim().to_owned()));
        }
        self.stream.as_mut().context("no connection")
    }

    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>)> {
        let kept = self.stream.is_some();
        match self.once(method, path, body) {
            Err(_) if kept && method == "GET" => {
                self.stream = None;
                self.once(method, path, body)
            }
            answer => answer,
        }
        .inspect_err(|_| self.stream = None)
    }

    fn once(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (stream, token) = self.connect()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(head.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        ensure!(stream.read_line(&mut line)? > 0, "the hub closed the connection");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP status")?;
        line.clear();
        while stream.read_line(&mut line)? > 2 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            line.clear();
        }
        ensure!(length <= ANSWER_MAX, "an answer of {length} bytes");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }
}

/// The hub's events, until it ends.
pub(crate) struct Events(BufReader<TcpStream>);

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        while self.0.read_line(&mut line).is_ok_and(|len| len > 0) {
            // Between them are ids, kinds and the lengths of chunks; an event is one chunk.
            if let Some(event) = line.strip_prefix("data: ").and_then(|text| serde_json::from_str(text).ok())
            {
                return Some(event);
            }
            line.clear();
        }
        None
    }
}
