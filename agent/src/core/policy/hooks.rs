//! Hooks and the orchestrator's gate, as the policy has them; and whether a payload is one that a hook takes.

use super::{HOOK_BODY_MAX, HOOK_TIMEOUT_MS, Policy, STAGE_MS_MAX};
use dunlin_wire::job::{self, Denial};
use dunlin_wire::units;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What answers behind a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookKind {
    /// An agent that is given something to do.
    Agent,
    /// Somebody who is only woken.
    Wake,
}

/// What a field of a payload must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A text of at most so many bytes.
    Text(usize),
    /// A whole number.
    Int,
    /// true or false.
    Bool,
}

/// A receiver on this board.
#[derive(Debug, Clone, PartialEq)]
pub struct Hook {
    /// Its name, unique in the policy.
    pub name: String,
    /// What answers.
    pub kind: HookKind,
    /// Its address: a literal of this board itself.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path, from the first slash.
    pub path: String,
    /// The credential that holds its token.
    pub token: String,
    /// Longest wait for its answer, in milliseconds.
    pub timeout_ms: u64,
    /// Largest body, in bytes.
    pub body_max: usize,
    /// Fields that a task may set.
    pub allow: BTreeMap<String, Field>,
    /// Fields that the board sets; they win.
    pub set: Map<String, Value>,
}

impl Hook {
    /// The body of the request for a task's payload.
    ///
    /// # Errors
    /// `hook_field` when a field is not allowed, or not so.
    pub fn body(&self, payload: &str) -> Result<String, Denial> {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(payload) else {
            return Err(Denial::HookField);
        };
        for (name, value) in &fields {
            let good = match (self.allow.get(name), value) {
                (Some(Field::Text(max)), Value::String(text)) => text.len() <= *max,
                (Some(Field::Int), Value::Number(number)) => number.is_i64() || number.is_u64(),
                (Some(Field::Bool), Value::Bool(_)) => true,
                _ => false,
            };
            if !good {
                return Err(Denial::HookField);
            }
        }
        fields.extend(self.set.clone());
        let body = Value::Object(fields).to_string();
        if body.len() > self.body_max { Err(Denial::HookField) } else { Ok(body) }
    }
}

/// What decides over orchestrator runs here: each an argv that a rule of the policy takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orchestrator {
    /// Everything that must end well before the first step is started; never empty.
    pub gate: Vec<Vec<String>>,
    /// What must end well behind the last.
    pub reviewer: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOrchestrator {
    gate: Vec<Vec<String>>,
    reviewer: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    pub name: String,
    kind: HookKind,
    url: String,
    token: String,
    timeout: Option<String>,
    max_body: Option<String>,
    #[serde(default)]
    allow: BTreeMap<String, RawField>,
    #[serde(default)]
    set: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    r#type: String,
    max: Option<usize>,
}

/// The policy's orchestrator. What it names must be allowed by a rule, for no longer than 90 s.
pub(super) fn orchestrator(raw: &RawOrchestrator, policy: &Policy) -> Result<Orchestrator, String> {
    if raw.gate.is_empty() {
        return Err("orchestrator.gate must name at least one argv".into());
    }
    for argv in raw.gate.iter().chain([&raw.reviewer]) {
        let rule = super::decide::own(policy, argv).map_err(|denial| {
            format!("orchestrator: no rule allows {argv:?} ({denial}); write one: the board's own gate runs under it")
        })?;
        if rule.timeout_ms > STAGE_MS_MAX {
            let (id, max) = (&rule.rule.id, STAGE_MS_MAX / 1000);
            return Err(format!("orchestrator: rule `{id}` must have a timeout of at most {max} s"));
        }
    }
    Ok(Orchestrator { gate: raw.gate.clone(), reviewer: raw.reviewer.clone() })
}

