//! What a board was like: every report of the last hour, in memory only, and rows of a minute and of ten for the disk.

use super::ring::Ring;
use dunlin_wire::telemetry::{Figure, Inventory, Slot};
use serde::{Deserialize, Serialize};

/// How long every report is kept, in memory only, in milliseconds.
pub const RAW_MS: u64 = 3_600_000;
/// Names of series that a node may ever have; the slots of its board, and of those before it.
const SERIES_MAX: usize = 256;

/// How finely history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// A row a minute, for a day.
    Minute,
    /// A row in ten minutes, for a week.
    Ten,
}

impl Tier {
    /// Both.
    pub const ALL: [Tier; 2] = [Tier::Minute, Tier::Ten];

    /// Length of its rows, in milliseconds.
    pub fn step_ms(self) -> u64 {
        match self {
            Tier::Minute => 60_000,
            Tier::Ten => 600_000,
        }
    }

    /// How long they are kept, in milliseconds.
    pub fn keep_ms(self) -> u64 {
        match self {
            Tier::Minute => 24 * 3_600_000,
            Tier::Ten => 7 * 24 * 3_600_000,
        }
    }
}

/// Figures of some time: series by its place among the node's names, mean and maximum.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its beginning, in milliseconds since the epoch; of a report its arrival.
    pub at_ms: u64,
    /// Figures that were known.
    pub points: Vec<Point>,
}

/// One figure of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Place of the series.
    pub series: u16,
    /// Mean; of a counter its newest value.
    pub mean: i64,
    /// Greatest value.
    pub max: i64,
}

/// Figures of a time that is not over.
#[derive(Debug, Default)]
struct Bin {
    at_ms: u64,
    sums: Vec<Sum>,
}

/// A figure of it: the mean so far and of how many reports; of a counter the newest value.
#[derive(Debug)]
struct Sum {
    series: u16,
    n: u32,
    mean: f64,
    max: i64,
}

/// Every report of the last hour, and the rows that are not on disk yet.
#[derive(Debug, Default)]
pub struct History {
    // Names of the series, by their places, each with its end of line: one string, as there are as many as nodes.
    names: String,
    // Bytes of them that are on disk.
    names_kept: usize,
    raw: Ring,
    bins: [Bin; 2],
    // What is over and not on disk yet, small as well: it may wait for minutes.
    done: [Ring; 2],
}

impl History {
    /// Goes on from the names on disk.
    pub fn new(names: &[String]) -> Self {
        let names: String = names.iter().flat_map(|name| [name, "\n"]).collect();
        Self { names_kept: names.len(), names, ..Self::default() }
    }

    /// Names of the series, by their places: `cpu`, `temperature:tj`.
    pub fn names(&self) -> Vec<&str> {
        self.names.split_terminator('\n').collect()
    }

    /// Reports of the last hour, oldest first, and some before.
    pub fn raw(&self) -> Vec<Row> {
        self.raw.rows()
    }

    /// A report came.
    pub fn add(&mut self, inventory: &Inventory, figures: &[Option<Figure>], wall: u64) {
        let mut row = Row { at_ms: wall, points: Vec::with_capacity(figures.len()) };
        let mut counters = Vec::with_capacity(figures.len());
        for (slot, figure) in inventory.slots.iter().zip(figures) {
            if let (Some(figure), Some(series)) = (figure, self.series(slot)) {
                row.points.push(Point { series, mean: figure.mean, max: figure.max() });
                counters.push(slot.is_counter());
            }
        }
        for ((tier, bin), done) in Tier::ALL.into_iter().zip(&mut self.bins).zip(&mut self.done) {
            let at_ms = wall / tier.step_ms() * tier.step_ms();
            if bin.at_ms != at_ms {
                bin.take().iter().for_each(|row| done.push(row));
                bin.at_ms = at_ms;
            }
            bin.add(&row.points, &counters);
        }
        self.raw.push(&row);
    }

    fn series(&mut self, slot: &Slot) -> Option<u16> {
        // A board may call a filesystem anything.
        let key = slot.key().replace('\n', "_");
        let names = self.names();
        let (known, at) = (names.len(), names.iter().position(|name| *name == key));
        if at.is_none() && known < SERIES_MAX {
            self.names += &key;
            self.names.push('\n');
        }
        at.or((known < SERIES_MAX).then_some(known))?.try_into().ok()
    }

    /// Whether there are more names than on disk.
    pub fn has_new_names(&self) -> bool {
        self.names.len() > self.names_kept
    }

    /// The names are on disk, with the transaction that is under way.
    pub fn handle_names_kept(&mut self) {
        self.names_kept = self.names.len();
    }

    /// Rows that are over. They are taken: the caller keeps them, the names before.
    pub fn flush(&mut self, wall: u64) -> Vec<(Tier, Row)> {
        let mut rows = Vec::new();
        for ((tier, bin), done) in Tier::ALL.into_iter().zip(&mut self.bins).zip(&mut self.done) {
            rows.extend(std::mem::take(done).rows().into_iter().map(|row| (tier, row)));
            if bin.at_ms + tier.step_ms() <= wall {
                rows.extend(bin.take().map(|row| (tier, row)));
            }
        }
        rows
    }
}

