//! The socket between uplink and executor: AF_UNIX, SOCK_SEQPACKET, so that messages keep their borders, and files can
//! ride along (unix(7), SCM_RIGHTS). Whoever is at the other end is known by SO_PEERCRED.

use super::sys;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Largest message, in bytes: below the kernel's usual send buffer. A longer one is an error, on either side.
pub(super) const MESSAGE_MAX: usize = 192 * 1024;
/// Files that one message can carry: a job's two streams.
const FILES_MAX: usize = 2;
/// Room for their descriptors in a control message, aligned as the kernel wants it.
const CONTROL_WORDS: usize = 4;

/// Listens at `path`, which only `uid` and we can connect to. A socket that nobody listens at any more is replaced.
///
/// # Errors
/// `AddrInUse` when somebody does; the file system's.
pub(super) fn listen(path: &Path, uid: u32) -> io::Result<OwnedFd> {
    if connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    let _ = std::fs::remove_file(fresh);
    let socket = new()?;
    let (addr, len) = address(fresh)?;
    // SAFETY: `addr` lives through the call and `len` is not over its size; the others take numbers only.
    unsafe {
        // Nobody else may connect before the mode is set below.
        let mask = libc::umask(0o177);
        let bound = libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), len);
        libc::umask(mask);
        sys::check(bound)?;
    }
    std::os::unix::fs::chown(fresh, Some(uid), None)?;
    // SAFETY: takes numbers only.
    sys::check(unsafe { libc::listen(socket.as_raw_fd(), 4) })?;
    sys::set_nonblocking(socket.as_raw_fd())?;
    // Whoever finds it at its name is let in: it listens already.
    std::fs::rename(fresh, path)?;
    Ok(socket)
}

/// Connects to the executor at `path`.
///
/// # Errors
/// The system's: not there, not allowed, nobody listens.
pub(super) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = new()?;
    let (addr, len) = address(path)?;
    // SAFETY: `addr` lives through the call and `len` is not over its size.
    sys::check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const addr).cast(), len) })?;
    Ok(socket)
}

/// Somebody who wants in, if there is one, and who that is.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<Option<(OwnedFd, u32)>> {
    // SAFETY: no address is asked for.
    let fd = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    // SAFETY: the kernel just gave us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `len` live through the call, and `len` is the size of `peer`.
    sys::check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut len,
        )
    })?;
    Ok(Some((socket, peer.uid)))
}

/// Sends one message with files.
///
/// # Errors
/// The system's; `WouldBlock` when `flags` have MSG_DONTWAIT and the other side does not read.
pub(super) fn send(socket: RawFd, bytes: &[u8], files: &[OwnedFd], flags: libc::c_int) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: all-zero is a valid `msghdr`. Its pointers are to locals that live through the call; the control message
    // has room for `FILES_MAX` descriptors, and no more are written.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        let fds: Vec<RawFd> = files.iter().take(FILES_MAX).map(AsRawFd::as_raw_fd).collect();
        if !fds.is_empty() {
            let bytes = size_of_val(fds.as_slice()) as libc::c_uint;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        }
        libc::sendmsg(socket, &message, flags | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one message with the files that came along; empty at the end of the connection.
///
/// # Errors
/// The system's; `InvalidData` for a message over [`MESSAGE_MAX`].
pub(super) fn receive(socket: RawFd, flags: libc::c_int) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // A buffer for the largest would be cleared for each, and all of it copied after each fork.
    // SAFETY: without room nothing is written.
    let len =
        unsafe { libc::recv(socket, std::ptr::null_mut(), 0, flags | libc::MSG_PEEK | libc::MSG_TRUNC) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    if len > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut buffer = vec![0; len];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0u64; CONTROL_WORDS];
    let mut files = Vec::new();
    // SAFETY: as for sending; the kernel writes no more than the lengths say. What it put there of descriptors is ours.
    let (got, truncated) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let got = libc::recvmsg(socket, &mut message, flags | libc::MSG_CMSG_CLOEXEC);
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        let header = libc::CMSG_FIRSTHDR(&message);
        if !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS
        {
            let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            for at in 0..bytes / size_of::<RawFd>() {
                let fd = libc::CMSG_DATA(header).cast::<RawFd>().add(at).read_unaligned();
                files.push(OwnedFd::from_raw_fd(fd));
            }
        }
        (got as usize, message.msg_flags & libc::MSG_TRUNC != 0)
    };
    if truncated {
        return Err(io::ErrorKind::InvalidData.into());
    }
    buffer.truncate(got);
    Ok((buffer, files))
}

fn new() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; the descriptor is new and ours.
    unsafe {
        let fd = sys::check(libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A path as the kernel takes it: at most 107 bytes, `.new` among them.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero is a valid `sockaddr_un`.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = libc::AF_UNIX as _;
    if bytes.len() >= addr.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket's path has at most 103 bytes"));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = *from as _;
    }
    Ok((addr, size_of::<libc::sockaddr_un>() as _))
}
