//! The process: when it ends, and what it writes without a library.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_wire::frame::Decoder;
use dunlin_wire::nvml::{FRAME_MAX, Frame, Look};
use std::io::Read;
use std::process::{Child, Command, Stdio};

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin-nvml"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// A tree with a GPU that is powered off: there are looks, and no library is needed.
fn asleep() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("sys/bus/pci/devices/0000:01:00.0");
    std::fs::create_dir_all(device.join("power")).unwrap();
    for (file, text) in
        [("vendor", "0x10de\n"), ("class", "0x030000\n"), ("power/runtime_status", "suspended\n")]
    {
        std::fs::write(device.join(file), text).unwrap();
    }
    dir
}

#[test]
fn without_a_library_it_says_why_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let mut child = start(&["--lib", "/nowhere/libnvidia-ml.so", "--sysroot", root]);
    let mut bytes = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    let mut decoder = Decoder::new(FRAME_MAX);
    decoder.push(&bytes);
    let Some(Frame::Look(Look::Absent { why })) = decoder.next().unwrap() else { panic!("{bytes:?}") };
    assert!(why.contains("/nowhere"), "{why}");
    assert_eq!(child.wait().unwrap().code(), Some(69));
}

#[test]
fn it_ends_with_its_input_and_when_nobody_reads() {
    let dir = asleep();
    let args = ["--every-ms", "10", "--sysroot", dir.path().to_str().unwrap()];
    for input_ends in [true, false] {
        let mut child = start(&args);
        let mut out = child.stdout.take().unwrap();
        let mut decoder = Decoder::new(FRAME_MAX);
        for _ in 0..3 {
            let look: Frame = loop {
                if let Some(frame) = decoder.next().unwrap() {
                    break frame;
                }
                let mut bytes = [0; 256];
                let n = out.read(&mut bytes).unwrap();
                decoder.push(&bytes[..n]);
            };
            assert!(matches!(look, Frame::Look(Look::Gpus(gpus)) if gpus[0].suspended));
        }
        if input_ends {
            drop(child.stdin.take())
        } else {
            drop(out)
        }
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn wrong_usage_is_named() {
    for args in [&["--every-ms", "1"][..], &["--lib"], &["-x"]] {
        let mut child = start(args);
        assert_eq!(child.wait().unwrap().code(), Some(64), "{args:?}");
    }
}
