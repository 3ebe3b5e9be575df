//! A WAN in one process: two network namespaces joined by TUN devices, and between them one-way delay, jitter, loss, a
//! rate and cuts, on every IPv4 packet both ways, so that QUIC and its TCP peers meet the same link.
//!
//! The kernel's own emulator (netem) is not everywhere; TUN and namespaces are, for root.

mod nat;
mod queue;
mod sys;

use nat::Nat;
use queue::Queue;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Largest packet taken, in bytes; the devices' MTU is 1500.
const PACKET_MAX: usize = 2048;

/// How the link is, each way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Round-trip time without queues; half of it each way.
    pub rtt: Duration,
    /// Added to a packet's delay, evenly spread from nothing to this.
    pub jitter: Duration,
    /// Bits per second; `None` for no limit.
    pub rate: Option<u64>,
    /// Packets lost, per thousand.
    pub loss: u32,
}

impl Link {
    /// A link that only delays.
    pub const fn delay(rtt_ms: u64) -> Self {
        Self { rtt: Duration::from_millis(rtt_ms), jitter: Duration::ZERO, rate: None, loss: 0 }
    }

    const fn limited(rtt_ms: u64, kbit: u64, loss: u32) -> Self {
        Self { rate: Some(kbit * 1000), loss, ..Self::delay(rtt_ms) }
    }

    /// The links that figures are quoted for: `lan`, `lte`, `sat`, `bad`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "lan" => Some(Self { rtt: Duration::from_micros(200), ..Self::delay(0) }),
            "lte" => Some(Self::limited(60, 5_000, 5)),
            "sat" => Some(Self::limited(600, 256, 10)),
            "bad" => Some(Self::limited(200, 512, 50)),
            _ => None,
        }
    }
}

/// One side of the link, by where its packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The agents' side, behind the NAT if there is one.
    Board,
    /// The hub's side.
    Hub,
}

/// What passed from one side to the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// IP packets.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// Packets lost to chance, a full queue or a cut.
    pub lost: u64,
}

#[derive(Default)]
struct Way {
    cut: AtomicBool,
    packets: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
}

struct Shared {
    stop: AtomicBool,
    link: Mutex<Link>,
    ways: [Way; 2],
    nat: Mutex<Option<Nat>>,
}

/// A network namespace with one end of the link.
#[derive(Clone)]
pub struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// Moves the calling thread, and what it starts from now on, into this namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self) -> io::Result<()> {
        sys::enter(self.0.as_raw_fd())
    }

    /// Starts a command in this namespace, wherever its parent is. The namespace must outlive the start.
    pub fn place(&self, command: &mut Command) {
        sys::place(self.0.as_raw_fd(), command);
    }
}

