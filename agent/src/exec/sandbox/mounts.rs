//! What a job sees of the file system: everything read-only but its scratch directory and what its rule lets it write, a
//! /tmp and a /dev of its own, and nothing of the agent's own files. See mount_namespaces(7).
//!
//! Made by the guard, which has one thread, in a mount namespace that it leaves again, by mount(2) alone where it can:
//! the boards' kernels begin at 4.9.

use crate::exec::sys::{self, check};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// What is different from the board's own view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::exec) struct View {
    /// Writable directories: a root and the way down from it.
    pub write: Vec<(String, String)>,
    /// Directories that are needed also where something hides them, as they are elsewhere.
    pub roots: Vec<String>,
    /// The job's scratch directory, writable.
    pub scratch: Option<String>,
    /// Directories of the agent's own.
    pub hidden: Vec<String>,
    /// Devices beside the harmless ones, `*` in the last component.
    pub devices: Vec<String>,
}

impl View {
    /// Every directory that may be written to.
    pub(in crate::exec) fn writable(&self) -> impl Iterator<Item = String> {
        let write = self.write.iter().map(|(root, way)| join(root, way));
        write.chain(self.scratch.clone())
    }
}

fn join(root: &str, way: &str) -> String {
    if way.is_empty() { root.to_owned() } else { format!("{root}/{way}") }
}

/// Devices that every program expects.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
    (c"/tmp", c"/dev/shm"),
];
/// A writable place holds data, not programs.
const DATA: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
/// Room in a job's own /tmp: it is memory, and the job's where memory is limited.
const TMP_OPTIONS: &CStr = c"mode=1777,size=256m,nr_inodes=64k";
const SMALL_OPTIONS: &CStr = c"mode=755,size=64k,nr_inodes=1k";

/// A directory that will be mounted, held by what was found at its path before anything was hidden.
struct Kept {
    path: String,
    fd: OwnedFd,
    writable: bool,
}

/// Makes the calling process's mount namespace that view. `cwd` is the descriptor of its working directory, opened and
/// checked outside; the same directory is entered inside.
pub(in crate::exec) fn enter(view: &View, cwd: RawFd) -> io::Result<()> {
    let cwd_path = std::fs::read_link(format!("/proc/self/fd/{cwd}"))?;
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    let kept = keep(view)?;
    let devices = devices(&view.devices);
    read_only()?;
    let mut covered = vec!["/tmp".to_owned()];
    tmpfs("/tmp", DATA, TMP_OPTIONS)?;
    make_dev(&devices)?;
    for dir in &view.hidden {
        // What is gone with /tmp, or was never there, needs no hiding.
        if Path::new(dir).is_dir() {
            tmpfs(dir, DATA, SMALL_OPTIONS)?;
            covered.push(dir.clone());
        }
    }
    for kept in kept {
        bring_back(kept, &covered)?;
    }
    enter_cwd(&cwd_path.to_string_lossy(), cwd)
}

fn keep(view: &View) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    // A root that lies below something of the agent's own stays hidden.
    let is_hidden = |path: &str| view.hidden.iter().any(|dir| Path::new(path).starts_with(dir));
    let is_written = |path: &&String| view.write.iter().any(|(root, way)| way.is_empty() && root == *path);
    for path in view.roots.iter().filter(|path| !is_hidden(path) && !is_written(path)) {
        // One that is not there was not used by this job.
        if let Ok(fd) = sys::open_path(path, libc::O_PATH | libc::O_DIRECTORY) {
            kept.push(Kept { path: path.clone(), fd, writable: false });
        }
    }
    for (root, way) in view.write.iter().filter(|(root, way)| !is_hidden(&join(root, way))) {
        let fd = sys::open_path(root, libc::O_PATH | libc::O_DIRECTORY)?;
        let fd = if way.is_empty() { fd } else { sys::open_beneath(fd, way)? };
        kept.push(Kept { path: join(root, way), fd, writable: true });
    }
    if let Some(scratch) = &view.scratch {
        let fd = sys::open_path(scratch, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)?;
        kept.push(Kept { path: scratch.clone(), fd, writable: true });
    }
    // What lies in another comes after it.
    kept.sort_by_key(|kept| kept.path.len());
    Ok(kept)
}

