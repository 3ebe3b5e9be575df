//! What no compiler checks: the layering of ARCHITECTURE.md, file sizes, and where time is read.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::path::{Path, PathBuf};

/// Lines of a file, unless ARCHITECTURE.md gives a reason for it.
const LINES_MAX: usize = 500;
/// Packages below the agent in Cargo.lock, for all targets together.
const DEPENDENCIES_MAX: usize = 200;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![root().join(dir)];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} has no sources");
    found
}

/// A file as it is built without its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// No file under `dir` mentions any of `banned`, but for the files in `except`.
fn check(dir: &str, banned: &[&str], except: &[&str]) {
    for (name, text) in sources(dir) {
        if except.iter().any(|e| name.ends_with(e)) {
            continue;
        }
        for word in banned {
            assert!(!code(&text).contains(word), "{name} mentions `{word}`");
        }
    }
}

#[test]
fn layers_point_one_way() {
    let io =
        ["std::fs", "std::net", "std::io", "std::process", "tokio", "std::thread", "std::time", "tracing::"];
    // It only hands on the times that quinn-proto, which does no IO either, gives it.
    let handed_on = ["wire/src/window.rs"];
    check("wire/src", &[&io[..], &["async ", "dunlin_hub", "dunlin_agent"]].concat(), &handed_on);
    for crate_name in ["hub", "agent"] {
        let core = format!("{crate_name}/src/core");
        let edges =
            ["crate::link", "crate::store", "crate::api", "crate::telemetry", "crate::run", "crate::files"];
        check(
            &core,
            &[&io[..], &edges, &["async ", "heed", "quinn", "clock::now", "clock::boot_ms"]].concat(),
            &[],
        );
    }
    check("hub/src", &["dunlin_agent"], &[]);
    check("agent/src", &["dunlin_hub"], &[]);
    let engine = ["mod", "data", "error", "write", "sessions"].map(|file| format!("store/{file}.rs"));
    check("hub/src", &["heed"], &engine.each_ref().map(String::as_str));
    check("agent/src", &["heed"], &["store/mod.rs", "exec/replay.rs"]);
    check("hub/src/store", &["crate::api", "crate::link", "crate::hub"], &[]);
    check("hub/src/api", &["crate::link", "crate::hub", "crate::cli"], &[]);
    check("hub/src/link", &["crate::api", "crate::store", "crate::hub", "crate::cli"], &[]);
    check("hub/src/cli", &["crate::api", "crate::store", "crate::link", "crate::hub", "crate::core"], &[]);
    check("agent/src/exec", &["crate::link", "crate::store", "crate::agent", "quinn", "std::net"], &[]);
    check("agent/nvml/src", &["dunlin_hub", "dunlin_agent"], &[]);
    check("systemd/src", &["dunlin_hub", "dunlin_agent", "dunlin_wire"], &[]);
    check("agent/src/telemetry", &["crate::link", "crate::store", "crate::exec"], &[]);
}

#[test]
fn files_are_small_or_have_a_reason() {
    let reasons = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for dir in [
        "wire/src",
        "systemd/src",
        "hub/src",
        "agent/src",
        "agent/nvml/src",
        "bench/src",
        "tests/src",
        "tests/tests",
    ] {
        for (name, text) in sources(dir) {
            let lines = text.lines().count();
            assert!(
                lines <= LINES_MAX || reasons.contains(&name),
                "{name} has {lines} lines and no reason for it"
            );
        }
    }
}

#[test]
fn one_crypto_provider_and_nothing_unmaintained() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for package in ["aws-lc-rs", "openssl", "openssl-sys", "native-tls", "heapless", "atomic-polyfill"] {
        assert!(!lock.contains(&format!("name = \"{package}\"\n")), "{package} is in the tree");
    }
}

#[test]
fn the_agent_s_dependencies_are_a_budget() {
    // Everything that Cargo.lock has below the agent, whatever the target: a bound that no machine changes.
    let lock: toml::Table = std::fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let mut found = vec!["dunlin-agent"];
    let mut at = 0;
    while let Some(name) = found.get(at).copied() {
        at += 1;
        for package in packages.iter().filter(|p| p["name"].as_str() == Some(name)) {
            for dependency in package.get("dependencies").and_then(|d| d.as_array()).into_iter().flatten() {
                let name = dependency.as_str().unwrap().split(' ').next().unwrap();
                // What only tests need.
                if !["tempfile", "proptest"].contains(&name) && !found.contains(&name) {
                    found.push(name);
                }
            }
        }
    }
    assert!(found.len() <= DEPENDENCIES_MAX, "{} packages below the agent: {found:?}", found.len());
}
