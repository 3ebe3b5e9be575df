//! Bodies in and out. They are separate from records and messages, with explicit conversions.

use super::error::ApiError;
use super::{kinds, telemetry};
use crate::core::task::{Attempt, End, Task, TaskSpec};
use crate::event::{NodeView, Traffic};
use dunlin_wire::job::{Delivery, Job, OnDisconnect, Outcome, Report, layer};
use dunlin_wire::require::Require;
use dunlin_wire::{Tag, TaskId, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Attempts of a task that says nothing.
const ATTEMPTS: u32 = 3;

/// Takes known fields out of a JSON object, and names the one that is wrong.
pub(super) struct Fields {
    object: Map<String, Value>,
    prefix: &'static str,
}

impl Fields {
    pub(super) fn of(value: Value, prefix: &'static str) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self { object, prefix }),
            _ => {
                let field = prefix.trim_end_matches('.');
                Err(ApiError::field(if field.is_empty() { "body" } else { field }, "must be a JSON object"))
            }
        }
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.object.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| ApiError::field(format!("{}{name}", self.prefix), e.to_string())),
        }
    }

    pub(super) fn number(&mut self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(number) = self.take::<i128>(name)? else { return Ok(None) };
        match u64::try_from(number) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::field(format!("{}{name}", self.prefix), format!("must be {low} to {high}"))),
        }
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), ApiError> {
        match self.object.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::field(format!("{}{name}", self.prefix), "is not a known field")),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum OnDisconnectBody {
    Fence,
    CarryOn,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum DeliveryBody {
    AtLeastOnce,
    AtMostOnce,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PriorityBody {
    Number(i64),
    Name(String),
}

/// A submission: its id, if it has one, and the task.
pub(super) fn submission(value: Value) -> Result<(Option<TaskId>, TaskSpec), ApiError> {
    let mut fields = Fields::of(value, "")?;
    let id = fields.take::<TaskId>("taskId")?;
    let kind: String = fields.take("kind")?.unwrap_or_else(|| "shell".to_owned());
    let (job, envelope) = kinds::job(&kind, fields.take("payload")?)?;
    let mut tags: Vec<Tag> = fields.take("requiredTags")?.unwrap_or_default();
    tags.sort();
    tags.dedup();
    if let Job::Actuation(actuation) = &job {
        // Boards offer what their policy can move.
        tags.push(actuation.declared.target.clone());
        tags.sort();
        tags.dedup();
    }
    if tags.len() > limits::TAGS_MAX {
        return Err(ApiError::field("requiredTags", format!("must have at most {}", limits::TAGS_MAX)));
    }
    let mut spec = TaskSpec {
        job,
        target: fields.take("targetNodeId")?,
        tags,
        priority: priority(&mut fields)?,
        attempts_max: fields
            .number("maxAttempts", 1, limits::ATTEMPTS_MAX.into())?
            .map_or(ATTEMPTS, |n| n as u32),
        timeout_ms: fields.number("timeoutMs", limits::TIMEOUT_MS_MIN, limits::TIMEOUT_MS_MAX)?,
        on_disconnect: match fields.take("onDisconnect")? {
            None | Some(OnDisconnectBody::Fence) => OnDisconnect::Fence,
            Some(OnDisconnectBody::CarryOn) => OnDisconnect::CarryOn,
        },
        delivery: match fields.take("delivery")? {
            None | Some(DeliveryBody::AtLeastOnce) => Delivery::AtLeastOnce,
            Some(DeliveryBody::AtMostOnce) => Delivery::AtMostOnce,
        },
        ttl_ms: fields.number("ttlMs", 1, limits::TTL_MS_MAX)?,
        complete_by: fields.number("completeBy", 1, u64::MAX / 4)?,
        offline_ms: fields.number("maxOfflineMs", 1_000, limits::OFFLINE_MS_MAX)?,
        requires: requires(&mut fields)?,
    };
    fields.end()?;
    let id = match envelope {
        Some(payload) => Some(super::signed::fill(id, &mut spec, payload)?),
        None => id,
    };
    Ok((id, spec))
}

fn requires(fields: &mut Fields) -> Result<Vec<Require>, ApiError> {
    let texts: Vec<String> = fields.take("requires")?.unwrap_or_default();
    if texts.len() > limits::REQUIRES_MAX {
        return Err(ApiError::field("requires", format!("must have at most {}", limits::REQUIRES_MAX)));
    }
    let parse = |(n, text): (usize, &String)| {
        text.parse::<Require>().map_err(|e| ApiError::field(format!("requires[{n}]"), e.to_string()))
    };
    let mut requires = texts.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    requires.sort();
    requires.dedup();
    Ok(requires)
}

fn priority(fields: &mut Fields) -> Result<i16, ApiError> {
    let number = match fields.take("priority")? {
        None => 0,
        Some(PriorityBody::Number(n)) => n,
        Some(PriorityBody::Name(name)) => match name.as_str() {
            "low" => -10,
            "normal" => 0,
            "high" => 50,
            "urgent" => 100,
            _ => return Err(ApiError::field("priority", "must be low, normal, high, urgent, or a number")),
        },
    };
    let range = i64::from(limits::PRIORITY_MIN)..=i64::from(limits::PRIORITY_MAX);
    if range.contains(&number) {
        Ok(number as i16)
    } else {
        Err(ApiError::field("priority", format!("must be {} to {}", range.start(), range.end())))
    }
}

/// A task as the API shows it.
pub(super) fn task(task: &Task) -> Value {
    let (kind, payload) = kinds::shown(&task.spec.job);
    json!({
        "taskId": task.id.as_str(),
        "kind": kind,
        "payload": payload,
        "targetNodeId": task.spec.target.as_ref().map(|n| n.as_str()),
        "requiredTags": task.spec.tags.iter().map(Tag::as_str).collect::<Vec<_>>(),
        "requires": task.spec.requires.iter().map(Require::to_string).collect::<Vec<_>>(),
        "priority": task.spec.priority,
        "maxAttempts": task.spec.attempts_max,
        "timeoutMs": task.spec.timeout_ms,
        "onDisconnect": match task.spec.on_disconnect {
            OnDisconnect::Fence => "fence",
            OnDisconnect::CarryOn => "carryOn",
        },
        "delivery": match task.spec.delivery {
            Delivery::AtLeastOnce => "atLeastOnce",
            Delivery::AtMostOnce => "atMostOnce",
        },
        "ttlMs": task.spec.ttl_ms,
        "completeBy": task.spec.complete_by,
        "maxOfflineMs": task.spec.offline_ms,
        "status": task.state.as_str(),
        "createdAt": task.created_ms,
        "retryAt": task.retry_at_ms,
        "endedAt": task.ended_ms,
        "deadReason": task.dead.map(|d| d.as_str()),
        "attempt": task.attempt,
        "nodeId": task.last().map(|a| a.node.as_str()),
        "attempts": task.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

pub(super) fn attempt(attempt: &Attempt) -> Value {
    json!({
        "attempt": attempt.number,
        "nodeId": attempt.node.as_str(),
        "fence": attempt.fence.0,
        "grantedAt": attempt.granted_ms,
        "acceptedAt": attempt.accepted_ms,
        "startedAt": attempt.started_ms,
        "endedAt": attempt.ended_ms,
        "progress": attempt.told.progress,
        "outcome": match &attempt.end {
            None => Value::Null,
            Some(End::Lost(why)) => json!({"code": "lost", "detail": why.as_str(), "exitCode": 75}),
            Some(End::Reported(report)) => outcome(report),
        },
    })
}

fn outcome(report: &Report) -> Value {
    let stream =
        |i: usize| json!({"bytes": report.streams[i].end, "truncatedBytes": report.streams[i].truncated});
    json!({
        "code": report.outcome.code(),
        "detail": report.outcome.detail(),
        "exitCode": report.outcome.exit_code(),
        "signal": match report.outcome { Outcome::Signal { signo } => Some(signo), _ => None },
        "waitStatus": report.wait_status,
        "rule": report.rule,
        "policy": data_encoding::HEXLOWER.encode(&report.policy),
        "timeoutMs": report.timeout_ms,
        "sandbox": layer::words(report.sandbox).collect::<Vec<_>>(),
        "durationMs": report.usage.duration_ms,
        "userMs": report.usage.user_ms,
        "systemMs": report.usage.system_ms,
        "maxRssKib": report.usage.max_rss_kib,
        "peakMemoryKib": report.usage.peak_memory_kib,
        "leftoverKilled": report.usage.leftovers,
        "progress": report.told.progress,
        "tokensUsed": report.told.tokens,
        "costUnits": report.told.cost,
        "result": report.told.result.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        "peakGpuPermille": report.peaks.gpu_permille,
        "peakBoardMemoryMib": report.peaks.memory_used_mib,
        "peakGpuMemoryMib": report.peaks.gpu_memory_mib,
        "energyMwh": report.peaks.energy_mwh,
        "stdout": stream(0),
        "stderr": stream(1),
        "truncated": report.streams.iter().any(|s| s.truncated > 0),
    })
}

fn traffic(traffic: &Traffic) -> Value {
    let mut classes = serde_json::Map::new();
    for (class, way, bytes) in traffic.classes() {
        classes.entry(class).or_insert(json!({}))[way] = bytes.into();
    }
    classes.into()
}

/// A node as the API shows it.
pub(super) fn node(view: &NodeView) -> Value {
    let node = &view.node;
    let held =
        |list: &[(TaskId, dunlin_wire::Fence)]| list.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
    json!({
        "nodeId": node.spec.name.as_str(),
        "state": view.state(),
        "health": if node.revoked_ms.is_some() { "revoked" } else { view.health.as_str() },
        "connected": view.connected,
        "silentMs": view.silent_ms,
        "lastHeardAt": node.heard_ms,
        "draining": node.draining,
        "revoked": node.revoked_ms.is_some(),
        "unresponsive": view.unresponsive,
        "cloned": node.cloned,
        "heartbeatMs": view.heartbeat_ms,
        "rttMs": view.rtt_us.map(|us| us as f64 / 1000.0),
        "bytes": traffic(&view.traffic),
        "role": if node.is_worker() { "worker" } else { node.role.as_str() },
        "profile": node.spec.profile.as_str(),
        "region": node.spec.region,
        "tags": node.spec.tags.iter().map(Tag::as_str).collect::<Vec<_>>(),
        "capabilities": node.capabilities.iter().map(Tag::as_str).collect::<Vec<_>>(),
        "maxConcurrentTasks": node.capacity(),
        "claimed": held(&view.claimed),
        "running": held(&view.running),
        "freeSlots": view.free,
        "lastOutcome": view.last_outcome,
        "version": node.version,
        "policy": data_encoding::HEXLOWER.encode(&node.policy),
        "policyVersion": view.overlay,
        "keySet": view.key_set,
        "publicKey": node.key.to_string(),
        "enrolledAt": node.enrolled_ms,
        "alarms": telemetry::alarms(&view.alarms),
        "telemetry": view.board.as_ref().map(telemetry::body),
    })
}
