//! What a job writes about itself into the file that `DUNLIN_REPORT` names: JSON lines, the last word on each counts.

use dunlin_wire::limits;
use dunlin_wire::report::Told;
use serde_json::Value;

/// Takes one line: an object with any of `progress` (0 to 100), `tokensUsed`, `costUnits` and `result` (an object). What is of
/// another shape, or beyond its bound, is left out.
pub fn take(told: &mut Told, line: &str) {
    let Ok(Value::Object(line)) = serde_json::from_str(line) else { return };
    let number = |name: &str| line.get(name).and_then(Value::as_u64);
    if let Some(percent @ 0..=100) = number("progress") {
        told.progress = Some(percent as u8);
    }
    told.tokens = number("tokensUsed").filter(|n| *n <= limits::COUNT_MAX).or(told.tokens);
    told.cost = number("costUnits").filter(|n| *n <= limits::COUNT_MAX).or(told.cost);
    if let Some(text) = line.get("result").filter(|result| result.is_object()).map(Value::to_string)
        && text.len() <= limits::RESULT_MAX
    {
        told.result = Some(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_job_says_only_what_is_in_bounds_counts() {
        let mut told = Told::default();
        let long = format!(r#"{{"result": {{"a": "{}"}}}}"#, "x".repeat(limits::RESULT_MAX));
        for line in [
            r#"{"progress": 20, "tokensUsed": 150}"#,
            r#"{"progress": 101, "tokensUsed": -1, "costUnits": 1.5}"#,
            r#"{"progress": "50", "result": "text", "tokensUsed": 99999999999999999999}"#,
            r#"{"progress": 40, "result": {"a": 1}}"#,
            "{not json",
            "[1]",
            &long,
        ] {
            take(&mut told, line);
        }
        let result = Some(r#"{"a":1}"#.to_owned());
        assert_eq!(told, Told { progress: Some(40), tokens: Some(150), cost: None, result });
        told.add(&Told { tokens: Some(1), ..Told::default() });
        assert_eq!((told.tokens, told.cost), (Some(151), None));
    }
}
