//! A table for people, and the same for a record.

use crate::record::{Goal, Record, Series};
use crate::stats::Sample;

/// What the numbers of a report count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Microseconds, shown as milliseconds.
    Micros,
    /// Bytes.
    Bytes,
}

/// One thing measured.
pub(super) struct Row {
    name: String,
    sample: Sample,
    rtt_us: Option<u64>,
    against: Vec<(String, Goal)>,
}

/// What one measurement found.
pub(super) struct Report {
    what: String,
    unit: Unit,
    load: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// A report; the machine's load is read now.
    pub(super) fn new(what: String, unit: Unit) -> Self {
        Self { what, unit, load: load(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row. With `rtt_us` its median is shown in round trips; it stands beside the rows `against`, each with what was
    /// promised of the medians. Those that are not there are left out.
    pub(super) fn row(&mut self, name: &str, sample: Sample, rtt_us: Option<u64>, against: &[(&str, Goal)]) {
        let against = against.iter().map(|(name, goal)| ((*name).to_owned(), *goal)).collect();
        self.rows.push(Row { name: name.into(), sample, rtt_us, against });
    }

    /// Adds a line below the table.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// What a row stands beside, in words.
    fn beside(&self, row: &Row) -> String {
        let words = row.against.iter().filter_map(|(name, goal)| {
            let other = self.rows.iter().find(|other| &other.name == name)?;
            let [p50, max] = [50, 100].map(|percent| {
                row.sample.percentile(percent) as f64 / other.sample.percentile(percent).max(1) as f64
            });
            let goal = match goal.judge(p50) {
                (Some(goal), Some(true)) => format!(" (goal {goal}: met)"),
                (Some(goal), _) => format!(" (goal {goal}: NOT met)"),
                (None, _) => String::new(),
            };
            Some(format!("{p50:.2} {max:.2} {name}{goal}"))
        });
        words.collect::<Vec<_>>().join("; ")
    }

    fn rtts(&self, row: &Row) -> Option<f64> {
        Some(row.sample.percentile(50) as f64 / row.rtt_us? as f64)
    }

    /// Prints it.
    pub(super) fn print(&self) {
        let (unit, by) = match self.unit {
            Unit::Micros => ("ms", 1000.0),
            Unit::Bytes => ("bytes", 1.0),
        };
        println!("\n{} in {unit} (load {} before, {} after)", self.what, self.load, load());
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
        println!(
            "{:width$} {:>4} {:>10} {:>10} {:>10} {:>6}  p50 and max beside",
            "", "n", "p50", "p90", "max", "RTT"
        );
        for row in &self.rows {
            let [p50, p90, max] = [50, 90, 100].map(|p| row.sample.percentile(p) as f64 / by);
            let rtts = self.rtts(row).map_or(String::new(), |r| format!("{r:.2}"));
            let line = format!(
                "{:width$} {:>4} {p50:>10.1} {p90:>10.1} {max:>10.1} {rtts:>6}  {}",
                row.name,
                row.sample.count(),
                self.beside(row)
            );
            println!("{}", line.trim_end());
        }
        for note in &self.notes {
            println!("{note}");
        }
    }

    /// Adds the same to a record, every value with it: the measurement is a series' name, its rows are the systems.
    pub(super) fn add(&self, record: &mut Record, link: &str) {
        let unit = if self.unit == Unit::Micros { "us" } else { "bytes" };
        let values = |row: &Row| row.sample.values().iter().map(|v| *v as f64).collect::<Vec<_>>();
        for row in &self.rows {
            let settings = row.rtt_us.map_or(String::new(), |us| format!("round trip {us} us"));
            let series = Series::new([&self.what, &row.name, link, unit], values(row));
            record.series.push(series.with(true, &settings));
        }
        for row in &self.rows {
            for (against, goal) in &row.against {
                record.ratio((&self.what, link), [&row.name, against], 50, *goal);
                record.ratio((&self.what, link), [&row.name, against], 100, Goal::None);
            }
        }
        record.notes.extend(self.notes.iter().cloned());
    }
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_name_what_they_stand_beside() {
        let sample = |values: &[u64]| {
            let mut sample = Sample::default();
            values.iter().for_each(|v| sample.push(*v));
            sample
        };
        let mut report = Report::new("x".into(), Unit::Micros);
        report.row(
            "ours",
            sample(&[100, 200, 600]),
            Some(100),
            &[("theirs", Goal::Most(0.6)), ("nobody", Goal::None)],
        );
        report.row("theirs", sample(&[400, 400, 1200]), None, &[]);
        assert_eq!(report.beside(&report.rows[0]), "0.50 0.50 theirs (goal 0.6: met)");
        assert_eq!(report.rows.iter().map(|row| report.rtts(row)).collect::<Vec<_>>(), [Some(2.0), None]);
        let mut record = Record::new(std::path::Path::new("/"));
        report.add(&mut record, "lte");
        let [ours, theirs] = &record.series[..] else { panic!("{record:?}") };
        assert_eq!(
            (ours.name.as_str(), ours.system.as_str(), ours.p50, theirs.max),
            ("x", "ours", 200.0, 1200.0)
        );
        let ratios: Vec<_> =
            record.ratios.iter().map(|r| (r.at.as_str(), r.against.as_str(), r.value, r.met)).collect();
        assert_eq!(ratios, [("p50", "theirs", 0.5, Some(true)), ("max", "theirs", 0.5, None)]);
    }
}
