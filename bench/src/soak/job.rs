//! What a job of the soak does: it takes its task's lock, which no other live attempt may hold, and says when it begins
//! and ends in one file that all jobs append to. The kernel gives the lock back however the process ends, so an attempt
//! that finds it taken is a second live one.

use anyhow::{Context, Result, ensure};
use dunlin_hub::clock::micros;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// The file that all jobs append to, in the ledger's directory.
pub(super) const LEDGER: &str = "ledger";

/// What a line of the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// An attempt runs.
    Start,
    /// It is about to end by itself.
    End,
    /// It found another one alive.
    Double,
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) word: Word,
    pub(super) task: String,
    pub(super) fence: u64,
    /// Microseconds of CLOCK_BOOTTIME.
    pub(super) at: u64,
}

impl Line {
    fn text(&self) -> String {
        let word = match self.word {
            Word::Start => "start",
            Word::End => "end",
            Word::Double => "double",
        };
        format!("{word} {} {} {}\n", self.task, self.fence, self.at)
    }

    /// Reads one; `None` when it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let word = match words.next()? {
            "start" => Word::Start,
            "end" => Word::End,
            "double" => Word::Double,
            _ => return None,
        };
        let line = Self {
            word,
            task: words.next()?.to_owned(),
            fence: words.next()?.parse().ok()?,
            at: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(line)
    }
}

/// Runs the job: `DIR KIND MS BYTES`. Its exit code.
///
/// # Errors
/// When it does not run under an agent, or its directory cannot be written.
pub fn run(args: &[&str]) -> Result<u8> {
    let [dir, kind, ms, bytes] = args else { anyhow::bail!("soak-job DIR KIND MS BYTES") };
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let (task, fence) = (variable("DUNLIN_TASK_ID")?, variable("DUNLIN_FENCE")?.parse()?);
    let attempt: u32 = variable("DUNLIN_ATTEMPT")?.parse()?;
    let dir = Path::new(dir);
    let ledger = OpenOptions::new().append(true).open(dir.join(LEDGER))?;
    let say = |word: Word| -> Result<()> {
        let line = Line { word, task: task.clone(), fence, at: micros() }.text();
        // One write of a few bytes with O_APPEND: never mixed with another's.
        let written = (&ledger).write(line.as_bytes())?;
        ensure!(written == line.len(), "a line was cut");
        Ok(())
    };
    let lock = File::create(dir.join("locks").join(&task))?;
    // SAFETY: flock only needs a valid descriptor, which `lock` is.
    let held = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
    say(if held { Word::Start } else { Word::Double })?;
    let mut left: usize = bytes.parse()?;
    let mut out = std::io::stdout().lock();
    let row = [b'x'; 1024];
    while left > 0 {
        let n = left.min(row.len());
        out.write_all(&row[..n])?;
        left -= n;
    }
    out.flush()?;
    std::thread::sleep(Duration::from_millis(ms.parse()?));
    say(Word::End)?;
    Ok(match *kind {
        "fail" => 3,
        "retry" if attempt < 2 => 1,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_what_is_none_is_none() {
        for word in [Word::Start, Word::End, Word::Double] {
            let line = Line { word, task: "soak-1".into(), fence: 7, at: 12 };
            assert_eq!(Line::parse(line.text().trim_end()), Some(line));
        }
        for text in ["", "start", "start a b 1", "begin a 1 1", "start a 1 1 1"] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
