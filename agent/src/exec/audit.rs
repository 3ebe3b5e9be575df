//! Every decision of this board, in order, in a file of the executor's own: one line of JSON each, chained by SHA-256, so
//! that nobody can take one out or change one without its being seen.
//!
//! A line names the hash of the line before it. The file is bounded: a full one becomes `audit.1.log` in the place of the
//! one before, and the next begins with the hash of its last line. Lines are not synced: a power cut may cost the last
//! ones, which is a shorter chain, never a broken one.

use super::message::Work;
use crate::clock;
use dunlin_wire::envelope::Envelope;
use dunlin_wire::job::{Actuation, Denial, HookDispatch, Job, Wake};
use dunlin_wire::redact::arguments;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of one file. There are two.
const BYTES_MAX: u64 = 1 << 20;
/// Longest line, in bytes: arguments are cut long before.
const LINE_MAX: u64 = 64 * 1024;
/// The end of the chain, open for the next line.
pub(super) struct Audit {
    dir: PathBuf,
    file: Option<File>,
    bytes: u64,
    number: u64,
    head: String,
}

/// What a verified chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Lines that are there.
    pub lines: u64,
    /// Number of the newest.
    pub newest: u64,
    /// Its hash: whoever keeps it elsewhere sees later that nothing before it was changed.
    pub head: String,
}

fn names(dir: &Path) -> [PathBuf; 2] {
    [dir.join("audit.1.log"), dir.join("audit.log")]
}

fn hash(line: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest(&SHA256, line).as_ref())
}

impl Audit {
    /// Goes on where the file in `dir` ends. A line that was cut short by a power cut is taken off.
    pub(super) fn open(dir: &Path) -> Self {
        let mut audit = Self { dir: dir.to_owned(), file: None, bytes: 0, number: 0, head: hash(b"") };
        if let Err(error) = audit.resume() {
            tracing::error!(%error, dir = %dir.display(), "decisions are not recorded");
        }
        audit
    }

    fn resume(&mut self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let [before, now] = names(&self.dir);
        let mut file =
            std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(now)?;
        let mut text = Vec::new();
        (&mut file).take(BYTES_MAX + LINE_MAX).read_to_end(&mut text)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        text.truncate(whole);
        file.set_len(whole as u64)?;
        file.seek(std::io::SeekFrom::End(0))?;
        self.bytes = whole as u64;
        if text.is_empty() {
            text = std::fs::read(before).unwrap_or_default();
        }
        if let Some(last) = text.strip_suffix(b"\n").and_then(|t| t.rsplit(|b| *b == b'\n').next()) {
            self.head = hash(last);
            let line: Value = serde_json::from_slice(last).unwrap_or_default();
            self.number = line["n"].as_u64().unwrap_or(0);
        }
        self.file = Some(file);
        Ok(())
    }

    /// Writes what was decided on what was `asked`, and under which rule.
    pub(super) fn decided(&mut self, mut asked: Value, reason: Option<Denial>, rule: Option<&str>) {
        asked["decision"] = if reason.is_some() { "deny" } else { "allow" }.into();
        asked["reason"] = reason.map(Denial::as_str).into();
        asked["rule"] = rule.into();
        self.write(clock::wall_ms(), asked);
    }

    /// Writes one line: `what` and when it was, in milliseconds since the epoch.
    pub(super) fn write(&mut self, at_ms: u64, what: Value) {
        if let Err(error) = self.append(at_ms, what) {
            tracing::error!(%error, "a decision was not recorded");
        }
    }

    fn append(&mut self, at_ms: u64, what: Value) -> std::io::Result<()> {
        if self.bytes >= BYTES_MAX {
            let [before, now] = names(&self.dir);
            self.file = None;
            std::fs::rename(&now, before)?;
            self.file = Some(std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(now)?);
            self.bytes = 0;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = Map::new();
        line.insert("n".into(), (self.number + 1).into());
        line.insert("at".into(), at_ms.into());
        line.insert("prev".into(), self.head.as_str().into());
        line.extend(what.as_object().cloned().unwrap_or_default());
        let mut text = Value::Object(line).to_string();
        let head = hash(text.as_bytes());
        text.push('\n');
        file.write_all(text.as_bytes())?;
        self.bytes += text.len() as u64;
        self.number += 1;
        self.head = head;
        Ok(())
    }
}

/// Reads the chain in `dir`, calls `each` with every line, oldest first, and checks that each names the one before it.
///
/// # Errors
/// Where it is broken, or what the file system said.
pub fn read_audit(dir: &Path, mut each: impl FnMut(&Value)) -> Result<Chain, String> {
    let mut chain = Chain { lines: 0, newest: 0, head: hash(b"") };
    for path in names(dir) {
        let name = path.display();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(format!("{name}: {e}")),
        };
        let mut reader = BufReader::new(file).take(BYTES_MAX + 2 * LINE_MAX);
        loop {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).map_err(|e| format!("{name}: {e}"))?;
            // The rest of a line that is being written.
            let Some(text) = line.strip_suffix(b"\n") else { break };
            let value: Value = serde_json::from_slice(text).unwrap_or_default();
            let number = value["n"].as_u64().unwrap_or(0);
            // The oldest file that is kept begins where another ended.
            let first = chain.lines == 0 && number > 1;
            if !first && (number != chain.newest + 1 || value["prev"] != chain.head.as_str()) {
                return Err(format!("{name}: the chain is broken at line {number}, after {}", chain.newest));
            }
            each(&value);
            chain = Chain { lines: chain.lines + 1, newest: number, head: hash(text) };
        }
    }
    Ok(chain)
}

