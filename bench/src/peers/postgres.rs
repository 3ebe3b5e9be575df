//! PostgreSQL as people make a queue of it: a table of jobs that a worker takes a row from with SKIP LOCKED, NOTIFY for
//! those who wait, another table for results. The protocol is its version 3, simple queries only.

use super::Said;
use super::{JOB, Server, Submitter, System, Wire, exactly, find, put, spawn, wire};
use crate::site::{Proc, Side, Site, until};
use anyhow::{Context, Result, bail, ensure};
use dunlin_hub::clock::micros;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// A job is taken in one transaction, and its result kept in another.
const TAKE: &str = "UPDATE jobs SET taken = true WHERE id = (SELECT id FROM jobs WHERE NOT taken ORDER BY id LIMIT 1 \
                    FOR UPDATE SKIP LOCKED) RETURNING id, payload";
const TABLES: &str = "CREATE TABLE jobs (id bigserial PRIMARY KEY, payload text NOT NULL, taken boolean NOT NULL DEFAULT \
                      false); CREATE INDEX ON jobs (id) WHERE NOT taken; \
                      CREATE TABLE results (id bigserial PRIMARY KEY, payload text NOT NULL)";
/// Version 3.0, and the number that asks for TLS instead.
const VERSION: u32 = 3 << 16;
const TLS: u32 = 80_877_103;

pub(crate) struct Postgres {
    proc: Proc,
    server: Server,
}

impl Postgres {
    pub(crate) fn start(site: Site) -> Result<Self> {
        let server = Server::at(site)?;
        let site = &server.site;
        // It refuses to be root, so its own user must reach its directory.
        std::fs::set_permissions(site.dir(), PermissionsExt::from_mode(0o711))?;
        let (data, key) = (site.file("data"), site.file("postgres.key"));
        own(&["-d", "-m", "0700"], &[&data])?;
        own(&["-m", "0600"], &[&server.pair.key, &key])?;
        let mut init = program("initdb")?;
        init.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        site.start(Side::Hub, &mut init)?.succeed("initdb").map_err(|error| site.explain(error))?;
        let hba = "host all all 0.0.0.0/0 trust\n";
        std::fs::write(data.join("pg_hba.conf"), hba)?;
        let mut command = program("postgres")?;
        command.arg("-D").arg(&data).args(["-p", &server.plain.to_string()]);
        for setting in [
            "listen_addresses=0.0.0.0",
            "unix_socket_directories=",
            "fsync=on",
            "synchronous_commit=on",
            "max_connections=500",
            "ssl=on",
            "ssl_min_protocol_version=TLSv1.3",
            &format!("ssl_cert_file={}", server.pair.cert.display()),
            &format!("ssl_key_file={}", key.display()),
        ] {
            command.args(["-c", setting]);
        }
        let proc = site.start(Side::Hub, &mut command)?;
        site.wait_port(Side::Hub, server.plain)?;
        let postgres = Self { proc, server };
        // It listens before it serves.
        let connect = || Ok(postgres.connect(Side::Hub).ok());
        until("postgres serves", Duration::from_millis(50), connect)?.query(TABLES)?;
        Ok(postgres)
    }

    /// A connection: plain beside the server, with TLS 1.3 across the link.
    fn connect(&self, from: Side) -> Result<Client> {
        let addr = self.server.site.addr(Side::Hub);
        let mut stream = self.server.site.connect(from, (addr, self.server.plain).into())?;
        let wire = if from == Side::Hub {
            wire(stream)
        } else {
            std::io::Write::write_all(&mut stream, &startup(TLS, b""))?;
            let mut answer = [0];
            std::io::Read::read_exact(&mut stream, &mut answer)?;
            ensure!(answer == *b"S", "postgres has no TLS");
            self.server.pair.wrap(stream)?
        };
        let mut client = Client { wire, news: 0 };
        put(&mut client.wire, &startup(VERSION, b"user\0postgres\0database\0postgres\0\0"))?;
        client.finish()?;
        Ok(client)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown: it takes its shared memory along, which SIGKILL would leave.
        let _ = self.proc.end(libc::SIGQUIT);
    }
}

impl System for Postgres {
    fn durable(&self) -> bool {
        true
    }

    fn settings(&self) -> String {
        "fsync and synchronous_commit on; FOR UPDATE SKIP LOCKED, LISTEN and NOTIFY; result and removal of the job in one \
         transaction, the next job asked for with it; TLS 1.3 to the worker"
            .into()
    }

    fn submitter(&mut self, results: bool) -> Result<Box<dyn Submitter>> {
        let mut client = self.connect(Side::Hub)?;
        if results {
            client.query("LISTEN results")?;
        }
        Ok(Box::new(client))
    }

