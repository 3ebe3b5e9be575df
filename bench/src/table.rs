//! A record for people, on a terminal.

use crate::record::{Record, Series};

/// The record as lines of text: each series, each ratio, each note.
pub fn text(record: &Record) -> String {
    let width = record.series.iter().map(|s| label(s).chars().count()).max().unwrap_or(0);
    let mut out = format!(
        "{}\n{} at load {}, {} cores, linux {}\n{:width$} {:>9} {:>11} {:>11} {:>11} {:>11}\n",
        record.command,
        record.started,
        record.machine.load1,
        record.machine.cores,
        record.machine.kernel,
        "",
        "n",
        "p50",
        "p90",
        "p99",
        "max"
    );
    for series in &record.series {
        let [p50, p90, p99, max] =
            [series.p50, series.p90, series.p99, series.max].map(|v| value(v, &series.unit));
        let name = label(series);
        out += &format!("{name:width$} {:>9} {p50:>11} {p90:>11} {p99:>11} {max:>11}\n", series.n);
    }
    for r in &record.ratios {
        let goal = r.goal.map_or(String::new(), |goal| {
            format!("; goal {goal}: {}", if r.met == Some(true) { "met" } else { "not met" })
        });
        out += &format!(
            "{}: {} / {} at {} = {:.3} [{:.3}, {:.3}]{goal}\n",
            r.name, r.system, r.against, r.at, r.value, r.low, r.high
        );
    }
    for note in &record.notes {
        out += note;
        out.push('\n');
    }
    out
}

fn label(series: &Series) -> String {
    let unit = if series.unit == "us" { "ms" } else { &series.unit };
    format!("{}, {}, {} ({unit})", series.name, series.system, series.profile)
}

/// A value with about four digits; microseconds as milliseconds.
pub(crate) fn value(value: f64, unit: &str) -> String {
    let value = if unit == "us" { value / 1000.0 } else { value };
    let digits = match value.abs() {
        v if v == v.trunc() && unit != "us" => 0,
        v if v < 1.0 => 3,
        v if v < 100.0 => 2,
        v if v < 10_000.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_table_has_all_that_was_measured() {
        let mut record = Record::new(Path::new("/"));
        record.series.push(Series::new(["claim", "dunlin", "loop", "us"], vec![1500.0, 2500.0]));
        record.series.push(Series::new(["lost", "dunlin", "loop", "jobs"], vec![0.0]));
        record.notes.push("a word".into());
        let text = text(&record);
        for want in ["claim, dunlin, loop (ms)", "1.50", "2.50", "lost, dunlin, loop (jobs)", "a word"] {
            assert!(text.contains(want), "{want}: {text}");
        }
        assert_eq!(value(0.0, "jobs"), "0");
        assert_eq!(value(12_345_678.0, "us"), "12346");
    }
}
