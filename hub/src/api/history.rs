//! `/v1/nodes/{name}/metrics`: what a board was like.

use super::auth::Actor;
use super::error::ApiError;
use super::tasks::query;
use super::{ApiState, mismatch, telemetry};
use crate::clock;
use crate::core::history::{RAW_MS, Row, Tier, thin};
use crate::event::{Answer, Request};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use dunlin_wire::NodeName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Points of one series in an answer.
const POINTS_MAX: u64 = 500;
/// Shortest step, in milliseconds.
const STEP_MS_MIN: u64 = 1_000;
/// What is shown when nothing is asked for, in milliseconds.
const SPAN_MS: u64 = 3_600_000;

/// Times in milliseconds since the epoch; the step in milliseconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    from: Option<u64>,
    to: Option<u64>,
    step: Option<u64>,
}

impl Span {
    /// `from`, `to` and `step`.
    fn resolve(&self, now: u64) -> Result<(u64, u64, u64), ApiError> {
        let to = self.to.unwrap_or(now);
        let from = self.from.unwrap_or(to.saturating_sub(SPAN_MS));
        if from >= to {
            return Err(ApiError::field("from", "must be before `to`"));
        }
        let least = (to - from).div_ceil(POINTS_MAX).max(STEP_MS_MIN);
        let step = self.step.unwrap_or(least);
        if step < least {
            let rule = format!("must be at least {least} ms: an answer has at most {POINTS_MAX} points");
            return Err(ApiError::field("step", rule));
        }
        Ok((from, to, step))
    }
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
    span: Result<Query<Span>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let name: NodeName = text.parse().map_err(|_| ApiError::not_found("node", &text))?;
    let now = clock::now().wall;
    let (from, to, step) = query(span)?.resolve(now)?;
    let request = Request::Recent(name.clone());
    let Answer::Recent(recent) = state.ask(&actor, request).await? else { return Err(mismatch()) };
    let mut rows: Vec<Row> = Vec::new();
    if let Some(tier) = tier(now.saturating_sub(from), step) {
        // A row begins before what it tells of.
        rows = state.read(|view| view.history(&name, tier, from, to)).await?;
        // What is not on disk yet.
        let kept_to = rows.last().map_or(from, |last| last.at_ms + tier.step_ms());
        rows.extend(recent.rows.into_iter().filter(|row| row.at_ms >= kept_to));
    } else {
        // Before what memory holds (the hub may have been started since, or there was no room) there are minutes.
        let kept_to =
            recent.rows.first().map_or(to, |first| first.at_ms).saturating_sub(Tier::Minute.step_ms());
        if from < kept_to {
            rows = state.read(|view| view.history(&name, Tier::Minute, from, kept_to.min(to))).await?;
        }
        rows.extend(recent.rows);
    }
    rows.retain(|row| (from..to).contains(&row.at_ms));
    let series: Map<String, Value> = (0..)
        .zip(&recent.names)
        .filter_map(|(at, key)| {
            let (_, unit) = telemetry::in_unit(key, 0.0)?;
            let scaled = |figure: f64| telemetry::in_unit(key, figure).map(|(figure, _)| figure);
            let points = thin(&rows, at, telemetry::is_counter(key), from, step).into_iter();
            let points: Vec<Value> =
                points.map(|(at, mean, max)| json!([at, scaled(mean), scaled(max as f64)])).collect();
            (!points.is_empty()).then(|| (key.clone(), json!({"unit": unit, "points": points})))
        })
        .collect();
    Ok(Json(json!({"nodeId": text, "from": from, "to": to, "step": step, "series": series})))
}

/// Where to read: as fine as is asked for, and as is still kept. `None` is every report.
fn tier(age_ms: u64, step: u64) -> Option<Tier> {
    if age_ms <= RAW_MS && step < Tier::Minute.step_ms() {
        None
    } else if age_ms <= Tier::Minute.keep_ms() && step < Tier::Ten.step_ms() {
        Some(Tier::Minute)
    } else {
        Some(Tier::Ten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_bounded() {
        let resolve = |from, to, step| Span { from, to, step }.resolve(10_000_000).ok();
        assert_eq!(resolve(None, None, None), Some((6_400_000, 10_000_000, 7_200)));
        assert_eq!(resolve(Some(0), Some(10_000), None), Some((0, 10_000, 1_000)));
        assert_eq!(resolve(Some(0), Some(1_000_000), Some(1_999)), None);
        assert_eq!(resolve(Some(0), Some(1_000_000), Some(2_000)), Some((0, 1_000_000, 2_000)));
        assert_eq!(resolve(Some(5), Some(5), None), None);
        assert_eq!(resolve(Some(0), None, Some(0)), None);
        assert_eq!(tier(3_600_000, 7_200), None);
        assert_eq!(tier(3_600_001, 7_200), Some(Tier::Minute));
        assert_eq!(tier(3_600_000, 60_000), Some(Tier::Minute));
        assert_eq!(tier(24 * 3_600_000 + 1, 60_000), Some(Tier::Ten));
    }
}
