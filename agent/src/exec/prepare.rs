//! Opens what a job needs and checks the opened things, which are then used: no path is looked up twice.

use super::sys;
use crate::core::policy::{Allowed, Operand, PathKind, Rule, is_launcher};
use dunlin_wire::job::Denial;
use ring::digest::{Context, SHA256};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// A job's opened program and working directory.
#[derive(Debug)]
pub(super) struct Opened {
    pub program: OwnedFd,
    pub script: bool,
    /// What the program is to interpret.
    pub interpreted: Option<OwnedFd>,
    /// `None`: a scratch directory is made when the job starts.
    pub cwd: Option<OwnedFd>,
}

/// Opens what `allowed` names.
pub(super) fn open(allowed: &Allowed<'_>) -> Result<Opened, Denial> {
    let cwd = match allowed.cwd.as_slice() {
        [] => None,
        candidates => Some(candidates.iter().find_map(|c| beneath(c).ok()).ok_or(Denial::Cwd)?),
    };
    for operand in &allowed.operands {
        beneath(operand).map_err(|()| Denial::ArgumentPath)?;
    }
    let (program, script) = program(allowed.rule)?;
    let interpreted = script_of(allowed.rule)?;
    Ok(Opened { program, script, interpreted, cwd })
}

/// Opens a path beneath its root, and checks what it is.
fn beneath(operand: &Operand<'_>) -> Result<OwnedFd, ()> {
    let root = sys::open_path(&operand.root.path, libc::O_PATH | libc::O_DIRECTORY).map_err(drop)?;
    let mut resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    if !operand.root.symlinks {
        resolve |= libc::RESOLVE_NO_SYMLINKS;
    }
    if !operand.root.cross_mount {
        resolve |= libc::RESOLVE_NO_XDEV;
    }
    let opened = if operand.path.is_empty() {
        Ok(root)
    } else {
        match sys::openat2(root.as_raw_fd(), &operand.path, libc::O_PATH, resolve) {
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => walk(root, operand),
            other => other,
        }
    };
    let opened = opened.map_err(drop)?;
    let mode = sys::fstat(opened.as_raw_fd()).map_err(drop)?.st_mode & libc::S_IFMT;
    let wanted = match operand.kind {
        PathKind::File => libc::S_IFREG,
        PathKind::Dir => libc::S_IFDIR,
    };
    if mode == wanted { Ok(opened) } else { Err(()) }
}

/// What openat2 does, for kernels before 5.6 (JetPack 4): component by component, no links. A root with
/// `symlinks = true` cannot be had there.
fn walk(root: OwnedFd, operand: &Operand<'_>) -> std::io::Result<OwnedFd> {
    let device = sys::fstat(root.as_raw_fd())?.st_dev;
    let mut at = root;
    for name in operand.path.split('/') {
        at = sys::open_component(at.as_raw_fd(), name, libc::O_PATH)?;
        let stat = sys::fstat(at.as_raw_fd())?;
        let link = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
        if link || (stat.st_dev != device && !operand.root.cross_mount) {
            return Err(std::io::Error::from_raw_os_error(libc::ELOOP));
        }
    }
    Ok(at)
}

/// Opens a rule's program; whether it is a script, which names its interpreter itself.
pub(super) fn program(rule: &Rule) -> Result<(OwnedFd, bool), Denial> {
    executable(rule, &rule.program, rule.launcher || rule.script.is_some())
}

/// Opens the script that a rule gives to its program, under the same conditions.
pub(super) fn script_of(rule: &Rule) -> Result<Option<OwnedFd>, Denial> {
    rule.script.as_ref().map(|path| executable(rule, path, true).map(|(fd, _)| fd)).transpose()
}

/// Opens what will be executed: regular, root's, not writable by others, not set-id; the same for the directories above.
fn executable(rule: &Rule, path: &str, may_launch: bool) -> Result<(OwnedFd, bool), Denial> {
    let fd = sys::open_path(path, libc::O_PATH).map_err(|_| Denial::ProgramMissing)?;
    let stat = sys::fstat(fd.as_raw_fd()).map_err(|_| Denial::ProgramMissing)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Denial::ProgramMissing);
    }
    if stat.st_mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
        return Err(Denial::ProgramSetid);
    }
    let real = std::fs::read_link(link(&fd)).map_err(|_| Denial::ProgramMissing)?;
    if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 || !way_is_trusted(Path::new(path), &real) {
        return Err(Denial::ProgramUntrusted);
    }
    // What the name in the rule leads to may run programs although the name does not say so.
    if !may_launch && is_launcher(&real.to_string_lossy()) {
        return Err(Denial::ProgramUntrusted);
    }
    let mut file = std::fs::File::open(link(&fd)).map_err(|_| Denial::ProgramMissing)?;
    let mut begin = [0; 2];
    let script = file.read_exact(&mut begin).is_ok() && &begin == b"#!";
    if !rule.sha256.is_empty() {
        let digest = digest(&begin, file).map_err(|_| Denial::ProgramMissing)?;
        if !rule.sha256.iter().any(|pin| pin == digest.as_ref()) {
            return Err(Denial::ProgramDigest);
        }
    }
    Ok((fd, script))
}

fn link(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn digest(begin: &[u8], mut rest: std::fs::File) -> std::io::Result<ring::digest::Digest> {
    let mut hash = Context::new(&SHA256);
    hash.update(begin);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(hash.finish()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Symbolic links followed on the way to a program at most, as the kernel has it.
const LINKS_MAX: u32 = 40;

/// Whether nobody but root could make `path` lead elsewhere than to `real`: every directory on the way, and every link,
/// is root's and not writable by others. A sticky directory lets only owners rename.
fn way_is_trusted(path: &Path, real: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let mut left: Vec<PathBuf> = names(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    loop {
        let Ok(dir) = std::fs::metadata(&at) else { return false };
        let closed = dir.mode() & 0o022 == 0 || dir.mode() & libc::S_ISVTX != 0;
        if dir.uid() != 0 || !closed {
            return false;
        }
        let Some(name) = left.pop() else { return false };
        if name.as_os_str() == ".." {
            at.pop();
            continue;
        }
        let next = at.join(name);
        let Ok(meta) = std::fs::symlink_metadata(&next) else { return false };
        if meta.is_symlink() {
            links += 1;
            let target = std::fs::read_link(&next);
            let Some(target) = target.ok().filter(|_| meta.uid() == 0 && links <= LINKS_MAX) else {
                return false;
            };
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            left.extend(names(&target));
        } else if left.is_empty() {
            return next == real;
        } else {
            at = next;
        }
    }
}

/// The components of a path, the first one last.
fn names(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    let mut names: Vec<PathBuf> = parts.map(|c| PathBuf::from(c.as_os_str())).collect();
    names.reverse();
    names
}
