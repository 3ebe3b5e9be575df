//! Every fixture board, as `telemetry --json --sysroot` shows it, equals its `expected.json`; and no broken file makes
//! a figure 0.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod boards;

use boards::{Node, expand, fixture, nodes, put};
use dunlin_agent::telemetry::{Reader, Sysroot};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const BOARDS: [&str; 9] = [
    "container-nosysfs",
    "nano-t210-jp46",
    "orin-agx-t234-jp50",
    "orin-nano-t234-jp61",
    "rpi4-bcm2711",
    "rpi5-bcm2712",
    "thor-t264-jp70-idle",
    "tx2-t186-jp46",
    "xavier-nx-t194-jp51",
];
/// Objects whose names are the board's: none may be missing, none may be more.
const BY_NAME: [&str; 5] = ["temps_mc", "temps_dropped", "rail_limit_ma", "throttle_alerts", "storage"];
/// Prose: what counts is its head, up to the first of `(`, `:`, `=` and `,`.
const PROSE: [&str; 2] = ["temps_dropped", "gpu.source"];

fn expected(board: &str) -> Map<String, Value> {
    serde_json::from_str(&fixture(&format!("{board}.expected.json"))).unwrap()
}

/// What `got` has otherwise than `want`, each with its place.
fn differences(place: &str, want: &Value, got: &Value, found: &mut Vec<String>) {
    let top = place.split('.').next().unwrap_or_default();
    let prose = PROSE.contains(&place) || PROSE.contains(&top);
    let head = |text: &str| text.split(['(', ':', '=', ',']).next().unwrap().trim().to_owned();
    let same = match (want, got) {
        (Value::Object(want), Value::Object(got)) => {
            for (name, want) in want {
                let got = got.get(name).unwrap_or(&Value::Null);
                differences(&format!("{place}.{name}"), want, got, found);
            }
            let more = got.keys().find(|name| BY_NAME.contains(&place) && !want.contains_key(*name));
            found.extend(more.map(|name| format!("{place}.{name}: not expected")));
            true
        }
        (Value::Array(want), Value::Array(got)) if want.len() == got.len() => {
            for (n, (want, got)) in want.iter().zip(got).enumerate() {
                differences(&format!("{place}.{n}"), want, got, found);
            }
            true
        }
        (Value::Number(want), Value::Number(got)) => want.as_f64() == got.as_f64(),
        (Value::String(want), Value::String(got)) if prose => head(want) == head(got),
        (want, got) => want == got,
    };
    if !same {
        found.push(format!("{place}: {got}, expected {want}"));
    }
}