    fn workers(&mut self, count: usize, tell: &Sender<Said>) -> Result<()> {
        for _ in 0..count {
            let (mut client, tell) = (self.connect(Side::Board)?, tell.clone());
            client.query("LISTEN jobs")?;
            spawn("postgres", move || client.work(&tell));
        }
        Ok(())
    }
}

/// A program of it, as a user that it takes.
fn program(name: &str) -> Result<Command> {
    let path = find(name).with_context(|| format!("no {name}; `apt-get install postgresql` has it"))?;
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(Command::new(path));
    }
    // A change of user forgets that it ends with us; setpriv says it again.
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--pdeathsig", "KILL"])
        .arg(path);
    Ok(command)
}

/// Makes a directory or a copy that belongs to that user.
fn own(options: &[&str], paths: &[&Path]) -> Result<()> {
    let mut install = Command::new("install");
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        install.args(["-o", "postgres", "-g", "postgres"]);
    }
    let status = install.args(options).args(paths).status()?;
    ensure!(status.success(), "install: {status}");
    Ok(())
}

/// A connection, and how many notifications came on it that nobody waited for yet.
struct Client {
    wire: Wire,
    news: usize,
}

impl Client {
    fn work(&mut self, tell: &Sender<Said>) -> Result<()> {
        put(&mut self.wire, &ask(TAKE))?;
        loop {
            if let Some(id) = self.finish()? {
                tell.send(Said::Claimed(micros()))?;
                let done = format!(
                    "INSERT INTO results (payload) VALUES ('{}'); DELETE FROM jobs WHERE id = {id}; NOTIFY results",
                    text()
                );
                self.news = 0;
                put(&mut self.wire, &[ask(&done), ask(TAKE)].concat())?;
                self.finish()?;
                tell.send(Said::Settled)?;
            } else {
                // What was submitted since the last look has been told since.
                while self.news == 0 {
                    self.hear()?;
                }
                self.news = 0;
                put(&mut self.wire, &ask(TAKE))?;
            }
        }
    }

    fn query(&mut self, sql: &str) -> Result<()> {
        put(&mut self.wire, &ask(sql))?;
        self.finish().map(drop)
    }

    /// Reads until the server is ready for the next query; the first column of the last row.
    fn finish(&mut self) -> Result<Option<String>> {
        let mut found = None;
        loop {
            match self.hear()? {
                (b'D', row) => found = Some(first(&row).context("postgres: a row without a column")?),
                (b'Z', _) => return Ok(found),
                (b'R', how) => ensure!(how == [0; 4], "postgres wants a password"),
                _ => {}
            }
        }
    }

    fn hear(&mut self) -> Result<(u8, Vec<u8>)> {
        let head = exactly(&mut self.wire, 5)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let body = exactly(&mut self.wire, len.checked_sub(4).context("postgres: a short message")?)?;
        match head[0] {
            b'E' => bail!("postgres: {}", String::from_utf8_lossy(&body).replace('\0', " ")),
            b'A' => self.news += 1,
            _ => {}
        }
        Ok((head[0], body))
    }
}

impl Submitter for Client {
    fn submit(&mut self) -> Result<()> {
        self.query(&format!("INSERT INTO jobs (payload) VALUES ('{}'); NOTIFY jobs", text()))
    }

    fn result(&mut self) -> Result<()> {
        while self.news == 0 {
            self.hear()?;
        }
        self.news -= 1;
        Ok(())
    }
}

fn text() -> String {
    String::from_utf8_lossy(&JOB).into_owned()
}

fn ask(sql: &str) -> Vec<u8> {
    [b"Q", &(sql.len() as u32 + 5).to_be_bytes()[..], sql.as_bytes(), b"\0"].concat()
}

/// A first message has no letter.
fn startup(number: u32, rest: &[u8]) -> Vec<u8> {
    [&(rest.len() as u32 + 8).to_be_bytes(), &number.to_be_bytes(), rest].concat()
}

/// The first column of a row, which must not be null.
fn first(row: &[u8]) -> Option<String> {
    let (len, rest) = row.get(2..)?.split_first_chunk::<4>()?;
    let len = usize::try_from(i32::from_be_bytes(*len)).ok()?;
    Some(String::from_utf8_lossy(rest.get(..len)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_first_column_or_is_none() {
        assert_eq!(first(b"\0\x02\0\0\0\x0242\0\0\0\x01j").as_deref(), Some("42"));
        for row in [&b""[..], b"\0\0", b"\0\x01\xff\xff\xff\xff", b"\0\x01\0\0\0\x0342", b"\0\x01\0\0"] {
            assert_eq!(first(row), None, "{row:?}");
        }
    }

    #[test]
    fn messages_say_their_length() {
        assert_eq!(ask("x"), b"Q\0\0\0\x06x\0");
        assert_eq!(startup(TLS, b""), b"\0\0\0\x08\x04\xd2\x16\x2f");
    }
}
