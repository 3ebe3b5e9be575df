//! The system calls of the emulator: namespaces, TUN devices (Linux Documentation/networking/tuntap.rst), poll.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The emulator delays by the clock that programs on it measure with.
#[expect(clippy::disallowed_methods, reason = "an emulated link has no other clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter(namespace: RawFd) -> io::Result<()> {
    // SAFETY: takes a descriptor and a flag, no memory.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) }).map(drop)
}

/// Makes a command's process move before it becomes the program.
pub(super) fn place(namespace: RawFd, command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(move || enter(namespace)) };
}

/// A new namespace with loopback and a TUN device at `addr`/24 up in it. The thread that makes it ends.
pub(super) fn namespace(addr: Ipv4Addr) -> io::Result<(OwnedFd, OwnedFd)> {
    let made = std::thread::spawn(move || {
        // SAFETY: no memory is passed; only this thread moves.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let tun = tun(addr)?;
        Ok((File::open("/proc/thread-self/ns/net")?.into(), tun))
    });
    made.join().map_err(|_| io::Error::other("the namespace's thread panicked"))?
}

fn tun(addr: Ipv4Addr) -> io::Result<OwnedFd> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = named("wan0");
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: a fresh descriptor, owned from here on.
    let socket = unsafe {
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?)
    };
    let ask = |name: libc::c_ulong, mut request: libc::ifreq| {
        // SAFETY: these requests read one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), name, &raw mut request) })
    };
    for (name, value) in [(libc::SIOCSIFADDR, addr), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
    {
        let mut request = named("wan0");
        request.ifr_ifru.ifru_addr = sockaddr(value);
        ask(name, request)?;
    }
    for device in ["lo", "wan0"] {
        let mut request = named(device);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        ask(libc::SIOCSIFFLAGS, request)?;
    }
    Ok(tun.into())
}

fn named(device: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn sockaddr(addr: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0 as libc::c_char; 14];
    for (to, from) in data[2..].iter_mut().zip(addr.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// Waits for packets; which of the two has some.
pub(super) fn wait(tuns: &[OwnedFd; 2], most: Duration) -> [bool; 2] {
    let mut fds = [0, 1].map(|i| libc::pollfd { fd: tuns[i].as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let most = libc::timespec {
        tv_sec: most.as_secs() as libc::time_t,
        tv_nsec: most.subsec_nanos() as libc::c_long,
    };
    // SAFETY: two pollfds and a timespec that live until the call returns; no signal mask.
    unsafe { libc::ppoll(fds.as_mut_ptr(), 2, &raw const most, std::ptr::null()) };
    fds.map(|fd| fd.revents & libc::POLLIN != 0)
}

/// The next packet's length, if there is one.
pub(super) fn read(tun: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: writes at most `buffer.len()` bytes into it.
    let len = unsafe { libc::read(tun.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(len).ok().filter(|len| *len > 0)
}

/// A packet that the device does not take is lost, as on any link.
pub(super) fn write(tun: &OwnedFd, packet: &[u8]) {
    // SAFETY: reads `packet.len()` bytes of it.
    let _ = unsafe { libc::write(tun.as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
}
