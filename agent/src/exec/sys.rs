//! The few system calls that std does not have, each behind a safe function.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The result of a call that says -1 for an error.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the caller just got this descriptor from the kernel and gave it to nobody else.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A C string; an inner NUL is an error (EINVAL).
pub(super) fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A pair of connected sockets that keep message borders.
pub(super) fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

/// A pipe: read end, write end.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

/// Sends one message.
pub(super) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are of a live slice.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one message of at most `max` bytes; empty at the end of the connection.
pub(super) fn receive(fd: RawFd, max: usize, flags: libc::c_int) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; max];
    // SAFETY: the pointer and length are of a live buffer.
    let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(got as usize);
    Ok(buffer)
}

/// Reads what is there; `None` at the end, an error of kind `WouldBlock` when nothing is.
pub(super) fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the pointer and length are of a live buffer.
    let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    match got {
        0 => Ok(None),
        n if n > 0 => Ok(Some(n as usize)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes reads of this descriptor return at once.
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor has no memory effects.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// A copy of the descriptor above those that a guard uses, closed on exec.
pub(super) fn dup_high(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a valid descriptor has no memory effects.
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 32) })
}

/// Takes the file's lock; `false` when somebody has it.
pub(super) fn try_lock(fd: RawFd) -> bool {
    // SAFETY: flock has no memory effects.
    unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// Waits until one of `fds` is ready or `timeout_ms` is over (-1: for ever). An interruption counts as ready.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<()> {
    // SAFETY: the pointer and length are of a live slice.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match ready {
        -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
            Err(io::Error::last_os_error())
        }
        _ => Ok(()),
    }
}

/// An entry for [`poll`] that waits for input.
pub(super) fn input(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Opens an absolute path as it is named.
pub(super) fn open_path(path: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    // SAFETY: `path` is a live C string.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

/// Opens one component beneath a directory, never a symbolic link.
pub(super) fn open_component(dir: RawFd, name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    // SAFETY: `name` is a live C string.
    owned(unsafe { libc::openat(dir, name.as_ptr(), flags | libc::O_NOFOLLOW | libc::O_CLOEXEC) })
}

/// openat2(2): opens `path` beneath `dir` under `resolve`. ENOSYS before Linux 5.6.
pub(super) fn openat2(dir: RawFd, path: &str, flags: libc::c_int, resolve: u64) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    // SAFETY: all-zero is a valid `open_how`.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = resolve;
    let size = std::mem::size_of::<libc::open_how>();
    // SAFETY: `path` and `how` live through the call, `size` is the struct's.
    owned(unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &how, size) as libc::c_int })
}

/// Opens a directory below another, by way of no link: by [`openat2`], or component by component where that is missing.
pub(super) fn open_beneath(dir: OwnedFd, way: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    match openat2(dir.as_raw_fd(), way, flags, resolve) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
            way.split('/').try_fold(dir, |at, name| open_component(at.as_raw_fd(), name, flags))
        }
        done => done,
    }
}

/// Runs `work` in a forked child, which does nothing else, and returns what it came to (its low seven bits).
pub(super) fn in_child(work: impl FnOnce() -> u8) -> io::Result<u8> {
    // SAFETY: the child only does system calls and allocations of its own; a caller with several threads keeps `work` to
    // system calls, as another thread may have held the allocator's lock.
    match unsafe { check(libc::fork())? } {
        0 => {
            let done = work();
            // SAFETY: ends the child at once, without running anything of its parent's.
            unsafe { libc::_exit(i32::from(done & 0x7f)) }
        }
        pid => {
            let mut status = 0;
            loop {
                // SAFETY: `status` is valid for writes.
                match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                    Ok(_) if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status) as u8),
                    Ok(_) => return Err(io::Error::from_raw_os_error(libc::ECHILD)),
                }
            }
        }
    }
}