/// One hook.
pub(super) fn hook(raw: &RawHook) -> Result<Hook, String> {
    if !job::is_hook_name(&raw.name) {
        return Err("name must be a-z, 0-9 and `-`".into());
    }
    let (host, port, path) = url(&raw.url)?;
    let token = raw.token.strip_prefix("credential:").filter(|name| super::compile::is_credential(name));
    let token = token.ok_or("token must be like \"credential:NAME\"")?;
    let timeout_ms = match &raw.timeout {
        None => HOOK_TIMEOUT_MS,
        Some(text) => units::duration_ms(text).filter(|ms| *ms > 0).ok_or("timeout must be like \"2m\"")?,
    };
    let body_max = match &raw.max_body {
        None => HOOK_BODY_MAX,
        Some(text) => match units::bytes(text) {
            Some(n) if (1..=HOOK_BODY_MAX as u64).contains(&n) => n as usize,
            _ => return Err(format!("max_body must be at most {HOOK_BODY_MAX} bytes")),
        },
    };
    let allow = raw.allow.iter().map(|(name, field)| match (field.r#type.as_str(), field.max) {
        ("string", max) => Ok((name.clone(), Field::Text(max.unwrap_or(body_max)))),
        ("int", None) => Ok((name.clone(), Field::Int)),
        ("bool", None) => Ok((name.clone(), Field::Bool)),
        _ => Err(format!("allow.{name}: type must be string (with max), int or bool")),
    });
    Ok(Hook {
        name: raw.name.clone(),
        kind: raw.kind,
        host,
        port,
        path,
        token: token.to_owned(),
        timeout_ms,
        body_max,
        allow: allow.collect::<Result<_, _>>()?,
        set: raw.set.clone(),
    })
}

/// Host, port and path of a literal URL of this board itself.
fn url(text: &str) -> Result<(String, u16, String), String> {
    let bad = || {
        format!(
            "url `{text}` must be like \"http://127.0.0.1:18789/hooks/agent\": this board, no name, no query"
        )
    };
    let rest = text.strip_prefix("http://").ok_or_else(bad)?;
    let (authority, path) = rest.split_once('/').ok_or_else(bad)?;
    let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b));
    match port.parse() {
        Ok(port) if port > 0 && ["127.0.0.1", "::1"].contains(&host) && plain => {
            Ok((host.to_owned(), port, format!("/{path}")))
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_this_board_is_called() {
        for (text, good) in [
            ("http://127.0.0.1:18789/hooks/agent", true),
            ("http://[::1]:80/x", true),
            ("https://127.0.0.1:1/x", false),
            ("http://127.0.0.1/x", false),
            ("http://127.0.0.1:1/x?token=t", false),
            ("http://localhost:1/x", false),
            ("http://10.0.0.1:1/x", false),
            ("http://127.0.0.1:1@evil:2/x", false),
            ("http://127.0.0.1:0/x", false),
            ("http://127.0.0.1:1/x\r\nHost: y", false),
        ] {
            assert_eq!(url(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn a_payload_has_only_what_the_board_allows_and_the_board_s_own_fields_win() {
        let hook = Hook {
            name: "agent".into(),
            kind: HookKind::Agent,
            host: "127.0.0.1".into(),
            port: 1,
            path: "/".into(),
            token: "t".into(),
            timeout_ms: 1,
            body_max: 64,
            allow: [
                ("message".to_owned(), Field::Text(9)),
                ("n".to_owned(), Field::Int),
                ("deliver".to_owned(), Field::Bool),
            ]
            .into(),
            set: json!({"deliver": false}).as_object().unwrap().clone(),
        };
        for (payload, want) in [
            (r#"{"message":"hi","n":1}"#, Some(r#"{"deliver":false,"message":"hi","n":1}"#)),
            (r#"{"deliver":true}"#, Some(r#"{"deliver":false}"#)),
            (r#"{"message":"0123456789"}"#, None),
            (r#"{"message":1}"#, None),
            (r#"{"n":1.5}"#, None),
            (r#"{"agentId":"other"}"#, None),
            (r#"[]"#, None),
            ("", None),
        ] {
            assert_eq!(hook.body(payload).ok().as_deref(), want, "{payload}");
        }
    }
}
