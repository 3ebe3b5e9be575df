//! Secrets of the board for a job: read from credentials, put into its environment, and taken out of what it writes before
//! that is kept or sent.

use dunlin_wire::job::Denial;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Largest secret, in bytes.
const SECRET_MAX: u64 = 4096;
/// Where they are when systemd gives none.
const DIRECTORY: &str = "/etc/dunlin/credentials";
/// What stands in output for a secret.
const REDACTED: &[u8] = b"[redacted]";

/// The directories that may hold credentials, the first that has one winning.
pub(super) fn directories() -> Vec<PathBuf> {
    let given = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    given.into_iter().chain([PathBuf::from(DIRECTORY)]).collect()
}

/// The variables with their values.
pub(super) fn all(variables: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, Denial> {
    variables.iter().map(|(variable, name)| Ok((variable.clone(), read(name)?))).collect()
}

/// The credential's value without the line's end: a file of root's or ours that nobody else may read.
pub(super) fn read(name: &str) -> Result<String, Denial> {
    let file = directories().iter().find_map(|dir| {
        let path = dir.join(name);
        super::sys::open_path(&path.to_string_lossy(), libc::O_RDONLY | libc::O_NOFOLLOW).ok()
    });
    let file = file.ok_or(Denial::CapabilityMissing)?;
    let stat = super::sys::fstat(file.as_raw_fd()).map_err(|_| Denial::CapabilityMissing)?;
    // SAFETY: geteuid cannot fail and touches no memory.
    let ours = stat.st_uid == 0 || stat.st_uid == unsafe { libc::geteuid() };
    // systemd gives them to a service's group by an access list, which shows in the group's bits; writing is never right.
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || !ours || stat.st_mode & 0o027 != 0 {
        tracing::error!(
            credential = name,
            "a credential must be a file of root's with mode 0400 (chmod 0400)"
        );
        return Err(Denial::CapabilityMissing);
    }
    let mut value = String::new();
    let read = std::fs::File::from(file).take(SECRET_MAX + 1).read_to_string(&mut value);
    value.truncate(value.trim_end_matches(['\n', '\r']).len());
    let good = read.is_ok_and(|n| n as u64 <= SECRET_MAX) && !value.is_empty() && !value.contains('\0');
    good.then_some(value).ok_or(Denial::CapabilityMissing)
}

/// Takes secrets out of a stream, wherever it is cut into chunks.
#[derive(Debug, Clone)]
pub(super) struct Redactor {
    secrets: Vec<Vec<u8>>,
    held: Vec<u8>,
}

impl Redactor {
    /// For these values.
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a str>) -> Self {
        let mut secrets: Vec<Vec<u8>> = secrets.map(|s| s.as_bytes().to_vec()).collect();
        // One that begins with another is taken out whole.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets, held: Vec::new() }
    }

    /// One that takes out the same, from the beginning of another stream.
    pub(super) fn fresh(&self) -> Self {
        Self { secrets: self.secrets.clone(), held: Vec::new() }
    }

    /// Whether there is anything to take out.
    pub(super) fn is_idle(&self) -> bool {
        self.secrets.is_empty()
    }

    /// What can be passed on of the stream so far. What may be the beginning of a secret is held back until it is known.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        self.pass(false)
    }

    /// What was held back to the end of the stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.pass(true)
    }

    fn pass(&mut self, end: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            let rest = &self.held[at..];
            // The longest decides: while it may still come, a shorter one must wait.
            let begun = |s: &&Vec<u8>| rest.starts_with(s) || (!end && s.starts_with(rest));
            match self.secrets.iter().find(begun) {
                Some(secret) if rest.starts_with(secret) => {
                    out.extend_from_slice(REDACTED);
                    at += secret.len();
                }
                Some(_) => break,
                None => {
                    out.push(rest[0]);
                    at += 1;
                }
            }
        }
        self.held.drain(..at);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_chunking_lets_a_secret_through() {
        for (secrets, text, want) in [
            (&["hunter2"][..], "a hunter2 b", "a [redacted] b"),
            (&["hunter2"], "hunter", "hunter"),
            (&["hunter2"], "hunthunter2", "hunt[redacted]"),
            (&["aab"], "aaab", "a[redacted]"),
            (&["abc", "abcdef"], "abcdef abc abcde", "[redacted] [redacted] [redacted]de"),
            (&["x", "yy"], "xyy", "[redacted][redacted]"),
            (&["abab"], "ababab", "[redacted]ab"),
            (&[], "abc", "abc"),
        ] {
            for size in 1..=text.len() {
                let mut redactor = Redactor::new(secrets.iter().copied());
                let mut out = Vec::new();
                text.as_bytes().chunks(size).for_each(|chunk| out.extend(redactor.push(chunk)));
                out.extend(redactor.finish());
                assert_eq!(String::from_utf8_lossy(&out), want, "{secrets:?} in {text} by {size}");
            }
        }
    }
}
