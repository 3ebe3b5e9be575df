//! Where the hub is, as a user writes it. Pure: which forms there are, and which of them may carry a token.

use std::net::IpAddr;

/// The port of the hub's API when only a host is given.
const PORT: u16 = 7080;

/// A hub's URL without its last slash, which paths of the API are appended to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubUrl {
    /// `https://hub.example.org:7080`.
    pub base: String,
    /// Whether it is https.
    pub tls: bool,
    /// Whether it is this machine.
    pub loopback: bool,
}

impl HubUrl {
    /// `https://HOST[:PORT][/PATH]`, the same with `http://`, or `HOST[:PORT]`. The last means https, so that nothing is
    /// sent in the clear that nobody asked for, but on this machine, where a hub without a certificate listens.
    ///
    /// # Errors
    /// What is wrong with it, with the forms that there are.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let invalid = |why: &str| {
            let forms = "write https://HOST:PORT, http://127.0.0.1:PORT, or HOST:PORT";
            format!("INVALID_HUB_URL `{text}`: {why}; {forms}")
        };
        let trimmed = text.trim();
        let (scheme, rest) = match trimmed.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, trimmed),
        };
        if rest.contains('@') {
            return Err(invalid("it must not hold a user or password: the token says who asks"));
        }
        if rest.contains(|c: char| "?#\\".contains(c) || c.is_whitespace() || c.is_control()) {
            return Err(invalid("it must be no more than scheme, host, port and path"));
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = split(authority).map_err(invalid)?;
        let loopback = is_loopback(host);
        let tls = match scheme.as_deref() {
            Some("https") => true,
            Some("http") => false,
            None => !loopback,
            Some(_) => return Err(invalid("the scheme must be https or http")),
        };
        let port = port.or(scheme.is_none().then_some(PORT)).map_or(String::new(), |port| format!(":{port}"));
        let scheme = if tls { "https" } else { "http" };
        let path = path.trim_end_matches('/');
        Ok(Self { base: format!("{scheme}://{host}{port}{path}"), tls, loopback })
    }

    /// Whether a token may be sent there.
    ///
    /// # Errors
    /// When others could read it on the way, with what to do.
    pub(super) fn check_clear(&self, insecure: bool) -> Result<(), String> {
        if self.tls || self.loopback || insecure {
            return Ok(());
        }
        Err(format!(
            "{} is plain HTTP to another machine, which shows your token on the way; use https:// (the hub's \
             tls_cert, and --ca here), an SSH tunnel, or --insecure-http (DUNLIN_INSECURE_HTTP=1)",
            self.base
        ))
    }
}

/// Host and port; an IPv6 address stands in brackets, which it keeps.
fn split(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or("an IPv6 address ends with `]`")?;
            let inner = rest[..end].parse::<std::net::Ipv6Addr>();
            inner.map_err(|_| "what is in brackets must be an IPv6 address")?;
            authority.split_at(end + 2)
        }
        None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
    };
    if port.matches(':').count() > 1 {
        return Err("an IPv6 address needs brackets, like [::1]:7080");
    }
    if host.is_empty() {
        return Err("the host is missing");
    }
    let number = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|n| *n > 0).ok_or("the port must be 1 to 65535")?)
        }
        _ => return Err("the port must be 1 to 65535"),
    };
    Ok((host, number))
}

/// By what is written alone: no name but `localhost` is taken for this machine, however it begins.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_becomes_one() {
        for (text, base, loopback) in [
            ("https://h", "https://h", false),
            ("https://h/", "https://h", false),
            ("HTTPS://h:443//", "https://h:443", false),
            ("http://h:7080/", "http://h:7080", false),
            ("h:7080", "https://h:7080", false),
            ("hub.example.org", "https://hub.example.org:7080", false),
            ("localhost:7080", "http://localhost:7080", true),
            ("localhost", "http://localhost:7080", true),
            ("127.0.0.1:9", "http://127.0.0.1:9", true),
            ("127.3.2.1/", "http://127.3.2.1:7080", true),
            ("[::1]:9", "http://[::1]:9", true),
            ("https://[::1]", "https://[::1]", true),
            ("[2001:db8::1]:9", "https://[2001:db8::1]:9", false),
            ("https://proxy/dunlin/", "https://proxy/dunlin", false),
            (" http://127.0.0.1:7080\n", "http://127.0.0.1:7080", true),
            ("http://127.0.0.1.evil.example", "http://127.0.0.1.evil.example", false),
            ("http://localhost.evil.example", "http://localhost.evil.example", false),
        ] {
            let url = HubUrl::parse(text).unwrap();
            assert_eq!((url.base.as_str(), url.loopback), (base, loopback), "{text}");
            assert_eq!(url.tls, base.starts_with("https:"), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_says_why() {
        for (text, why) in [
            ("ftp://h", "the scheme must be https or http"),
            ("", "the host is missing"),
            ("https://", "the host is missing"),
            ("https://:7080", "the host is missing"),
            ("h:0", "the port must be 1 to 65535"),
            ("h:65536", "the port must be"),
            ("h:", "the port must be"),
            ("h:+80", "the port must be"),
            ("http://127.0.0.1@evil.example", "user or password"),
            ("http://h?x=1", "no more than"),
            ("http://h\\x", "no more than"),
            ("a b", "no more than"),
            ("::1", "needs brackets"),
            ("[::1", "ends with"),
            ("[h]:1", "must be an IPv6 address"),
            ("[::1]x", "the port must be"),
        ] {
            let said = HubUrl::parse(text).unwrap_err();
            assert!(said.starts_with("INVALID_HUB_URL") && said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn a_token_travels_in_the_clear_only_when_told_to() {
        for (text, insecure, may) in [
            ("http://h:7080", false, false),
            ("http://localhost.evil.example", false, false),
            ("http://h:7080", true, true),
            ("http://127.0.0.1:7080", false, true),
            ("https://h:7080", false, true),
        ] {
            let checked = HubUrl::parse(text).unwrap().check_clear(insecure);
            assert_eq!(checked.is_ok(), may, "{text}");
            assert!(checked.err().is_none_or(|e| e.contains("--insecure-http")));
        }
    }
}
