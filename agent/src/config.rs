//! The agent's configuration: TOML, then the command line over it.

use crate::core::uplinks::{UPLINKS_MAX, Uplink};
use dunlin_wire::message::Role;
use dunlin_wire::{Tag, limits, units};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where the data is when nobody says otherwise.
pub const DATA: &str = "/var/lib/dunlin-agent";
/// The usual configuration file; read when it is there.
pub const CONFIG: &str = "/etc/dunlin/agent.toml";
/// Where the executor keeps what it needs of its own.
pub const EXECUTOR_DATA: &str = "/var/lib/dunlin-exec";
/// Where the executor listens.
pub const SOCKET: &str = "/run/dunlin/exec.sock";
/// The usual policy file.
pub const POLICY: &str = "/etc/dunlin/policy.toml";

/// Why a configuration is refused: place, rule and fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    data: Option<PathBuf>,
    policy: Option<PathBuf>,
    socket: Option<PathBuf>,
    slots: Option<u32>,
    #[serde(default)]
    tags: Vec<String>,
    role: Option<String>,
    telemetry: Option<bool>,
    monthly: Option<String>,
    log: Option<String>,
    mounts: Option<Vec<PathBuf>>,
    #[serde(default)]
    uplink: Vec<RawUplink>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUplink {
    url: String,
    label: Option<String>,
}

/// Mounts that can be watched.
const MOUNTS_MAX: usize = 16;

/// What the command line may say over the file.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// Configuration file.
    pub config: Option<PathBuf>,
    /// Data directory.
    pub data: Option<PathBuf>,
    /// Policy file.
    pub policy: Option<PathBuf>,
    /// Role.
    pub role: Option<String>,
    /// The executor's socket.
    pub socket: Option<PathBuf>,
    /// No socket: an executor of the uplink's own.
    pub with_exec: bool,
}

/// The configuration, which cannot be wrong any more.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory.
    pub data: PathBuf,
    /// Policy file.
    pub policy: PathBuf,
    /// Where the executor listens; `None`: the uplink starts one of its own.
    pub executor: Option<PathBuf>,
    /// Slots at most; `None` leaves it to operator and policy.
    pub slots: Option<u32>,
    /// Capabilities to announce beside those that are found.
    pub tags: Vec<Tag>,
    /// A narrower role than the operator's.
    pub role: Option<Role>,
    /// Whether figures of the host travel with the signs of life.
    pub telemetry: bool,
    /// Bytes that the uplink may use in 30 days, both ways with headers; `None` for no limit.
    pub monthly: Option<u64>,
    /// Log level.
    pub log: tracing::Level,
    /// Mounts whose free space is reported.
    pub mounts: Vec<PathBuf>,
    /// Ways to the hub, tried in order; when there are any they replace the ticket's.
    pub uplinks: Vec<Uplink>,
}

impl Config {
    /// Reads the file that `over` names, or the usual one if it is there, and puts `over` on top.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(over: &Overrides) -> Result<Self, ConfigError> {
        let usual = Path::new(CONFIG);
        let file = over.config.clone().or_else(|| usual.exists().then(|| usual.to_owned()));
        let (raw, place) = match &file {
            None => (Raw::default(), "command line".to_owned()),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).map_err(|e| ConfigError(format!("{name}: {e}")))?;
                let raw = toml::from_str(&text).map_err(|e| {
                    let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                    ConfigError(format!("{name}: line {line}: {}", e.message()))
                })?;
                (raw, name)
            }
        };
        Self::check(raw, over, &place)
    }

    fn check(raw: Raw, over: &Overrides, place: &str) -> Result<Self, ConfigError> {
        let bad = |text: String| ConfigError(format!("{place}: {text}"));
        if raw.slots.is_some_and(|n| n == 0 || n > limits::CONCURRENT_MAX) {
            return Err(bad(format!("slots must be 1 to {}", limits::CONCURRENT_MAX)));
        }
        let tags = raw.tags.iter().map(|t| t.parse().map_err(|e| bad(format!("tags: `{t}`: {e}"))));
        let role = match over.role.as_deref().or(raw.role.as_deref()) {
            None => None,
            Some("worker") => Some(Role::Worker),
            Some("viewer") => Some(Role::Viewer),
            Some(other) => return Err(bad(format!("role must be worker or viewer, not `{other}`"))),
        };
        let uplinks = uplinks(&raw.uplink).map_err(bad)?;
        let mounts = raw.mounts.unwrap_or_else(|| vec!["/".into()]);
        if mounts.len() > MOUNTS_MAX || mounts.iter().any(|path| !path.is_absolute()) {
            return Err(bad(format!("mounts must be at most {MOUNTS_MAX} absolute paths")));
        }
        let monthly = raw.monthly.map(|text| {
            let bytes = units::bytes(&text).filter(|bytes| *bytes > 0);
            bytes.ok_or_else(|| bad(format!("monthly must be a size like `200MiB`, not `{text}`")))
        });
        let log = raw.log.unwrap_or_else(|| "info".into());
        let data = over.data.clone().or(raw.data).unwrap_or_else(|| DATA.into());
        Ok(Self {
            // Jobs of an earlier start are known by this path, so it must not depend on where we were started.
            data: std::path::absolute(&data).map_err(|e| bad(format!("data: {e}")))?,
            policy: over.policy.clone().or(raw.policy).unwrap_or_else(|| POLICY.into()),
            executor: (!over.with_exec)
                .then(|| over.socket.clone().or(raw.socket).unwrap_or_else(|| SOCKET.into())),
            slots: raw.slots,
            tags: tags.collect::<Result<_, _>>()?,
            role,
            monthly: monthly.transpose()?,
            telemetry: raw.telemetry.unwrap_or(true),
            log: log
                .parse()
                .map_err(|_| bad(format!("log must be error, warn, info, debug or trace, not `{log}`")))?,
            mounts,
            uplinks,
        })
    }
}

