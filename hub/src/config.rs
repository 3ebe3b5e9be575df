//! The hub's configuration: TOML, then the command line over it. A value that cannot be right is refused before
//! anything is opened, with file, line and fix.

use crate::core::timing::Timing;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// It is not TOML, or has a field that is not known or not of its type.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        message: String,
    },
    /// A value is out of its range.
    #[error("{place}: {field} {rule}")]
    Value {
        /// The file, or the command line.
        place: String,
        /// The field.
        field: &'static str,
        /// The rule, which says what to write instead.
        rule: String,
    },
}

/// The file as written. Every field may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    data: Option<PathBuf>,
    quic: Option<String>,
    http: Option<String>,
    advertise: Option<Vec<String>>,
    insecure_http: Option<bool>,
    log: Option<String>,
    #[serde(default)]
    store: RawStore,
    #[serde(default)]
    queue: RawQueue,
    #[serde(default)]
    link: RawLink,
    #[serde(default)]
    api: RawApi,
    timing: Option<Timing>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    max_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQueue {
    max: Option<u64>,
    keep: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    connections_max: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApi {
    rate_per_s: Option<u32>,
    burst: Option<u32>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
}

/// What the command line may say over the file.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// Data directory.
    pub data: Option<PathBuf>,
    /// QUIC address.
    pub quic: Option<SocketAddr>,
    /// HTTP address.
    pub http: Option<SocketAddr>,
}

/// The certificate of the API and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, then those that lead to its root.
    pub cert: PathBuf,
    /// Its key, which nobody else may read.
    pub key: PathBuf,
}

/// Who can read what the API is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// Plain HTTP that does not leave this machine.
    PlainLoopback,
    /// TLS.
    Tls,
    /// Plain HTTP that others may read, because the file says so.
    Insecure,
}

impl Posture {
    /// Its word in logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Posture::PlainLoopback => "plain-loopback",
            Posture::Tls => "tls",
            Posture::Insecure => "insecure",
        }
    }
}

/// The configuration, which cannot be wrong any more.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory.
    pub data: PathBuf,
    /// Where agents connect.
    pub quic: SocketAddr,
    /// Where the API listens.
    pub http: SocketAddr,
    /// Addresses written into tickets; empty: made from `quic`.
    pub advertise: Vec<String>,
    /// Log filter.
    pub log: String,
    /// Bound of the store, in bytes.
    pub store_bytes_max: u64,
    /// Queued tasks at most.
    pub queue_max: u64,
    /// Tasks kept per terminal state.
    pub keep_tasks: u64,
    /// Connections of agents at once; more are told when to come again.
    pub connections_max: usize,
    /// API requests per second and token.
    pub rate_per_s: u32,
    /// API requests at once per token.
    pub burst: u32,
    /// With these the API speaks TLS, and nothing else.
    pub tls: Option<TlsFiles>,
    /// The numbers of the lifecycle.
    pub timing: Timing,
}

/// Where the data is when nobody says otherwise.
const DATA: &str = "/var/lib/dunlin-hub";

