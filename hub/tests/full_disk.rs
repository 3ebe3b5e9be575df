//! A disk that others fill. In a process of its own: a lock is inherited by what another test starts.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_hub::store::{Store, StoreOptions};
use std::path::Path;
use std::process::Command;

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=40m", "dunlin-test"]).arg(dir.path()).output();
    if !mount.is_ok_and(|out| out.status.success()) {
        return println!("skipped: a small file system of its own needs root");
    }
    let _mounted = Mounted(dir.path());
    let store = Store::open(dir.path(), StoreOptions { bytes_max: 64 << 20, sync: true }).unwrap();
    let mut writer = store.writer().unwrap();
    let (mut taken, mut refused) = (Vec::new(), 0);
    for n in 0..400u32 {
        std::fs::write(dir.path().join(format!("ballast-{n}")), vec![1; 50_000]).ok();
        let mut write = writer.write();
        let put = write.put_meta(&n.to_string(), &vec![n as u8; 90_000]);
        match put.and_then(|()| writer.commit(write)) {
            Ok(_) => taken.push(n),
            Err(error) => {
                // Of a page that was half written the engine only says that it was not.
                assert!(error.is_full() || error.to_string().contains("os error 5"), "{error}");
                refused += 1;
                writer.recover().unwrap();
            }
        }
    }
    writer.catch_up().unwrap();
    let read = |n: u32| store.read(|view| view.meta::<Vec<u8>>(&n.to_string())).unwrap();
    assert!(
        (0..400).all(|n| read(n).is_some() == taken.contains(&n)),
        "what was acknowledged, and nothing else"
    );
    assert!(taken.len() > 50 && refused > 5, "{} taken, {refused} refused", taken.len());
}
