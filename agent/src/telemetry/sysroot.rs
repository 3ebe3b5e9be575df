//! The tree that every reader reads: `/`, or a copy of a board's files for tests and support.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a file with one value. A page is also what sysfs gives at most.
pub const VALUE_MAX: usize = 4096;
/// Bytes of a table such as /proc/stat, which grows with cores and interrupts.
pub const TABLE_MAX: usize = 256 * 1024;
/// Entries of a directory.
const ENTRIES_MAX: usize = 1024;

/// Why a figure is not known. It is never 0 instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// This kernel or board does not have the file.
    #[error("no such file")]
    Missing,
    /// The file is there and the read fails, as that of a block which is powered off does (EAGAIN).
    #[error("read failed: {}", io::Error::from_raw_os_error(*.0))]
    Failed(i32),
    /// More than such a file can hold; nothing of it is believed.
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    /// Not UTF-8.
    #[error("not text")]
    NotText,
    /// Text, but not of the form that its kernel document gives.
    #[error("not understood")]
    Malformed,
    /// A number that the thing measured cannot have.
    #[error("out of range")]
    OutOfRange,
    /// The source says itself that it does not know.
    #[error("{0}")]
    Says(&'static str),
    /// As before, in words that are not known here.
    #[error("{0}")]
    Told(String),
}

/// A directory that stands for `/`.
#[derive(Debug, Clone)]
pub struct Sysroot(PathBuf);

impl Default for Sysroot {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Sysroot {
    /// The tree under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Is this the machine we run on? Questions to the kernel itself make sense only then.
    pub fn is_live(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The text of the file at `path` (without a leading slash), unless it has more than `max` bytes. Not more than
    /// that is ever read, whatever length the file claims to have.
    ///
    /// # Errors
    /// Why there is no text.
    pub fn read(&self, path: &str, max: usize) -> Result<String, Absent> {
        // A pipe in place of a file must not hold up the reader.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(self.0.join(path));
        let file = file.map_err(|e| absent(&e))?;
        let mut bytes = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(|e| absent(&e))?;
        if bytes.len() > max {
            return Err(Absent::TooLarge(max));
        }
        String::from_utf8(bytes).map_err(|_| Absent::NotText)
    }

    /// Whether there is anything at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.0.join(path).exists()
    }

    /// Names in the directory at `path`, in order; none when it cannot be listed.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join(path)).into_iter().flatten().take(ENTRIES_MAX);
        let mut names: Vec<_> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The `N` of every entry `prefixN` of the directory at `path`, smallest first.
    pub fn indices(&self, path: &str, prefix: &str) -> Vec<u32> {
        let names = self.list(path);
        let mut found: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect();
        found.sort_unstable();
        found
    }
}

fn absent(error: &io::Error) -> Absent {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Absent::Missing,
        _ => Absent::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_text_file_is_absent_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let root = Sysroot::new(dir.path());
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::fs::write(dir.path().join("fits"), "1234\n").unwrap();
        std::fs::write(dir.path().join("large"), "12345\n").unwrap();
        std::fs::write(dir.path().join("bytes"), [0xff, 0xfe]).unwrap();
        // A file that claims to be far larger than memory.
        File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        for (path, want) in [
            ("fits", Ok("1234\n".to_owned())),
            ("none", Err(Absent::Missing)),
            ("fits/x", Err(Absent::Missing)),
            ("dir", Err(Absent::Failed(libc::EISDIR))),
            ("large", Err(Absent::TooLarge(5))),
            ("sparse", Err(Absent::TooLarge(5))),
            ("bytes", Err(Absent::NotText)),
        ] {
            assert_eq!(root.read(path, 5), want, "{path}");
        }
        assert_eq!(root.list("none"), Vec::<String>::new());
    }

    #[test]
    fn indices_are_in_the_order_of_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["zone10", "zone2", "zonex", "zone", "other1"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(Sysroot::new(dir.path()).indices("", "zone"), [2, 10]);
    }
}