fn uplinks(raw: &[RawUplink]) -> Result<Vec<Uplink>, String> {
    if raw.len() > UPLINKS_MAX {
        return Err(format!("uplink: {} of them, at most {UPLINKS_MAX} are tried; remove some", raw.len()));
    }
    let mut found: Vec<Uplink> = Vec::new();
    for (n, one) in raw.iter().enumerate().map(|(i, one)| (i + 1, one)) {
        let uplink = Uplink::new(&one.url, one.label.as_deref()).map_err(|e| format!("uplink {n}: {e}"))?;
        // By its address `status` says which one is in use, so there must be one of each.
        if let Some(first) = found.iter().position(|other| other.addr == uplink.addr) {
            let first = first + 1;
            return Err(format!("uplink {n}: {} is uplink {first} already; remove one", uplink.addr));
        }
        found.push(uplink);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_place_and_rule() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let nine: String = (0..9).map(|i| format!("[[uplink]]\nurl = \"h{i}\"\n")).collect();
        for (text, want) in [
            ("slots = 2\ntags = [\"gpu\"]\n", ""),
            ("slots = 0\n", "slots must be 1 to 100"),
            ("\nslot = 1\n", "line 2: unknown field `slot`"),
            ("tags = [\"a b\"]\n", "tags: `a b`"),
            ("role = \"boss\"\n", "role must be worker or viewer"),
            ("log = \"loud\"\n", "log must be"),
            ("monthly = \"200MiB\"\n", ""),
            ("monthly = \"much\"\n", "monthly must be a size like `200MiB`"),
            ("mounts = [\"/\", \"/data\"]\n", ""),
            ("mounts = [\"data\"]\n", "mounts must be at most 16 absolute paths"),
            ("[[uplink]]\nurl = \"quic://h\"\nlabel = \"LAN\"\n[[uplink]]\nurl = \"[::1]:1\"\n", ""),
            (
                "[[uplink]]\nurl = \"h\"\n[[uplink]]\nurl = \"ftp://h\"\n",
                "uplink 2: INVALID_PEER_URL: `ftp://h`",
            ),
            (
                "[[uplink]]\nurl = \"h\"\n[[uplink]]\nurl = \"https://H/\"\n",
                "uplink 2: h:7443 is uplink 1 already",
            ),
            ("[[uplink]]\nurl = \"h\"\nlabel = \"my lan\"\n", "uplink 1: label `my lan`"),
            ("[[uplink]]\nlabel = \"lan\"\n", "missing field `url`"),
            ("[[uplink]]\nurl = \"h\"\npin = \"x\"\n", "line 3: unknown field `pin`"),
            (nine.as_str(), "uplink: 9 of them, at most 8"),
        ] {
            std::fs::write(&path, text).unwrap();
            let loaded = Config::load(&Overrides { config: Some(path.clone()), ..Overrides::default() });
            match loaded {
                Ok(_) => assert_eq!(want, "", "{text}"),
                Err(e) => assert!(!want.is_empty() && e.to_string().contains(want), "{text}: {e}"),
            }
        }
    }
}
