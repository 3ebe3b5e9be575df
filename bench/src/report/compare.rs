//! What changed between two records beyond noise: where the 95 % bootstrap interval of the difference of both medians has
//! no 0 in it. One in twenty of series that did not change looks changed by that.

use super::value;
use crate::record::{Record, Series};
use crate::stats;

/// Fewer samples have no interval to speak of.
const SAMPLES_MIN: usize = 5;

/// Lines for a terminal, and whether a series changed.
pub(super) fn compare(a: &Record, b: &Record) -> (String, bool) {
    let mut out = format!("A: {} ({})\nB: {} ({})\n", a.command, a.started, b.command, b.started);
    if a.machine.cpu != b.machine.cpu || a.machine.kernel != b.machine.kernel {
        out += "another machine or kernel: nothing here says that the program changed\n";
    }
    let mut changed = false;
    let (mut alone, mut few) = (Vec::new(), 0);
    for new in &b.series {
        let name = format!("{}, {}, {}", new.name, new.system, new.profile);
        let same = |old: &&Series| {
            [&old.name, &old.system, &old.profile, &old.unit]
                == [&new.name, &new.system, &new.profile, &new.unit]
        };
        let Some(old) = a.series.iter().find(same) else {
            alone.push(format!("{name} (only in B)"));
            continue;
        };
        if old.samples.len() < SAMPLES_MIN || new.samples.len() < SAMPLES_MIN {
            few += 1;
            continue;
        }
        let [by, low, high] = stats::difference(&new.samples, &old.samples, 50);
        if low <= 0.0 && high >= 0.0 {
            continue;
        }
        changed = true;
        let percent = if old.p50 == 0.0 { String::new() } else { format!(" {:+.1} %", by * 100.0 / old.p50) };
        let unit = if new.unit == "us" { "ms" } else { &new.unit };
        let [from, to, low, high] = [old.p50, new.p50, low, high].map(|v| value(v, &new.unit));
        out += &format!("changed: {name}: p50 {from} -> {to} {unit}{percent} [{low}, {high}]\n");
    }
    if !changed {
        out += "nothing changed beyond noise\n";
    }
    if few > 0 {
        alone.push(format!("{few} series of fewer than {SAMPLES_MIN} samples"));
    }
    if !alone.is_empty() {
        out += &format!("not compared: {}\n", alone.join("; "));
    }
    (out, changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn record(add: f64) -> Record {
        let mut record = Record::new(Path::new("/"));
        let samples = |add: f64| (0..200).map(|i| 1000.0 + add + (i * 37 % 100) as f64).collect();
        record.series.push(Series::new(["claim", "dunlin", "loop", "us"], samples(add)));
        record.series.push(Series::new(["result", "dunlin", "loop", "us"], samples(0.0)));
        record.series.push(Series::new(["lost", "dunlin", "loop", "jobs"], vec![add]));
        record
    }

    #[test]
    fn only_what_changed_is_said() {
        let (text, changed) = compare(&record(0.0), &record(0.0));
        assert!(!changed && text.contains("nothing changed beyond noise"), "{text}");
        let (text, changed) = compare(&record(0.0), &record(500.0));
        assert!(changed && text.contains("changed: claim, dunlin, loop: p50 1.05 -> 1.55 ms +47"), "{text}");
        assert!(!text.contains("changed: result"), "{text}");
        assert!(text.contains("not compared: 1 series of fewer than 5 samples"), "{text}");
    }
}