/// close_range(2), or one by one before Linux 5.9.
///
/// # Safety
/// Nothing may use the descriptors from `first` on.
pub(super) unsafe fn close_from(first: RawFd) {
    // SAFETY: the caller says so.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        let max = libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20);
        for fd in first..max as RawFd {
            libc::close(fd);
        }
    }
}

/// What a descriptor is.
pub(super) fn fstat(fd: RawFd) -> io::Result<libc::stat> {
    // SAFETY: all-zero is a valid `stat`, and the kernel fills it.
    unsafe {
        let mut stat = std::mem::zeroed();
        check(libc::fstat(fd, &mut stat))?;
        Ok(stat)
    }
}

/// Sends a signal; a process that is gone is no error.
pub(super) fn kill(pid: i32, signal: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(pid, signal) };
}

/// Makes this process the parent of every orphan below it.
pub(super) fn become_subreaper() -> io::Result<()> {
    // SAFETY: sets an attribute of this process; no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Collects a child that has ended; one that has not, or is none of ours, is no error.
pub(super) fn reap(pid: i32) {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Collects a child that is about to end.
pub(super) fn reap_now(pid: i32) {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

/// Bytes free for us on the file system of `path`.
pub(super) fn free_bytes(path: &std::path::Path) -> io::Result<u64> {
    let path = c_string(&path.to_string_lossy())?;
    // SAFETY: all-zero is a valid `statvfs`, `path` is a live C string.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(path.as_ptr(), &mut stat))?;
        Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
    }
}

/// Every process below `root`: pid of each, parents first. By /proc/PID/stat, field 4 (proc(5)).
pub(super) fn descendants(root: i32) -> Vec<i32> {
    descendants_but(root, &[])
}

/// The same without the processes in `but` and what is below them.
pub(super) fn descendants_but(root: i32, but: &[i32]) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name may hold anything, brackets too: what follows its last bracket counts.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        if let Some(parent) = rest.split_whitespace().nth(1).and_then(|p| p.parse::<i32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let above = found[at];
        let below = parents.iter().filter(|(pid, parent)| *parent == above && !but.contains(pid));
        found.extend(below.map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}

/// Reserves room for so many bytes, where the file system can promise that.
pub(super) fn reserve(file: &std::fs::File, bytes: u64) -> io::Result<()> {
    // SAFETY: takes numbers only.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            error => Err(error),
        },
    }
}

/// A descriptor that tells of these signals, which do nothing else any more.
pub(super) fn signals(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: the set is a live local; the process has one thread.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        owned(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// Ignores no signal any more, whatever we were started with, but SIGPIPE: what is ignored would be so in every job.
pub(super) fn ignore_no_signal() {
    // By the system call itself: libc keeps 32 and 33 from us. All zero is SIG_DFL without flags or mask, the kernel's
    // structure is not larger than this anywhere, and begins with the handler.
    let (default, mut now) = ([0u64; 8], [0u64; 8]);
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: both live through the calls, and are large enough.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, std::ptr::null::<u8>(), now.as_mut_ptr(), 8usize);
            if now[0] == libc::SIG_IGN as u64 {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    default.as_ptr(),
                    std::ptr::null::<u8>(),
                    8usize,
                );
            }
        }
    }
}

/// No other process of our user may look into this one.
pub(super) fn hide() -> io::Result<()> {
    // SAFETY: sets an attribute of this process; no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// How long a receive may take, in seconds; 0 for ever.
pub(super) fn receive_timeout(fd: RawFd, seconds: i64) -> io::Result<()> {
    let time = libc::timeval { tv_sec: seconds as _, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: `time` lives through the call, and `size` is its size.
    check(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const time).cast(), size)
    })
    .map(drop)
}

/// Ends a connection for every copy of its descriptor.
pub(super) fn shut_down(fd: RawFd) {
    // SAFETY: takes numbers only.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// A file without a name that holds `bytes`, to be read from its beginning.
pub(super) fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    use io::{Seek, Write};
    let name = c_string("order")?;
    // SAFETY: the name lives through the call; the descriptor that comes is ours.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: as said.
    let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
