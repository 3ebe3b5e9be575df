//! `/metrics` in the Prometheus text format 0.0.4.

use super::auth::Actor;
use super::error::ApiError;
use super::tasks::query;
use super::{ApiState, mismatch, telemetry};
use crate::event::{Answer, Figures, Histogram, Request};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::fmt::Write;
use std::sync::atomic::Ordering;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    names: Option<String>,
}

pub(super) async fn text(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    names: Result<Query<Names>, QueryRejection>,
) -> Result<Response, ApiError> {
    let names = query(names)?.names;
    let Answer::Metrics(figures) = state.ask(&actor, Request::Metrics).await? else { return Err(mismatch()) };
    if let Some(names) = names {
        if names != "dcgm" {
            return Err(ApiError::field("names", "must be dcgm"));
        }
        return Ok(answer(telemetry::dcgm(&figures.boards)));
    }
    let mut text = render(&figures);
    text.push_str(&telemetry::series(&figures.boards));
    head(&mut text, "dunlin_http_requests_total", "counter", "API answers by class of status.");
    for (class, count) in state.requests.iter().enumerate().skip(1) {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(text, "dunlin_http_requests_total{{status=\"{class}xx\"}} {count}");
    }
    Ok(answer(text))
}

fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn family<L: std::fmt::Display>(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    label: &str,
    rows: impl IntoIterator<Item = (L, u64)>,
) {
    head(out, name, kind, help);
    for (value, n) in rows {
        let _ = writeln!(out, "{name}{{{label}=\"{value}\"}} {n}");
    }
}

fn single(out: &mut String, name: &str, help: &str, n: u64) {
    head(out, name, "gauge", help);
    let _ = writeln!(out, "{name} {n}");
}

/// The lane of a priority.
fn lane(priority: i16) -> &'static str {
    match priority {
        i16::MIN..=-1 => "low",
        0..=49 => "normal",
        50..=99 => "high",
        100.. => "urgent",
    }
}

fn render(f: &Figures) -> String {
    let mut out = String::new();
    let lanes = ["low", "normal", "high", "urgent"]
        .map(|name| (name, f.queued.iter().filter(|(p, _)| lane(**p) == name).map(|(_, n)| *n).sum()));
    family(&mut out, "dunlin_queue_depth", "gauge", "Queued tasks by lane.", "lane", lanes);
    let tasks = f.tasks.iter().map(|(s, n)| (s.as_str(), *n));
    family(&mut out, "dunlin_tasks", "gauge", "Tasks by state.", "state", tasks);
    let nodes = f.nodes.iter().map(|(h, n)| (h.as_str(), *n));
    family(&mut out, "dunlin_nodes", "gauge", "Enrolled nodes by health.", "health", nodes);
    let outcomes = f.outcomes.iter().map(|(o, n)| (*o, *n));
    let help = "Attempts that ended, by outcome.";
    family(&mut out, "dunlin_attempts_total", "counter", help, "outcome", outcomes);
    let closed = f.closed.iter().map(|(c, n)| (c.as_str(), *n));
    let help = "Connections that the hub closed, by close code.";
    family(&mut out, "dunlin_closed_total", "counter", help, "code", closed);
    let refused = f.refused.iter().map(|(v, n)| (*v, *n));
    let help = "Messages that were refused, by verdict.";
    family(&mut out, "dunlin_refused_total", "counter", help, "verdict", refused);
    let denials = f.denials.iter().map(|(code, n)| (*code, *n));
    let help = "Attempts that boards decided against, by code.";
    family(&mut out, "dunlin_denials_total", "counter", help, "reason", denials);
    let help = "From queued to granted and on disk.";
    histogram(&mut out, "dunlin_claim_latency_seconds", help, &f.claim_latency);
    histogram(&mut out, "dunlin_store_commit_seconds", "One commit of the store.", &f.commit);
    head(&mut out, "dunlin_node_alarms_total", "counter", "Alarms of boards, by kind.");
    for (node, alarm, n) in &f.alarms {
        let kind = alarm.as_str();
        let _ = writeln!(out, "dunlin_node_alarms_total{{node=\"{node}\",kind=\"{kind}\"}} {n}");
    }
    let help = "Bytes of agents' connections; class `wire` is all of them with IPv4 and UDP headers.";
    head(&mut out, "dunlin_link_bytes_total", "counter", help);
    for (class, way, bytes) in f.traffic.classes() {
        let _ = writeln!(out, "dunlin_link_bytes_total{{class=\"{class}\",direction=\"{way}\"}} {bytes}");
    }
    single(&mut out, "dunlin_connections", "Open connections of agents.", f.connections);
    single(&mut out, "dunlin_store_bytes", "Bytes of the store in use.", f.store_bytes.0);
    single(&mut out, "dunlin_store_bytes_max", "Bytes that the store may use.", f.store_bytes.1);
    single(&mut out, "dunlin_fleet_halted", "1 while the fleet is halted.", f.halted.into());
    out
}

fn histogram(out: &mut String, name: &str, help: &str, h: &Histogram) {
    head(out, name, "histogram", help);
    let mut sum = 0;
    for (count, bound) in h.counts.iter().zip(Histogram::BOUNDS_US) {
        sum += count;
        let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {sum}", bound as f64 / 1e6);
    }
    let total: u64 = h.counts.iter().sum();
    let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}");
    let _ = writeln!(out, "{name}_sum {}\n{name}_count {total}", h.sum_us as f64 / 1e6);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_lanes_complete() {
        let mut figures = Figures::default();
        figures.queued.insert(100, 3);
        figures.queued.insert(-10, 2);
        for us in [50, 200, 99_000_000] {
            figures.commit.observe(us);
        }
        let text = render(&figures);
        for line in [
            "dunlin_queue_depth{lane=\"urgent\"} 3",
            "dunlin_queue_depth{lane=\"low\"} 2",
            "dunlin_queue_depth{lane=\"normal\"} 0",
            "dunlin_store_commit_seconds_bucket{le=\"0.0001\"} 1",
            "dunlin_store_commit_seconds_bucket{le=\"0.00025\"} 2",
            "dunlin_store_commit_seconds_bucket{le=\"60\"} 2",
            "dunlin_store_commit_seconds_bucket{le=\"+Inf\"} 3",
            "dunlin_store_commit_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
