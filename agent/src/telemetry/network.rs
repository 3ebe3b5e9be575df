//! Counters of network interfaces. Formats: proc_pid_net(5) (`dev`), Documentation/ABI/testing/sysfs-class-net.

use super::named::Named;
use super::parse;
use super::scan::Scan;
use super::sysroot::Absent;
use serde::Serialize;

/// Interfaces that are looked at; a host of containers has hundreds.
const INTERFACES_MAX: usize = 32;

/// Since the interface came up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Received in error.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Not sent for an error.
    pub tx_errors: u64,
    /// Not sent for want of room.
    pub tx_dropped: u64,
    /// `up`, `down`, `unknown` (as tunnels say).
    pub state: Option<String>,
}

/// Reads all but the loopback; nothing when the kernel does not list them.
pub fn read(scan: &Scan) -> Option<Named<Interface>> {
    let mut found = scan.table("network", "proc/net/dev", dev).ok()?;
    for (name, interface) in found.iter_mut() {
        let field = format_args!("network.{name}.state");
        interface.state = scan.value(field, &format!("sys/class/net/{name}/operstate"), parse::name).ok();
    }
    Some(found)
}

/// Two lines of heading, then `name:` and 16 counters.
///
/// # Errors
/// When a line is not in order.
pub fn dev(text: &str) -> Result<Named<Interface>, Absent> {
    let mut found = Named::default();
    if !text.starts_with("Inter-|") {
        return Err(Absent::Malformed);
    }
    for line in text.lines().skip(2) {
        let (name, counters) = line.split_once(':').ok_or(Absent::Malformed)?;
        let name = parse::name(name)?;
        // A slash would lead the reader of its state elsewhere.
        if name.contains('/') || name.starts_with('.') {
            return Err(Absent::Malformed);
        }
        if name == "lo" || found.len() == INTERFACES_MAX {
            continue;
        }
        let counters: Result<Vec<u64>, Absent> = counters.split_whitespace().map(parse::count).collect();
        let counters = counters?;
        let [rx_bytes, _, rx_errors, rx_dropped, _, _, _, _, tx_bytes, _, tx_errors, tx_dropped, _, _, _, _] =
            counters[..]
        else {
            return Err(Absent::Malformed);
        };
        let state = None;
        let interface = Interface { rx_bytes, rx_errors, rx_dropped, tx_bytes, tx_errors, tx_dropped, state };
        found.insert(name, interface);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_without_the_loopback() {
        let head = "Inter-|   Receive   |  Transmit\n face |bytes    packets errs\n";
        let lo = "    lo:    1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let eth = "  eth0: 1234 2 3 4 5 6 7 8 5678 10 11 12 13 14 15 16\n";
        let found = dev(&format!("{head}{lo}{eth}")).unwrap();
        assert_eq!(found.len(), 1);
        let eth0 = found.get("eth0").unwrap();
        assert_eq!((eth0.rx_bytes, eth0.tx_bytes, eth0.rx_dropped, eth0.tx_dropped), (1234, 5678, 4, 12));
        assert!(dev(head).unwrap().is_empty());
        for text in ["", "eth0: 1", &format!("{head} eth0: 1 2 3"), &format!("{head} ../x: {}", &lo[10..])] {
            assert!(dev(text).is_err(), "{text:?}");
        }
    }
}
