//! The CLI's way to the API.

use super::hub_url::HubUrl;
use super::trust;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;
use ureq::tls::TlsConfig;

/// Why a command failed; each has its exit code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line or the local set-up is wrong.
    #[error("{0}")]
    Usage(String),
    /// The hub does not answer.
    #[error("cannot reach the hub at {hub}: {why}")]
    Unreachable {
        /// Its URL.
        hub: String,
        /// Why.
        why: String,
    },
    /// The hub refused.
    #[error("{message} ({code})")]
    Refused {
        /// Status of the answer.
        status: u16,
        /// Stable code.
        code: String,
        /// Words.
        message: String,
    },
}

impl Failure {
    /// Exit code: 64 usage, 69 hub not reachable, 77 not allowed, 65 refused for what was asked.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 64,
            Failure::Unreachable { .. } => 69,
            Failure::Refused { status: 401 | 403, .. } => 77,
            Failure::Refused { status: 500.., .. } => 69,
            Failure::Refused { .. } => 65,
        }
    }
}

/// What the command line says about where the hub is.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// The hub's API: https://HOST:PORT, http://127.0.0.1:PORT, or HOST:PORT (https, but on this machine).
    #[arg(long, env = "DUNLIN_HUB", default_value = "http://127.0.0.1:7080", global = true)]
    hub: String,
    /// Trust only the certificates of this PEM file, instead of the roots that browsers trust.
    #[arg(long, value_name = "FILE", env = "DUNLIN_CA", global = true)]
    ca: Option<PathBuf>,
    /// File with the API token.
    #[arg(long, env = "DUNLIN_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Allow plain HTTP to another machine, which shows the token on the way.
    #[arg(long, env = "DUNLIN_INSECURE_HTTP", value_parser = clap::builder::FalseyValueParser::new(), global = true)]
    insecure_http: bool,
}

/// Where the hub is and how to prove who asks.
#[derive(Clone)]
pub(super) struct Client {
    hub: String,
    token: String,
    agent: ureq::Agent,
}

/// Raw output of a job.
pub(super) struct Output {
    pub bytes: Vec<u8>,
    pub next: u64,
    pub held: u64,
}

impl Client {
    pub(super) fn new(target: Target) -> Result<Self, Failure> {
        let hub = HubUrl::parse(&target.hub).map_err(Failure::Usage)?;
        hub.check_clear(target.insecure_http).map_err(Failure::Usage)?;
        let roots = trust::roots(target.ca.as_deref())?;
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The API never sends anybody elsewhere.
            .max_redirects(0)
            .https_only(hub.tls)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(Duration::from_secs(30)));
        if hub.loopback {
            // What is meant for this machine must not go to a proxy of the environment, with the token.
            config = config.proxy(None);
        }
        Ok(Self { hub: hub.base, token: token(target.token_file)?, agent: config.build().into() })
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let usage = |e: ureq::http::Error| Failure::Usage(e.to_string());
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.hub))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("accept", accept);
        let sent = match body {
            Some(body) => self.agent.run(request.body(body.to_string()).map_err(usage)?),
            None => self.agent.run(request.body(()).map_err(usage)?),
        };
        sent.map_err(|e| self.unreachable(&e))
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable { hub: self.hub.clone(), why: trust::words(error) }
    }

    /// One call; the JSON of the answer.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let mut response = self.request(method, path, "application/json", body)?;
        if !response.status().is_success() {
            return Err(self.refused(&mut response));
        }
        let text = response.body_mut().read_to_string();
        let text = text.map_err(|e| self.unreachable(&e))?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Why the hub refused.
    fn refused(&self, response: &mut ureq::http::Response<ureq::Body>) -> Failure {
        let text = match response.body_mut().read_to_string() {
            Ok(text) => text,
            Err(error) => return self.unreachable(&error),
        };
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let error = &value["error"];
        let words = |name: &str| error[name].as_str().unwrap_or("no reason given").to_owned();
        let field = error["field"].as_str().map_or(String::new(), |f| format!("{f}: "));
        let message = format!("{field}{}", words("message"));
        Failure::Refused { status: response.status().as_u16(), code: words("code"), message }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call("GET", path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call("POST", path, Some(body))
    }

    /// A piece of a job's output.
    pub(super) fn output(
        &self,
        id: &str,
        attempt: u64,
        stream: &str,
        offset: u64,
    ) -> Result<Output, Failure> {
        let path = format!("/v1/tasks/{id}/output?attempt={attempt}&stream={stream}&offset={offset}");
        let mut response = self.request("GET", &path, "*/*", None)?;
        let number = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()?.parse().ok());
        let (next, held) = (number("x-dunlin-next").unwrap_or(offset), number("x-dunlin-held").unwrap_or(0));
        if !response.status().is_success() {
            return Ok(Output { bytes: Vec::new(), next: offset, held: offset });
        }
        let bytes = response.body_mut().read_to_vec();
        let bytes = bytes.map_err(|e| self.unreachable(&e))?;
        Ok(Output { bytes, next, held })
    }

    /// Calls `f` with every event after `since`, until it says `false` or the stream ends.
    pub(super) fn events(&self, since: u64, f: impl FnMut(&Value) -> bool) -> Result<(), Failure> {
        self.stream(&format!("/v1/events?since={since}"), f)
    }

    /// Calls `f` with every server-sent event of `path`, until it says `false` or the stream ends.
    pub(super) fn stream(&self, path: &str, mut f: impl FnMut(&Value) -> bool) -> Result<(), Failure> {
        let mut response = self.request("GET", path, "text/event-stream", None)?;
        if !response.status().is_success() {
            return Err(self.refused(&mut response));
        }
        let lines = BufReader::new(response.body_mut().as_reader()).lines();
        for line in lines {
            let line =
                line.map_err(|e| Failure::Unreachable { hub: self.hub.clone(), why: e.to_string() })?;
            let Some(data) = line.strip_prefix("data:") else { continue };
            if let Ok(event) = serde_json::from_str(data.trim())
                && !f(&event)
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// From `DUNLIN_TOKEN`, or from a file that only its owner can read.
fn token(file: Option<PathBuf>) -> Result<String, Failure> {
    if let Ok(token) = std::env::var("DUNLIN_TOKEN") {
        return Ok(token.trim().to_owned());
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let path = file.or_else(|| config.map(|c| c.join("dunlin/token")));
    let path = path.ok_or_else(|| Failure::Usage("no token: set DUNLIN_TOKEN or --token-file".into()))?;
    let name = path.display();
    let help = "the hub wrote one to DATA/owner.token at its first start; set DUNLIN_TOKEN, or --token-file";
    let meta =
        std::fs::metadata(&path).map_err(|e| Failure::Usage(format!("no token: {name}: {e}; {help}")))?;
    if meta.mode() & 0o077 != 0 {
        return Err(Failure::Usage(format!("{name}: others can read it (chmod 600 {name})")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Failure::Usage(format!("{name}: {e}")))?;
    Ok(text.trim().to_owned())
}