impl Bin {
    fn add(&mut self, points: &[Point], counters: &[bool]) {
        self.sums.reserve_exact(points.len().saturating_sub(self.sums.len()));
        for (point, is_counter) in points.iter().zip(counters) {
            let mean = point.mean as f64;
            match self.sums.iter_mut().find(|sum| sum.series == point.series) {
                None => self.sums.push(Sum { series: point.series, n: 1, mean, max: point.max }),
                Some(sum) => {
                    sum.n += 1;
                    // It moves by its share of the difference: there is no sum that could grow too large.
                    let share = if *is_counter { 1.0 } else { f64::from(sum.n) };
                    sum.mean += (mean - sum.mean) / share;
                    sum.max = sum.max.max(point.max);
                }
            }
        }
    }

    /// Its row, when there is anything in it. It is empty then.
    fn take(&mut self) -> Option<Row> {
        let sums = std::mem::take(&mut self.sums);
        let points = sums.iter().map(|s| Point { series: s.series, mean: s.mean.round() as i64, max: s.max });
        (!sums.is_empty()).then(|| Row { at_ms: self.at_ms, points: points.collect() })
    }
}

/// Rows as at most one point in each `step` from `from` on: its time, mean and maximum; of a counter the newest value.
pub fn thin(rows: &[Row], series: u16, is_counter: bool, from: u64, step: u64) -> Vec<(u64, f64, i64)> {
    let mut points: Vec<(u64, f64, i64, f64)> = Vec::new();
    for row in rows.iter().filter(|row| row.at_ms >= from) {
        let Some(point) = row.points.iter().find(|p| p.series == series) else { continue };
        let at = from + (row.at_ms - from) / step * step;
        match points.last_mut().filter(|last| last.0 == at) {
            Some((_, mean, max, n)) => {
                *n += 1.0;
                let share = if is_counter { 1.0 } else { *n };
                *mean += (point.mean as f64 - *mean) / share;
                *max = (*max).max(point.max);
            }
            None => points.push((at, point.mean as f64, point.max, 1.0)),
        }
    }
    points.into_iter().map(|(at, mean, max, _)| (at, mean, max)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::telemetry::Board;
    use super::*;
    use dunlin_wire::telemetry::Sample;

    fn board(slots: Vec<Slot>) -> Board {
        let mut board = Board::default();
        board.handle_inventory(Inventory { number: 3, slots, ..Inventory::default() });
        board
    }

    fn sample(seq: u32, base: Option<u32>, figures: &[(u8, Option<i64>)]) -> Sample {
        let figure = |mean: Option<i64>| mean.map(|mean| Figure { mean, over: 1 });
        let figures = figures.iter().map(|(at, mean)| (*at, figure(*mean))).collect();
        Sample { seq, inventory: 3, base, figures }
    }

    #[test]
    fn history_is_thinned_in_time_and_bounded() {
        let mut board = board(vec![Slot::Cpu, Slot::OomKills]);
        let mut rows = Vec::new();
        for n in 0..2000u64 {
            let at = n * 10_000;
            let figures = [(0, Some(n as i64 % 6)), (1, Some(n as i64))];
            assert!(board.handle_sample(&sample(n as u32 + 1, None, &figures), at, at));
            if n % 6 == 0 {
                rows.extend(board.history.flush(at));
            }
        }
        let hour = board.history.raw().iter().filter(|row| row.at_ms + RAW_MS >= 19_990_000).count();
        assert_eq!(hour, 361, "an hour of one in 10 s");
        let of = |tier| rows.iter().filter(|(t, _)| *t == tier).map(|(_, row)| row).collect::<Vec<_>>();
        assert_eq!((of(Tier::Minute).len(), of(Tier::Ten).len()), (333, 33));
        let first = of(Tier::Minute)[0];
        assert_eq!(first.points[0].max, 6, "5, and 1 above");
        assert_eq!(first.points[0].mean, 3, "of 0 to 5");
        assert_eq!(first.points[1].mean, 5, "the newest of a counter");
        assert_eq!(board.history.names(), ["cpu", "oomKills"]);
    }

    #[test]
    fn thinning_gives_a_point_a_step() {
        let row = |at_ms, mean| Row { at_ms, points: vec![Point { series: 1, mean, max: mean + 1 }] };
        let rows = [row(5, 9), row(10, 1), row(19, 2), row(40, 7)];
        assert_eq!(thin(&rows, 1, false, 10, 10), [(10, 1.5, 3), (40, 7.0, 8)]);
        assert_eq!(thin(&rows, 1, true, 10, 10), [(10, 2.0, 3), (40, 7.0, 8)]);
        assert_eq!(thin(&rows, 0, false, 10, 10), []);
    }
}