/// Puts a directory back to its place; only where something covers it does it have to be made.
fn bring_back(kept: Kept, covered: &[String]) -> io::Result<()> {
    let is_covered = covered.iter().any(|dir| Path::new(&kept.path).starts_with(dir));
    if !is_covered && !kept.writable {
        return Ok(());
    }
    let source = format!("/proc/self/fd/{}", kept.fd.as_raw_fd());
    if is_covered {
        // In our own empty directories: nobody else can have put anything there.
        std::fs::create_dir_all(&kept.path)?;
        mount(Some(&source), &kept.path, None, libc::MS_BIND, None)?;
    } else {
        mount(Some(&source), &source, None, libc::MS_BIND, None)?;
    }
    // A way that was changed meanwhile leads to something else, which stays as it is.
    let mounted = open_same(&kept.path, kept.fd.as_raw_fd())?;
    let access = if kept.writable { 0 } else { libc::MS_RDONLY };
    let flags = libc::MS_REMOUNT | libc::MS_BIND | DATA | access;
    mount(None, &format!("/proc/self/fd/{}", mounted.as_raw_fd()), None, flags, None)
}

/// Opens what is at `path` now and makes sure that it is the same as `fd`.
fn open_same(path: &str, fd: RawFd) -> io::Result<OwnedFd> {
    let found = sys::open_path(path, libc::O_PATH | libc::O_DIRECTORY)?;
    let (a, b) = (sys::fstat(found.as_raw_fd())?, sys::fstat(fd)?);
    match (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) {
        true => Ok(found),
        false => Err(io::Error::from_raw_os_error(libc::ESTALE)),
    }
}

/// The descriptor `cwd` becomes the same directory as this namespace has it: through the old one, everything could be
/// written to.
fn enter_cwd(path: &str, cwd: RawFd) -> io::Result<()> {
    let inside = open_same(path, cwd)?;
    // SAFETY: both are descriptors of ours.
    check(unsafe { libc::dup3(inside.as_raw_fd(), cwd, libc::O_CLOEXEC) }).map(drop)
}

/// Tries in the calling process, which is to end, whether a view can be made here at all, and left again.
pub(in crate::exec) fn try_out() -> io::Result<()> {
    let home = here()?;
    // SAFETY: takes a number only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    read_only()?;
    tmpfs("/tmp", DATA, TMP_OPTIONS)?;
    go_to(&home)
}

/// The calling process's mount namespace.
pub(in crate::exec) fn here() -> io::Result<OwnedFd> {
    sys::open_path("/proc/self/ns/mnt", libc::O_RDONLY)
}

/// Changes it. The calling process is at its root then.
pub(in crate::exec) fn go_to(namespace: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) }).map(drop)
}

/// Makes every mount read-only, and set-id files without effect: at once since Linux 5.12, else one by one.
fn read_only() -> io::Result<()> {
    const RECURSIVE: libc::c_uint = 0x8000;
    if crate::fault::masked("mount_setattr") {
        return read_only_each();
    }
    // `struct mount_attr`: attr_set, attr_clr, propagation, userns_fd. MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID.
    let attr: [u64; 4] = [3, 0, 0, 0];
    // SAFETY: path and attributes live through the call, the size is theirs.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            RECURSIVE,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    match check(done as libc::c_int) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => read_only_each(),
        done => done.map(drop),
    }
}