/// What was asked, as it is written. Of a signed job what it says of itself: that it says so, the decision tells.
pub(super) fn asked(work: &Work) -> Value {
    let signed = match &work.job {
        Job::Signed(bytes) => Envelope::decode(bytes).and_then(|envelope| envelope.peek()),
        _ => None,
    };
    let job = signed.as_ref().map_or_else(|| work.job.clone(), |payload| payload.work.clone().into());
    let (argv, hook) = match &job {
        Job::Shell(shell) | Job::Actuation(Actuation { shell, .. }) => (Some(&shell.argv), None),
        Job::OrchestratorRun(run) => (run.steps.first().map(|step| &step.argv), None),
        Job::HookDispatch(HookDispatch { hook, .. }) | Job::Wake(Wake { hook, .. }) => (None, Some(hook)),
        Job::Signed(_) => (None, None),
    };
    let declared = match &job {
        Job::Actuation(Actuation { declared, .. }) => Some(declared.to_string()),
        _ => None,
    };
    json!({
        "task": work.task.as_str(),
        "fence": work.fence.0,
        "attempt": work.attempt,
        "argv": argv.map(|argv| arguments(argv)),
        "steps": match &job { Job::OrchestratorRun(run) => Some(run.steps.len()), _ => None },
        "hook": hook,
        "declared": declared,
        "signed": matches!(work.job, Job::Signed(_)),
        "issuer": signed.as_ref().map(|payload| payload.issuer.to_string()),
        "why": signed.map(|payload| payload.reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(dir: &Path) -> Result<Chain, String> {
        read_audit(dir, |_| {})
    }

    #[test]
    fn a_line_taken_out_or_changed_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..3 {
            // Each by another process.
            Audit::open(dir.path()).write(n, json!({"decision": "allow", "task": format!("t{n}")}));
        }
        let chain = verify(dir.path()).unwrap();
        assert_eq!((chain.lines, chain.newest), (3, 3));
        let path = dir.path().join("audit.log");
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [("t1", "t9"), ("allow", "deny")] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            assert!(verify(dir.path()).unwrap_err().contains("broken"), "{from}");
        }
        let without: Vec<&str> = text.lines().enumerate().filter(|(n, _)| *n != 1).map(|(_, l)| l).collect();
        std::fs::write(&path, without.join("\n") + "\n").unwrap();
        assert!(verify(dir.path()).unwrap_err().contains("broken at line 3"));
        // A power cut in the last line: the chain is shorter, and goes on.
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        Audit::open(dir.path()).write(9, json!({}));
        assert_eq!(verify(dir.path()).unwrap().newest, 3);
    }

    #[test]
    fn a_full_file_hands_its_head_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(dir.path());
        let long = "x".repeat(30_000);
        for n in 0..90 {
            audit.write(n, json!({"long": long}));
        }
        let chain = verify(dir.path()).unwrap();
        assert!(chain.newest == 90 && chain.lines < 90, "{chain:?}");
        let bytes: u64 = names(dir.path()).iter().map(|p| std::fs::metadata(p).unwrap().len()).sum();
        assert!(bytes < 2 * (BYTES_MAX + LINE_MAX), "{bytes}");
        drop(audit);
        Audit::open(dir.path()).write(0, json!({}));
        assert_eq!(verify(dir.path()).unwrap().newest, 91);
    }

    #[test]
    fn secrets_are_not_written() {
        let shown = |argv: &[&str]| {
            let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
            arguments(&argv).join(" ")
        };
        assert_eq!(
            shown(&["/bin/x", "-n", "5", "/var/log/app/2026-11-21.log"]),
            "/bin/x -n 5 /var/log/app/2026-11-21.log"
        );
        assert_eq!(shown(&["/bin/x", "--token", "abc", "y"]), "/bin/x --token [redacted] y");
        assert_eq!(shown(&["/bin/x", "--password=abc"]), "/bin/x [redacted]");
        assert_eq!(shown(&["/bin/x", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"]), "/bin/x [redacted]");
        assert_eq!(shown(&["/bin/sh", "-c", "curl -H 'Authorization: x' h"]), "/bin/sh -c [redacted]");
    }
}
