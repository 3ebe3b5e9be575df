//! Where the hub can be reached: how an address may be written, and what a label says about the way there.
//! Deliberately absent: connecting. The key that is pinned does not depend on the way either.

// The part of `std` that only knows how addresses look.
use ::core::net::Ipv6Addr;
use dunlin_wire::limits;
use std::fmt;

/// Uplinks at most, as many as a ticket can name.
pub const UPLINKS_MAX: usize = limits::TICKET_ADDRS_MAX;
/// Bytes of a label.
pub const LABEL_MAX: usize = 32;
/// How every uplink is secured: TLS, with the hub's key pinned since the join. There is no other way to ask for.
pub const POSTURE: &str = "tls-pinned";

/// The hub's port when nobody says one.
const PORT: u16 = 7443;
/// Bytes of a host name (RFC 1035).
const HOST_MAX: usize = 253;
/// Labels that mean that the hub is on this network. All others, and none, mean that it is across the internet.
const LOCAL: [&str; 3] = ["lan", "mdns", "local"];

/// Why an uplink is refused: rule and fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// The URL is none of a hub.
    #[error("INVALID_PEER_URL: `{url}`: {rule}; write it as quic://HOST:PORT, HOST:PORT or HOST")]
    Url {
        /// What was written, without user info: that may be a password.
        url: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The label has another form.
    #[error("label `{0}`: it must be 1 to {LABEL_MAX} of a-z, 0-9 and -; write for example `lan`")]
    Label(String),
}

/// One way to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// `host:port`.
    pub addr: String,
    /// What the operator calls this way, in lower case.
    pub label: Option<String>,
}

impl Uplink {
    /// Checks what an operator wrote.
    ///
    /// # Errors
    /// What is wrong with URL or label.
    pub fn new(url: &str, label: Option<&str>) -> Result<Self, UplinkError> {
        Ok(Self { addr: parse(url)?, label: label.map(parse_label).transpose()? })
    }

    /// Whether the label says that the hub is on this network.
    pub fn is_local(&self) -> bool {
        self.label.as_deref().is_some_and(|label| LOCAL.contains(&label))
    }

    /// The label for people and logs, where a missing one must be visible too.
    pub fn label(&self) -> &str {
        self.label.as_deref().unwrap_or("none")
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = if self.is_local() { "local" } else { "WAN" };
        write!(f, "{} (label {}, {reach}, {POSTURE})", self.addr, self.label())
    }
}

/// The uplinks that count: the board's own where it has any, else those of the ticket.
pub fn choose(own: &[Uplink], ticket: &[String]) -> Vec<Uplink> {
    if own.is_empty() {
        return ticket.iter().map(|addr| Uplink { addr: addr.clone(), label: None }).collect();
    }
    own.to_vec()
}

/// `host:port` of a hub's URL, the same for every way to write it.
///
/// # Errors
/// The rule that it breaks.
pub fn parse(url: &str) -> Result<String, UplinkError> {
    let shown = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    split(url).map_err(|rule| UplinkError::Url { url: shown.to_owned(), rule })
}

fn split(url: &str) -> Result<String, &'static str> {
    let lower = url.to_ascii_lowercase();
    let rest = match lower.split_once("://") {
        None => lower.as_str(),
        Some(("quic" | "https", rest)) => rest,
        Some(_) => return Err("the scheme must be quic or https"),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err("no user may be named, the device's key says who it is");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("there must be nothing after the port");
    }
    if let Some(rest) = rest.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("the bracket of an IPv6 address must be closed")?;
        // A zone (`%eth0`) does not survive the resolver, so it is better refused here than never connected.
        let host: Ipv6Addr =
            host.parse().map_err(|_| "in brackets must be an IPv6 address without a zone")?;
        let port = match port {
            "" => PORT,
            port => parse_port(port.strip_prefix(':').ok_or("after the bracket must be : and a port")?)?,
        };
        return Ok(format!("[{host}]:{port}"));
    }
    let (host, port) = match rest.split_once(':') {
        None => (rest, PORT),
        Some((_, port)) if port.contains(':') => return Err("an IPv6 address must be in brackets"),
        Some((host, port)) => (host, parse_port(port)?),
    };
    check_host(host)?;
    Ok(format!("{host}:{port}"))
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    let rule = "the port must be a number from 1 to 65535";
    // `u16` would take a sign too.
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(rule);
    }
    text.parse().ok().filter(|port| *port > 0).ok_or(rule)
}

fn check_host(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("it must name a host");
    }
    // A last dot only says that the name is complete.
    let name = host.strip_suffix('.').unwrap_or(host);
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let parts_good = name.split('.').all(|part| !part.is_empty() && part.bytes().all(good));
    if !parts_good || name.len() > HOST_MAX {
        return Err("the host must be a name of letters, digits, - and dots, or an address");
    }
    Ok(())
}