/// The same, mount by mount; each keeps what it has besides, as the kernel locks some of it (mount_namespaces(7)).
fn read_only_each() -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(4);
        let (Some(point), Some(options)) = (fields.next(), fields.next()) else { continue };
        let mut flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID;
        for option in options.split(',') {
            flags |= match option {
                "nodev" => libc::MS_NODEV,
                "noexec" => libc::MS_NOEXEC,
                "noatime" => libc::MS_NOATIME,
                "nodiratime" => libc::MS_NODIRATIME,
                "relatime" => libc::MS_RELATIME,
                _ => 0,
            };
        }
        match mount(None, &unescape(point), None, flags, None) {
            // Something else is mounted above it, or its way is gone: nobody gets there.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Blanks and the like are octal in mountinfo, see proc_pid_mountinfo(5).
fn unescape(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// A device: where it is, and what it is.
struct Device {
    path: String,
    fd: OwnedFd,
    stat: libc::stat,
}

/// What of /dev the job gets.
fn devices(globs: &[String]) -> Vec<Device> {
    let mut found = Vec::new();
    let mut add = |path: String| {
        let Ok(fd) = sys::open_path(&path, libc::O_PATH | libc::O_NOFOLLOW) else { return };
        match sys::fstat(fd.as_raw_fd()) {
            Ok(stat) if matches!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) => {
                found.push(Device { path, fd, stat });
            }
            _ => {}
        }
    };
    DEVICES.iter().for_each(|path| add((*path).to_owned()));
    for glob in globs {
        let Some((dir, last)) = glob.rsplit_once('/') else { continue };
        if !last.contains('*') {
            add(glob.clone());
            continue;
        }
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_match(last, &name) {
                add(format!("{dir}/{name}"));
            }
        }
    }
    found
}

/// Whether `name` is what `glob` says, `*` being anything.
fn is_match(glob: &str, name: &str) -> bool {
    let parts: Vec<&str> = glob.split('*').collect();
    let [first, middle @ .., last] = parts.as_slice() else { return glob == name };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn make_dev(devices: &[Device]) -> io::Result<()> {
    tmpfs("/dev", libc::MS_NOSUID | libc::MS_NOEXEC, SMALL_OPTIONS)?;
    for Device { path, fd, stat } in devices {
        if let Some(dir) = Path::new(path).parent().filter(|dir| *dir != Path::new("/dev")) {
            std::fs::create_dir_all(dir)?;
        }
        let name = sys::c_string(path)?;
        // SAFETY: the path is a live C string.
        let made = unsafe {
            check(libc::mknod(name.as_ptr(), stat.st_mode, stat.st_rdev))
                .and_then(|_| check(libc::chmod(name.as_ptr(), stat.st_mode & 0o7777)))
                .and_then(|_| check(libc::chown(name.as_ptr(), stat.st_uid, stat.st_gid)))
        };
        match made {
            // In a container that may not make devices, what is there is mounted.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                std::fs::write(path, "")?;
                mount(Some(&format!("/proc/self/fd/{}", fd.as_raw_fd())), path, None, libc::MS_BIND, None)?;
            }
            made => drop(made?),
        }
    }
    for (target, link) in LINKS {
        // SAFETY: both are live C strings.
        check(unsafe { libc::symlink(target.as_ptr(), link.as_ptr()) })?;
    }
    Ok(())
}

fn tmpfs(at: &str, flags: libc::c_ulong, options: &CStr) -> io::Result<()> {
    mount(Some("tmpfs"), at, Some(c"tmpfs"), flags, Some(options))
}

/// mount(2).
fn mount(
    source: Option<&str>,
    target: &str,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let source = source.map(sys::c_string).transpose()?;
    let target = sys::c_string(target)?;
    let none = std::ptr::null();
    // SAFETY: every pointer is null or to a live C string.
    check(unsafe {
        libc::mount(
            source.as_ref().map_or(none, |s| s.as_ptr()),
            target.as_ptr(),
            kind.map_or(none, CStr::as_ptr),
            flags,
            options.map_or(none, CStr::as_ptr).cast(),
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_anchored_at_both_ends() {
        for (glob, name, want) in [
            ("nvhost-*", "nvhost-gpu", true),
            ("nvhost-*", "nvhost-", true),
            ("nvhost-*", "xnvhost-gpu", false),
            ("*", "anything", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbYd", false),
            ("a*b", "ab", true),
            ("ab*b", "ab", false),
            ("video0", "video0", true),
            ("video0", "video01", false),
        ] {
            assert_eq!(is_match(glob, name), want, "{glob} {name}");
        }
    }

    #[test]
    fn mount_points_are_read_as_they_are_written() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