impl Config {
    /// Reads `file` if given, and puts `over` on top.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<&Path>, over: &Overrides) -> Result<Self, ConfigError> {
        let (raw, place) = match file {
            None => (Raw::default(), "command line".to_owned()),
            Some(path) => {
                let io = |source| ConfigError::Io { path: path.to_owned(), source };
                let text = std::fs::read_to_string(path).map_err(io)?;
                let raw = toml::from_str(&text).map_err(|error| {
                    let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                    let message = format!("line {line}: {}", error.message());
                    ConfigError::Syntax { path: path.to_owned(), message }
                })?;
                (raw, path.display().to_string())
            }
        };
        Self::check(raw, over, &place)
    }

    fn check(raw: Raw, over: &Overrides, place: &str) -> Result<Self, ConfigError> {
        let value = |field, rule: String| ConfigError::Value { place: place.to_owned(), field, rule };
        let addr = |field, text: Option<String>, default: &str| {
            let text = text.unwrap_or(default.to_owned());
            let rule = format!("must be ADDRESS:PORT, like `{default}`; it is `{text}`");
            text.parse::<SocketAddr>().map_err(|_| value(field, rule))
        };
        let range = |field, got: u64, low: u64, high: u64| {
            let rule = format!("must be {low} to {high}; it is {got}");
            if (low..=high).contains(&got) { Ok(got) } else { Err(value(field, rule)) }
        };
        let http = over.http.map_or_else(|| addr("http", raw.http, "127.0.0.1:7080"), Ok)?;
        let tls = match (raw.api.tls_cert, raw.api.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            (Some(_), None) => {
                let rule = "is missing beside api.tls_cert: TLS needs both. Set tls_key = \"PATH\" to its key in PEM";
                return Err(value("api.tls_key", rule.into()));
            }
            (None, Some(_)) => {
                let rule = "is missing beside api.tls_key: TLS needs both. Set tls_cert = \"PATH\" to the chain in PEM";
                return Err(value("api.tls_cert", rule.into()));
            }
        };
        if !http.ip().is_loopback() && tls.is_none() && raw.insecure_http != Some(true) {
            let rule = format!(
                "is `{http}`: plain HTTP is served on loopback only. Set tls_cert and tls_key in [api], put a TLS proxy \
                 in front, or set insecure_http = true"
            );
            return Err(value("http", rule));
        }
        let timing = raw.timing.unwrap_or_default();
        range("timing.lease_ms_min", timing.lease_ms_min, 100, 3_600_000)?;
        range("timing.accept_ms", timing.accept_ms, 10, 3_600_000)?;
        range("timing.retry_ms", timing.retry_ms, 1, timing.retry_ms_max)?;
        range("timing.heartbeat_ms", timing.heartbeat_ms.unwrap_or(5000), 20, 300_000)?;
        range("timing.degraded_heartbeats", timing.degraded_heartbeats, 1, timing.offline_heartbeats)?;
        Ok(Self {
            data: over.data.clone().or(raw.data).unwrap_or_else(|| DATA.into()),
            quic: over.quic.map_or_else(|| addr("quic", raw.quic, "0.0.0.0:7443"), Ok)?,
            http,
            advertise: raw.advertise.unwrap_or_default(),
            log: raw.log.unwrap_or_else(|| "info".into()),
            store_bytes_max: range("store.max_mib", raw.store.max_mib.unwrap_or(8192), 16, 1 << 20)? << 20,
            queue_max: range("queue.max", raw.queue.max.unwrap_or(1_000_000), 1, 100_000_000)?,
            keep_tasks: range("queue.keep", raw.queue.keep.unwrap_or(50_000), 1, 10_000_000)?,
            connections_max: range(
                "link.connections_max",
                raw.link.connections_max.unwrap_or(20_000),
                1,
                1_000_000,
            )? as usize,
            rate_per_s: range("api.rate_per_s", raw.api.rate_per_s.unwrap_or(50).into(), 1, 1_000_000)?
                as u32,
            burst: range("api.burst", raw.api.burst.unwrap_or(200).into(), 1, 1_000_000)? as u32,
            tls,
            timing,
        })
    }

    /// Who can read what the API is told.
    pub fn posture(&self) -> Posture {
        match (&self.tls, self.http.ip().is_loopback()) {
            (Some(_), _) => Posture::Tls,
            (None, true) => Posture::PlainLoopback,
            (None, false) => Posture::Insecure,
        }
    }

    /// Addresses for tickets when the QUIC endpoint listens on `bound`.
    pub fn ticket_addrs(&self, bound: SocketAddr) -> Vec<String> {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        if !bound.ip().is_unspecified() {
            return vec![bound.to_string()];
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        vec![format!("{host}:{}", bound.port())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), &Overrides::default())
    }

    fn check(text: &str, want: &str) {
        match load(text) {
            Ok(_) => assert_eq!(want, "", "{text}"),
            Err(error) => assert!(error.to_string().contains(want) && !want.is_empty(), "{text}: {error}"),
        }
    }

    #[test]
    fn mistakes_name_line_and_field() {
        check("", "");
        check("quic = \"127.0.0.1:1\"\n[timing]\nlease_ms_min = 500\n", "");
        check("\nquik = \"x\"\n", "line 2: unknown field `quik`");
        check("http = 5\n", "line 1: invalid type");
        check("quic = \"here\"\n", "quic must be ADDRESS:PORT");
        check("http = \"0.0.0.0:80\"\n", "insecure_http");
        check("insecure_http = true\nhttp = \"0.0.0.0:80\"\n", "");
        check("[store]\nmax_mib = 1\n", "store.max_mib must be 16 to");
        check("[timing]\nlease = 3\n", "line 2: unknown field `lease`");
    }

    #[test]
    fn tls_is_both_files_or_none_and_opens_other_addresses() {
        let pair = "[api]\ntls_cert = \"/c\"\ntls_key = \"/k\"\n";
        check("[api]\ntls_cert = \"/c\"\n", "api.tls_key is missing beside api.tls_cert");
        check("[api]\ntls_key = \"/k\"\n", "api.tls_cert is missing beside api.tls_key");
        check(&format!("http = \"0.0.0.0:80\"\n{pair}"), "");
        check("http = \"0.0.0.0:80\"\n", "Set tls_cert and tls_key in [api]");
        for (text, posture) in [
            (String::new(), Posture::PlainLoopback),
            ("insecure_http = true\n".into(), Posture::PlainLoopback),
            (pair.into(), Posture::Tls),
            (format!("insecure_http = true\nhttp = \"0.0.0.0:80\"\n{pair}"), Posture::Tls),
            ("insecure_http = true\nhttp = \"0.0.0.0:80\"\n".into(), Posture::Insecure),
        ] {
            assert_eq!(load(&text).unwrap().posture(), posture, "{text}");
        }
    }
}
