//! What a board last said of itself, and which alarms it raised. Pure: times come in as values.

use super::history::History;
use dunlin_wire::limits::DELTA_MAX;
use dunlin_wire::require::Facts;
use dunlin_wire::telemetry::{ALARM_MS, Alarm, Figure, Inventory, Sample};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reports that may be missed until figures are taken for unknown.
pub const MISSED_MAX: u64 = 3;

/// The figures of a board, as of one report.
#[derive(Debug, Clone)]
pub struct Current {
    /// What they are about.
    pub inventory: Arc<Inventory>,
    /// One for each slot.
    pub figures: Arc<[Option<Figure>]>,
    /// When they came, in monotonic milliseconds.
    pub at: u64,
}

/// What is known of a board.
#[derive(Debug, Default)]
pub struct Board {
    inventory: Option<Arc<Inventory>>,
    newest: u32,
    base: Option<(u32, Arc<[Option<Figure>]>)>,
    current: Option<Current>,
    alarms: BTreeMap<Alarm, Raised>,
    /// What it was like before.
    pub history: History,
}

/// An alarm of one kind, since the hub's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// How often.
    pub count: u64,
    /// When the newest was seen, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Where: a sensor, a filesystem; else empty.
    pub name: String,
    heard: u64,
}

impl Board {
    /// A connection begins, or the board is another now. Whatever was said of the one before is about another one.
    pub fn handle_inventory(&mut self, mut inventory: Inventory) {
        inventory.slots.shrink_to_fit();
        self.inventory = Some(Arc::new(inventory));
        self.newest = 0;
        self.base = None;
    }

    /// A report. `false` when it is old, or about something that did not come.
    pub fn handle_sample(&mut self, sample: &Sample, mono: u64, wall: u64) -> bool {
        let Some(inventory) = self.inventory.clone().filter(|i| i.number == sample.inventory) else {
            return false;
        };
        let base = match sample.base {
            None => None,
            Some(seq) => match &self.base {
                Some((known, figures)) if *known == seq && sample.figures.len() <= DELTA_MAX => Some(figures),
                _ => return false,
            },
        };
        if sample.seq <= self.newest {
            return false;
        }
        self.newest = sample.seq;
        let figures: Arc<[Option<Figure>]> = sample.onto(base.map(|b| &**b), inventory.slots.len()).into();
        if sample.base.is_none() {
            self.base = Some((sample.seq, figures.clone()));
        }
        self.history.add(&inventory, &figures, wall);
        self.current = Some(Current { inventory, figures, at: mono });
        true
    }

    /// An alarm, seen `age_ms` ago. `false` when it comes too soon after the one before of its kind: each costs a commit,
    /// and a board must not be able to fill the disk.
    pub fn handle_alarm(&mut self, alarm: Alarm, name: &str, age_ms: u64, mono: u64, wall: u64) -> bool {
        let before = self.alarms.get(&alarm);
        // Delays on the way are no fault of the board.
        if before.is_some_and(|before| mono < before.heard.saturating_add(ALARM_MS / 2)) {
            return false;
        }
        let count = before.map_or(0, |before| before.count) + 1;
        let at_ms = wall.saturating_sub(age_ms);
        self.alarms.insert(alarm, Raised { count, at_ms, name: name.to_owned(), heard: mono });
        true
    }

    /// The newest alarm of each kind.
    pub fn alarms(&self) -> &BTreeMap<Alarm, Raised> {
        &self.alarms
    }

    /// The newest figures, however old.
    pub fn current(&self) -> Option<&Current> {
        self.current.as_ref()
    }
}

impl Current {
    /// What requirements are decided on.
    pub fn facts(&self) -> Facts<'_> {
        Facts { inventory: &self.inventory, figures: &self.figures }
    }

    /// Until when they tell anything, in monotonic milliseconds.
    pub fn until(&self, report_ms: u64) -> u64 {
        self.at.saturating_add(report_ms.saturating_mul(MISSED_MAX))
    }

    /// Whether they still tell anything, when reports come every `report_ms`.
    pub fn is_fresh(&self, mono: u64, report_ms: u64) -> bool {
        mono <= self.until(report_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::telemetry::Slot;

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

    fn means(board: &Board) -> Vec<Option<i64>> {
        board.current().unwrap().figures.iter().map(|f| f.map(|f| f.mean)).collect()
    }

    #[test]
    fn old_foreign_and_repeated_reports_change_nothing() {
        let mut board = board(vec![Slot::Cpu, Slot::Load]);
        assert!(!board.handle_sample(&sample(1, Some(0), &[(0, Some(9))]), 0, 0), "no base yet");
        assert!(board.current().is_none());
        assert!(board.handle_sample(&sample(2, None, &[(0, Some(5))]), 10, 10));
        assert_eq!(means(&board), [Some(5), None]);
        let delta = sample(4, Some(2), &[(1, Some(7))]);
        assert!(board.handle_sample(&delta, 20, 20));
        assert!(!board.handle_sample(&delta, 30, 30), "twice");
        assert!(!board.handle_sample(&sample(3, Some(2), &[(0, Some(1))]), 30, 30), "overtaken");
        assert!(!board.handle_sample(&sample(5, Some(1), &[(0, Some(1))]), 30, 30), "another base");
        assert!(!board.handle_sample(&Sample { inventory: 2, ..sample(6, None, &[]) }, 30, 30));
        assert_eq!(means(&board), [Some(5), Some(7)]);
        assert!(board.handle_sample(&sample(7, Some(2), &[(0, None)]), 40, 40), "5 and 6 were lost");
        assert_eq!(means(&board), [None, None]);
        let current = board.current().unwrap();
        assert!(current.is_fresh(40 + 300, 100) && !current.is_fresh(41 + 300, 100));
    }

    #[test]
    fn alarms_of_a_kind_are_counted_and_have_a_rate() {
        let mut board = Board::default();
        assert!(board.handle_alarm(Alarm::Hot, "tj", 500, 10_000, 90_000));
        assert!(!board.handle_alarm(Alarm::Hot, "tj", 0, 24_999, 90_000));
        assert!(board.handle_alarm(Alarm::OomKill, "", 0, 24_999, 90_000));
        assert!(board.handle_alarm(Alarm::Hot, "cpu", 0, 25_000, 91_000));
        let hot = &board.alarms()[&Alarm::Hot];
        assert_eq!((hot.count, hot.at_ms, hot.name.as_str()), (2, 91_000, "cpu"));
    }
}