/// Runs `f` in a namespace, or where this thread is; what it opens stays there. A process that it starts with
/// `PR_SET_PDEATHSIG` would end with it: [`Namespace::place`] is for those.
///
/// # Errors
/// The kernel's, and those of `f`.
pub fn inside<T: Send>(
    namespace: Option<&Namespace>,
    f: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let Some(namespace) = namespace else { return f() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            namespace.enter()?;
            f()
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

/// The emulated WAN, until it is dropped.
pub struct Wan {
    /// Where agents live, at [`Wan::BOARD`].
    pub board: Namespace,
    /// Where the hub lives, at [`Wan::HUB`].
    pub hub: Namespace,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Wan {
    /// Address of the boards' side.
    pub const BOARD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
    /// Address of the hub's side.
    pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// Makes both namespaces and the link between them. Needs root.
    ///
    /// # Errors
    /// The kernel's: no permission, no TUN.
    pub fn new(link: Link) -> io::Result<Self> {
        let (board, board_tun) = sys::namespace(Self::BOARD)?;
        let (hub, hub_tun) = sys::namespace(Self::HUB)?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            link: Mutex::new(link),
            ways: Default::default(),
            nat: Mutex::new(None),
        });
        let carrier = shared.clone();
        let thread = std::thread::Builder::new()
            .name("wan".into())
            .spawn(move || carry(&carrier, &[board_tun, hub_tun]))?;
        let [board, hub] = [board, hub].map(|end| Namespace(Arc::new(end)));
        Ok(Self { board, hub, shared, thread: Some(thread) })
    }

    /// Cuts the link both ways, or joins it again.
    pub fn cut(&self, cut: bool) {
        self.cut_from(Side::Board, cut);
        self.cut_from(Side::Hub, cut);
    }

    /// Drops what comes from one side, or passes it again.
    pub fn cut_from(&self, side: Side, cut: bool) {
        self.shared.ways[side as usize].cut.store(cut, Relaxed);
    }

    /// The namespace of one side.
    pub fn side(&self, side: Side) -> &Namespace {
        if side == Side::Hub { &self.hub } else { &self.board }
    }

    /// Changes the link.
    pub fn set(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }

    /// Puts a NAT before the boards that forgets a UDP binding after this long without a packet from inside.
    pub fn nat(&self, timeout: Duration) {
        *lock(&self.shared.nat) = Some(Nat::new(timeout));
    }

    /// Makes the NAT forget every binding, as one does that was restarted.
    pub fn nat_restart(&self) {
        if let Some(nat) = lock(&self.shared.nat).as_mut() {
            nat.forget();
        }
    }

    /// What passed from `side` so far.
    pub fn passed(&self, side: Side) -> Passed {
        let way = &self.shared.ways[side as usize];
        Passed {
            packets: way.packets.load(Relaxed),
            bytes: way.bytes.load(Relaxed),
            lost: way.lost.load(Relaxed),
        }
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Carries packets until it is told to stop. `tuns` are in the order of [`Side`].
fn carry(shared: &Shared, tuns: &[OwnedFd; 2]) {
    let mut queues = [Queue::default(), Queue::default()];
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut buffer = [0; PACKET_MAX];
    while !shared.stop.load(Relaxed) {
        let due = queues.iter().filter_map(Queue::due).min();
        let now = sys::now();
        let wait = due.map_or(Duration::from_millis(50), |at| at.saturating_duration_since(now));
        let ready = sys::wait(tuns, wait.min(Duration::from_millis(50)));
        let now = sys::now();
        let link = *lock(&shared.link);
        for from in 0..2 {
            let way = &shared.ways[from];
            while ready[from]
                && let Some(len) = sys::read(&tuns[from], &mut buffer)
            {
                let packet = &mut buffer[..len];
                // Only IPv4 is carried: the kernel's own IPv6 chatter would be counted.
                if packet.first().is_none_or(|b| b >> 4 != 4) {
                    continue;
                }
                let lost = way.cut.load(Relaxed)
                    || queue::draw(&mut random) % 1000 < link.loss.into()
                    || lock(&shared.nat).as_mut().is_some_and(|nat| !nat.pass(from == 0, packet, now));
                let jitter = queue::draw(&mut random) % (link.jitter.as_micros() as u64 + 1);
                let delay = link.rtt / 2 + Duration::from_micros(jitter);
                if lost || !queues[from].push(packet, now, delay, link.rate) {
                    way.lost.fetch_add(1, Relaxed);
                }
            }
            while let Some(packet) = queues[from].pop(now) {
                way.packets.fetch_add(1, Relaxed);
                way.bytes.fetch_add(packet.len() as u64, Relaxed);
                sys::write(&tuns[1 - from], &packet);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// Round trips of a UDP echo through the link, in microseconds; `None` for a lost one.
    fn ping(wan: &Wan, n: usize) -> Vec<Option<u128>> {
        std::thread::scope(|scope| {
            let echo = scope.spawn(|| {
                wan.hub.enter().unwrap();
                let socket = UdpSocket::bind((Wan::HUB, 7)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let mut buffer = [0; 64];
                while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..len], from).unwrap();
                }
            });
            wan.board.enter().unwrap();
            let socket = UdpSocket::bind((Wan::BOARD, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
            let mut out = Vec::new();
            std::thread::sleep(Duration::from_millis(50));
            for i in 0..n {
                let began = sys::now();
                socket.send_to(&i.to_be_bytes(), (Wan::HUB, 7)).unwrap();
                let mut buffer = [0; 64];
                let came = socket.recv_from(&mut buffer).is_ok();
                out.push(came.then(|| began.elapsed().as_micros()));
            }
            echo.join().unwrap();
            out
        })
    }

    #[test]
    fn it_delays_loses_cuts_and_counts() {
        let wan = match Wan::new(Link::delay(40)) {
            Ok(wan) => wan,
            Err(error) => return eprintln!("skipped: no emulated WAN here ({error}); it needs root and TUN"),
        };
        let mut rtts: Vec<u128> = ping(&wan, 9).into_iter().flatten().collect();
        rtts.sort();
        assert_eq!(rtts.len(), 9);
        assert!((40_000..60_000).contains(&rtts[4]), "{rtts:?}");
        assert_eq!(wan.passed(Side::Board), Passed { packets: 9, bytes: 9 * 36, lost: 0 });
        wan.cut_from(Side::Hub, true);
        assert_eq!(ping(&wan, 2), [None, None]);
        assert_eq!((wan.passed(Side::Board).packets, wan.passed(Side::Hub).lost), (11, 2));
    }
}
