//! Crashes and power cuts, against a model that is a map.

use super::super::{Store, StoreOptions};
use super::*;
use std::collections::BTreeMap;
use std::path::Path;

type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

const TABLES: [Table; 3] = [Table::Tasks, Table::Outputs, Table::Events];

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreOptions { bytes_max: 32 << 20, sync: true }).unwrap()
}

/// What the engine has.
fn rows(store: &Store) -> Model {
    let mut rows = Model::new();
    store
        .read(|view| {
            for table in TABLES {
                for row in view.table(table).iter(view.txn()?)? {
                    let (key, value) = row?;
                    rows.insert((table as usize, key.to_vec()), value.to_vec());
                }
            }
            Ok(())
        })
        .unwrap();
    rows
}

/// Changes some rows, and the model with them.
fn change(write: &mut Write<'_>, model: &mut Model, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..12) {
        let (table, key) = (TABLES[rng.usize(..3)], vec![rng.u8(..40)]);
        match rng.u8(..8) {
            0 => {
                write.delete(table, &key).unwrap();
                model.remove(&(table as usize, key));
            }
            1 => {
                let last = vec![key[0] + rng.u8(..5)];
                write.delete_range(table, &key, &last).unwrap();
                model.retain(|(of, at), _| *of != table as usize || *at < key || *at > last);
            }
            _ => {
                let most = if rng.u8(..10) == 0 { 300_000 } else { 3_000 };
                let value = vec![rng.u8(..); rng.usize(..most)];
                write.put_bytes(table, &key, &value).unwrap();
                model.insert((table as usize, key), value);
            }
        }
    }
}

/// What a machine that went down now would leave, when its disk was given what was waited for and nothing else.
fn image(dir: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    for name in ["data.mdb", "redo"] {
        std::fs::copy(dir.join(name), image.path().join(name)).unwrap();
    }
    image
}

#[test]
fn what_was_acknowledged_is_there_after_a_crash_at_any_time() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut dir, mut model) = (tempfile::tempdir().unwrap(), Model::new());
    let (mut behind, mut caught_up) = (0, 0);
    for _ in 0..25 {
        let store = open(dir.path());
        assert!(rows(&store) == model, "after a crash");
        let mut writer = store.writer().unwrap();
        for _ in 0..rng.usize(1..30) {
            let (mut write, before) = (writer.write(), model.clone());
            change(&mut write, &mut model, &mut rng);
            if rng.u8(..6) == 0 {
                drop(write);
                writer.recover().unwrap();
                model = before;
                if rng.bool() {
                    writer.catch_up().unwrap();
                    assert!(rows(&store) == model, "after it was given up");
                }
            } else {
                assert!(writer.commit(write).unwrap());
            }
            if rng.u8(..10) == 0 {
                writer.catch_up().unwrap();
                assert!(!writer.is_behind() && rows(&store) == model);
                caught_up += 1;
            }
        }
        behind += u32::from(writer.is_behind());
        let image = image(dir.path());
        if rng.bool() {
            // A record of which nobody was told, in part.
            let mut bytes = std::fs::read(image.path().join("redo")).unwrap();
            let mut torn = Vec::new();
            Change::Put(Table::Tasks, b"torn", &[1; 5000]).write_to(&mut torn);
            let (end, mark) = writer.redo.place();
            let most = torn.len().min(bytes.len() - end).saturating_sub(1);
            let part = rng.usize(..=most);
            if part > 20 {
                bytes[end..end + 16].copy_from_slice(&mark);
                bytes[end + 16..end + 20].copy_from_slice(&(torn.len() as u32).to_le_bytes());
                bytes[end + 20..end + part].copy_from_slice(&torn[20..part]);
            }
            std::fs::write(image.path().join("redo"), bytes).unwrap();
        }
        drop(writer);
        drop(store);
        dir = image;
    }
    assert!(behind > 5 && caught_up > 5, "{behind} times behind, {caught_up} times caught up");
}

#[test]
fn who_reads_waits_for_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(store.behind().is_none());
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let (store, behind) = (&store, &store.behind);
        scope.spawn(move || {
            let mut writer = store.writer().unwrap();
            let mut write = writer.write();
            write.put_meta("said", &1u32).unwrap();
            writer.commit(write).unwrap();
            tell.send(()).unwrap();
            while !writer.is_wanted() {
                std::thread::yield_now();
            }
            writer.catch_up().unwrap();
            // What nobody waits for yet.
            let mut write = writer.write();
            write.put_meta("said", &2u32).unwrap();
            writer.commit(write).unwrap();
        });
        told.recv().unwrap();
        runtime.block_on(store.caught_up(store.behind().unwrap())).unwrap();
        let said = store.read(|view| view.meta::<u32>("said")).unwrap();
        assert!(said >= Some(1) && behind.acknowledged.load(Ordering::SeqCst) >= 1);
    });
}

#[test]
fn there_is_one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let writer = store.writer().unwrap();
    assert!(matches!(store.writer().map(drop), Err(StoreError::Locked(_))));
    drop(writer);
    store.writer().map(drop).unwrap();
}

#[test]
fn a_log_that_is_full_makes_room_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut writer = store.writer().unwrap();
    let mut fullest = 0;
    for n in 0..6000u32 {
        let mut write = writer.write();
        write.put_meta("n", &n).unwrap();
        if n % 3000 == 0 {
            // Longer than the log.
            write.put_bytes(Table::Outputs, b"long", &vec![7; redo::BYTES as usize + 1]).unwrap();
        }
        writer.commit(write).unwrap();
        fullest = fullest.max(writer.redo.place().0);
    }
    assert!(fullest > 50_000 && writer.is_behind());
    let image = image(dir.path());
    let said = open(image.path()).read(|view| view.meta::<u32>("n")).unwrap();
    assert_eq!(said, Some(5999));
}
