//! `dunlin-agent telemetry`: what this board reports, field by field with its source, and why a field is absent.
//! Nothing here needs root, an enrolment or a hub.

use super::EX_USAGE;
use crate::config::Config;
use crate::telemetry::{Nvml, Programs, Reader, Source, Sources, Sysroot};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Between two readings of `--watch`.
const PERIOD: Duration = Duration::from_secs(2);
/// Before the one reading that is shown, there is another: shares and rates are of the time between.
const WARM_UP: Duration = Duration::from_secs(1);

pub(super) fn run(config: &Config, sysroot: Option<&Path>, watch: bool, as_json: bool) -> ExitCode {
    let root = sysroot.map_or_else(Sysroot::default, Sysroot::new);
    if let Some(dir) = sysroot.filter(|dir| !dir.is_dir()) {
        eprintln!("dunlin-agent: --sysroot {}: no such directory", dir.display());
        return ExitCode::from(EX_USAGE);
    }
    let live = root.is_live();
    let mut reader = Reader::new(root, config.mounts.clone());
    if live {
        reader = reader.with_nvml(Nvml::new(Programs::installed()));
        reader.read();
        std::thread::sleep(WARM_UP);
    }
    loop {
        let (report, sources) = reader.read_with_sources();
        let report = json!(report);
        let mut out = io::stdout().lock();
        let shown = match (as_json, watch) {
            (true, _) => {
                let mut report = report;
                report["sources"] = json!(sources);
                if watch { writeln!(out, "{report}") } else { writeln!(out, "{report:#}") }
            }
            (false, _) => show(&mut out, &report, &sources, watch),
        };
        // Whoever reads has had enough (`| head`).
        if shown.and_then(|()| out.flush()).is_err() || !watch {
            return ExitCode::SUCCESS;
        }
        drop(out);
        std::thread::sleep(PERIOD);
    }
}

fn show(out: &mut impl Write, report: &Value, sources: &Sources, watch: bool) -> io::Result<()> {
    let mut rows = Vec::new();
    flatten("", report, &mut rows);
    writeln!(out, "{:<32} {:<28} SOURCE", "FIELD", "VALUE")?;
    for (field, value) in rows {
        let source = source(sources, &field);
        let file = source.map_or("", |s| s.file.as_str());
        match (value, source.and_then(|s| s.absent.as_deref())) {
            (Some(value), None) => writeln!(out, "{field:<32} {value:<28} {file}")?,
            // A part of the field is absent; the rest is shown.
            (Some(value), Some(why)) => writeln!(out, "{field:<32} {value:<28} {file} ({why})")?,
            (None, Some(why)) => writeln!(out, "{field:<32} {:<28} {file} ({why})", "-")?,
            (None, None) => writeln!(out, "{field:<32} {:<28} {file} (its files are absent)", "-")?,
        }
    }
    if watch { writeln!(out) } else { Ok(()) }
}

/// That of the field, or of the nearest it is a part of.
fn source<'a>(sources: &'a Sources, field: &str) -> Option<&'a Source> {
    let mut name = field;
    loop {
        if let Some(source) = sources.get(name) {
            return Some(source);
        }
        name = name.rsplit_once('.')?.0;
    }
}

/// One row a figure, `None` where there is none; a list whose rows start with a name or number is taken by that.
fn flatten(field: &str, value: &Value, rows: &mut Vec<(String, Option<String>)>) {
    let below = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(name, value)| flatten(&below(name), value, rows));
        }
        Value::Array(list) if list.iter().any(Value::is_array) => {
            for row in list.iter().filter_map(Value::as_array) {
                let Some((name, rest)) = row.split_first() else { continue };
                let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
                rows.push((below(&name), Some(list_text(rest))));
            }
        }
        Value::Array(list) if !list.is_empty() => rows.push((field.to_owned(), Some(list_text(list)))),
        Value::Null | Value::Object(_) | Value::Array(_) => rows.push((field.to_owned(), None)),
        Value::String(text) => rows.push((field.to_owned(), Some(text.clone()))),
        value => rows.push((field.to_owned(), Some(value.to_string()))),
    }
}

fn list_text(list: &[Value]) -> String {
    let parts = list.iter().map(|v| if v.is_null() { "-".to_owned() } else { v.to_string() });
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_a_row_and_the_nearest_source() {
        let report = json!({
            "a": {"b": 1, "c": null}, "rails": [["VIN", 5000, null]], "none": {}, "load": [0.5, 1.0], "name": "x"
        });
        let mut rows = Vec::new();
        flatten("", &report, &mut rows);
        rows.sort();
        let rows: Vec<_> = rows.iter().map(|(field, value)| (field.as_str(), value.as_deref())).collect();
        assert_eq!(
            rows,
            [
                ("a.b", Some("1")),
                ("a.c", None),
                ("load", Some("0.5 1.0")),
                ("name", Some("x")),
                ("none", None),
                ("rails.VIN", Some("5000 -")),
            ]
        );
        let entry = |file: &str| Source { file: file.into(), absent: None };
        let mut sources = Sources::default();
        sources.insert("a".into(), entry("/a"));
        sources.insert("a.c".into(), entry("/c"));
        assert_eq!(source(&sources, "a.c").unwrap().file, "/c");
        assert_eq!(source(&sources, "a.b").unwrap().file, "/a");
        assert_eq!(source(&sources, "rails.VIN"), None);
    }
}