fn agent(root: &Path, more: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_dunlin-agent"))
        .args(["telemetry", "--sysroot", root.to_str().unwrap()])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn every_board_reports_what_its_file_expects() {
    let all: Vec<_> = BOARDS.iter().map(|board| (board, expected(board))).collect();
    let mut failed = Vec::new();
    for (board, want) in &all {
        let mut found = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        expand(dir.path(), &nodes(board).0);
        let output = agent(dir.path(), &["--json"]);
        assert!(output.status.success() && output.stderr.is_empty(), "{board}: {output:?}");
        let got: Value = serde_json::from_slice(&output.stdout).unwrap();
        for (name, want) in want.iter().filter(|(name, _)| *name != "step2") {
            differences(name, want, &got[name], &mut found);
        }
        // A field that other boards have and this one's file does not mention is absent here.
        let known = all.iter().flat_map(|(_, other)| other.keys()).filter(|name| !want.contains_key(*name));
        for name in known {
            let nothing = [Value::Null, json!({}), json!([])].contains(&got[name]);
            if !nothing {
                found.push(format!("{name}: {}, expected nothing", got[name]));
            }
        }
        failed.extend(found.into_iter().map(|text| format!("{board}: {text}")));
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

#[test]
fn two_readings_give_the_rates_of_the_second_step() {
    for board in BOARDS {
        let Some(want) = expected(board).remove("step2") else { continue };
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = nodes(board);
        expand(dir.path(), &first);
        let mut reader = Reader::new(Sysroot::new(dir.path()), Vec::new());
        assert_eq!(reader.read().window, None, "one reading has no rates");
        expand(dir.path(), &second);
        let got = json!(reader.read().window);
        let mut found = Vec::new();
        differences("step2", &want, &got, &mut found);
        assert!(found.is_empty(), "{board}:\n{}", found.join("\n"));
        assert_eq!(reader.read().window, None, "no time has passed");
    }
}

#[test]
fn the_listing_names_sources_and_reasons() {
    let dir = tempfile::tempdir().unwrap();
    expand(dir.path(), &nodes("thor-t264-jp70-idle").0);
    let output = agent(dir.path(), &[]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for (field, want) in [
        ("rails.VDD_GPU ", "19600 -20 -392"),
        ("mem_kib.total ", "/proc/meminfo"),
        ("gpu.freq_khz ", "/sys/class/devfreq/gpu-gpc-0/cur_freq (the clock is off)"),
        ("gpu.util_permille ", "NVML"),
        ("temps_mc.cpu ", "53718"),
        ("zram ", "-"),
        ("power_mode.name ", "120W"),
    ] {
        let line =
            text.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("{field}: {text}"));
        assert!(line.contains(want), "{line}");
    }
    let none = agent(&dir.path().join("none"), &[]);
    assert_eq!(none.status.code(), Some(64));
}

/// Every leaf of a report by its place; lists are leaves.
fn leaves(place: &str, value: &Value, found: &mut Vec<(String, bool)>) {
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(name, value)| {
            let dot = if place.is_empty() { "" } else { "." };
            leaves(&format!("{place}{dot}{name}"), value, found);
        }),
        value => found.push((place.to_owned(), [Value::Null, json!({}), json!([])].contains(value))),
    }
}

#[test]
fn every_field_has_a_source_and_every_absent_one_a_reason() {
    for board in BOARDS {
        let dir = tempfile::tempdir().unwrap();
        expand(dir.path(), &nodes(board).0);
        let mounts = vec!["/".into(), "/data".into()];
        let (report, sources) = Reader::new(Sysroot::new(dir.path()), mounts).read_with_sources();
        let mut found = Vec::new();
        leaves("", &json!(report), &mut found);
        for (place, is_absent) in found {
            let nearest =
                sources.iter().filter(|(name, _)| place == *name || place.starts_with(&format!("{name}.")));
            // Names of rails and sensors are no leaves where the field is a list.
            let inside = sources.iter().find(|(name, _)| name.starts_with(&format!("{place}.")));
            let source = nearest.max_by_key(|(name, _)| name.len()).or(inside);
            let Some((_, source)) = source else { panic!("{board}: {place} has no source") };
            assert!(!source.file.is_empty(), "{board}: {place}");
            assert!(!is_absent || source.absent.is_some(), "{board}: {place} is absent and nothing says why");
        }
    }
}

/// A generator that needs no dependency (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Another content for a file, which says 0 nowhere where `bytes` does not.
fn mangle(bytes: &[u8], random: &mut Random) -> Node {
    let huge =
        ["99999999999999999999999999", "18446744073709551615", "9223372036854775807", "1e308", "-7777777777"];
    match random.below(8) {
        0 => Node::ReadFails,
        1 => Node::File(Vec::new()),
        2 => Node::File((0..=random.below(64)).map(|_| 128 + random.below(128) as u8).collect()),
        3 => Node::File((0..=random.below(64)).map(|_| 1 + random.below(47) as u8).collect()),
        // All numbers.
        4 | 5 => {
            let text = String::from_utf8_lossy(bytes);
            let with = huge[random.below(huge.len())];
            let mut out = String::new();
            let mut in_number = false;
            for c in text.chars() {
                match c.is_ascii_digit() {
                    true if !in_number => out.push_str(with),
                    true => {}
                    false => out.push(c),
                }
                in_number = c.is_ascii_digit();
            }
            Node::File(out.into_bytes())
        }
        // The same again and again, beyond every bound.
        6 => Node::File(bytes.iter().copied().cycle().take(300_000).collect()),
        // The head, but not so that `0.21` or `0x02` becomes a 0 that nobody can tell from a real one.
        _ => {
            let mut end = random.below(bytes.len());
            let zero = |bytes: &[u8]| {
                let token = bytes.rsplit(|b| b" \n:=".contains(b)).next().unwrap_or_default();
                !token.is_empty() && token.iter().all(|b| b"0x.-".contains(b))
            };
            while end > 0 && zero(&bytes[..end]) {
                end -= 1;
            }
            Node::File(bytes[..end].to_vec())
        }
    }
}

/// Every number of a report by its place; rows are known by their first element.
fn numbers(place: &str, value: &Value, found: &mut BTreeMap<String, f64>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| numbers(&format!("{place}.{name}"), value, found));
        }
        Value::Array(list) => {
            for (n, value) in list.iter().enumerate() {
                let name = value.get(0).map_or_else(|| n.to_string(), Value::to_string);
                numbers(&format!("{place}.{name}"), value, found);
            }
        }
        Value::Number(n) => drop(found.insert(place.to_owned(), n.as_f64().unwrap())),
        _ => {}
    }
}