fn parse_label(text: &str) -> Result<String, UplinkError> {
    let label = text.to_ascii_lowercase();
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if label.is_empty() || label.len() > LABEL_MAX || !label.bytes().all(good) {
        return Err(UplinkError::Label(text.to_owned()));
    }
    Ok(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_write_a_hub_are_one() {
        for (url, want) in [
            ("h", "h:7443"),
            ("h:7443", "h:7443"),
            ("https://h", "h:7443"),
            ("https://h/", "h:7443"),
            ("quic://h:7443", "h:7443"),
            ("QUIC://H:7443/", "h:7443"),
            ("quic://h:07443", "h:7443"),
            ("quic://h:8787", "h:8787"),
            ("Hub.Example.org.", "hub.example.org.:7443"),
            ("build_box-2", "build_box-2:7443"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:7443", "[::1]:7443"),
            ("https://[0:0::1]", "[::1]:7443"),
            ("quic://[FE80::A]:65535/", "[fe80::a]:65535"),
        ] {
            assert_eq!(parse(url).as_deref(), Ok(want), "{url}");
        }
    }

    #[test]
    fn what_is_no_hub_is_refused_with_its_rule() {
        for (url, rule) in [
            ("ftp://h", "scheme"),
            ("http://h", "scheme"),
            ("://h", "scheme"),
            ("h://x", "scheme"),
            ("", "host"),
            ("https://", "host"),
            ("https:///", "host"),
            (":7443", "host"),
            ("quic://h/path", "after the port"),
            ("h//", "after the port"),
            ("h?x", "after the port"),
            ("h#x", "after the port"),
            ("user@h", "user"),
            ("h:", "port"),
            ("h:0", "port"),
            ("h:65536", "port"),
            ("h:+80", "port"),
            ("h:-1", "port"),
            ("h:seven", "port"),
            ("::1", "in brackets"),
            ("h:1:2", "in brackets"),
            ("[::1", "closed"),
            ("[::1]7443", "after the bracket"),
            ("[::1]:", "port"),
            ("[h]:7443", "IPv6"),
            ("[fe80::1%eth0]", "zone"),
            ("h..x", "letters"),
            (".", "letters"),
            (" h", "letters"),
            ("h\n", "letters"),
            ("hüb", "letters"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.starts_with("INVALID_PEER_URL: "), "{url}: {error}");
            assert!(error.contains(rule) && error.contains("write it as quic://"), "{url}: {error}");
        }
        assert!(parse(&"a".repeat(HOST_MAX)).is_ok());
        assert!(parse(&"a".repeat(HOST_MAX + 1)).is_err());
    }

    #[test]
    fn a_password_is_not_repeated() {
        let error = parse("quic://me:hunter2@h:7443").unwrap_err().to_string();
        assert!(error.contains("`h:7443`") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn any_text_is_refused_or_has_one_form() {
        // Every text of up to five of these pieces: what comes out must come out of itself again.
        let pieces = ["quic://", "H", ":", "7443", "/", "[", "]", "::1", "@", ".", "%", "é"];
        let mut texts = vec![String::new()];
        for _ in 0..5 {
            let longer =
                texts.iter().flat_map(|text| pieces.iter().map(move |piece| format!("{text}{piece}")));
            texts = std::iter::once(String::new()).chain(longer).collect();
            for text in &texts {
                if let Ok(addr) = parse(text) {
                    assert_eq!(parse(&addr), Ok(addr.clone()), "{text}");
                    assert!(addr.rsplit_once(':').is_some_and(|(host, _)| !host.is_empty()), "{text}");
                }
            }
        }
    }

    #[test]
    fn only_three_labels_are_local() {
        for (label, local) in [
            (Some("lan"), true),
            (Some("LAN"), true),
            (Some("mDNS"), true),
            (Some("local"), true),
            (Some("relay"), false),
            (Some("vpn"), false),
            (Some("wan"), false),
            (Some("starlink"), false),
            (Some("lan-2"), false),
            (None, false),
        ] {
            let uplink = Uplink::new("h", label).unwrap();
            assert_eq!(uplink.is_local(), local, "{label:?}");
        }
        for bad in ["", "a b", "lan_2", "ümlaut", &"a".repeat(LABEL_MAX + 1)] {
            assert!(matches!(Uplink::new("h", Some(bad)), Err(UplinkError::Label(_))), "{bad}");
        }
        assert!(Uplink::new("h", Some(&"A".repeat(LABEL_MAX))).is_ok());
    }

    #[test]
    fn the_board_s_own_uplinks_replace_the_ticket_s() {
        let ticket = ["hub:1".to_owned()];
        assert_eq!(choose(&[], &ticket), [Uplink { addr: "hub:1".into(), label: None }]);
        let own = [Uplink::new("h", Some("vpn")).unwrap()];
        assert_eq!(choose(&own, &ticket), own);
    }
}
