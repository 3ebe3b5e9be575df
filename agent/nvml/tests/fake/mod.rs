//! A driver's library that does what a file beside it says, for the tests that load it.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::path::Path;
use std::process::Command;

/// Builds it as `fake.so` in `dir`, where it looks for `control` and writes `calls`. `false`, and a line that says so,
/// without a C compiler.
pub fn build(dir: &Path) -> bool {
    let path = |name: &str| dir.join(name).display().to_string();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/fake.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-o", &path("fake.so")])
        .args([format!("-DCONTROL=\"{}\"", path("control")), format!("-DCALLS=\"{}\"", path("calls"))])
        .arg(source)
        .status();
    let Ok(status) = built else {
        println!("skipped: there is no `cc` to build the fake library with");
        return false;
    };
    assert!(status.success(), "the fake library does not build");
    true
}