#[test]
fn no_broken_file_panics_or_becomes_zero() {
    let rounds: usize = std::env::var("DUNLIN_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    for (seed, board) in BOARDS.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (nodes, _) = nodes(board);
        expand(dir.path(), &nodes);
        let read = || {
            let report = Reader::new(Sysroot::new(dir.path()), Vec::new()).read();
            let mut found = BTreeMap::new();
            numbers("", &json!(report), &mut found);
            found
        };
        let whole = read();
        let files: Vec<_> = nodes
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(bytes) => Some((path, bytes)),
                _ => None,
            })
            .collect();
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1));
        for round in 0..rounds {
            let (path, bytes) = files[random.below(files.len())];
            let node = mangle(bytes, &mut random);
            let file: PathBuf = dir.path().join(path);
            std::fs::remove_file(&file).unwrap();
            put(dir.path(), path, &node);
            // A row under another name is another row; its figures come from files that are whole.
            let name = path.rsplit('/').next().unwrap();
            let renames = name.starts_with("rail_name") || name.ends_with("_label") || name == "type";
            for (place, value) in read() {
                let was = whole.get(&place).copied();
                assert!(
                    value != 0.0 || was == Some(0.0) || (was.is_none() && renames),
                    "{board}, round {round}: with a broken {path}, {place} is 0 and was {was:?}"
                );
            }
            match node {
                Node::ReadFails => std::fs::remove_dir(&file).unwrap(),
                _ => std::fs::remove_file(&file).unwrap(),
            }
            put(dir.path(), path, &Node::File(bytes.clone()));
        }
        assert_eq!(read(), whole, "{board}: the tree was put back");
    }
}

#[test]
fn no_broken_file_makes_a_rate_zero() {
    let (first, second) = nodes("orin-nano-t234-jp61");
    let window = |second: &BTreeMap<String, Node>| {
        let dir = tempfile::tempdir().unwrap();
        expand(dir.path(), &first);
        let mut reader = Reader::new(Sysroot::new(dir.path()), Vec::new());
        reader.read();
        for (path, node) in second {
            std::fs::remove_file(dir.path().join(path)).unwrap();
            put(dir.path(), path, node);
        }
        let mut found = BTreeMap::new();
        numbers("", &json!(reader.read().window), &mut found);
        found
    };
    let whole = window(&second);
    assert!(whole.values().any(|value| *value > 0.0));
    let mut random = Random(7);
    for round in 0..300 {
        let mut broken = second.clone();
        let path = second.keys().nth(random.below(second.len())).unwrap();
        let Node::File(bytes) = &second[path] else { continue };
        let node = mangle(bytes, &mut random);
        broken.insert(path.clone(), node);
        for (place, value) in window(&broken) {
            let was = whole.get(&place).copied();
            assert!(
                value != 0.0 || was == Some(0.0),
                "round {round}: with a broken {path}, {place} is 0 and was {was:?}"
            );
        }
    }
}

#[test]
fn a_directory_that_is_a_file_is_no_board() {
    for top in ["sys", "proc", "etc"] {
        let dir = tempfile::tempdir().unwrap();
        expand(dir.path(), &nodes("orin-nano-t234-jp61").0);
        std::fs::rename(dir.path().join(top), dir.path().join("away")).unwrap();
        std::fs::write(dir.path().join(top), "0\n").unwrap();
        let report = json!(Reader::new(Sysroot::new(dir.path()), Vec::new()).read());
        match top {
            "sys" => assert_eq!((&report["family"], &report["gpu"]), (&json!("unknown"), &Value::Null)),
            "proc" => assert_eq!(report["mem_kib"]["total"], Value::Null),
            _ => assert_eq!(report["l4t"], Value::Null),
        }
    }
}
