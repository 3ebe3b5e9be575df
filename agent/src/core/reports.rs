//! What the hub is told of the board, and when: mean and maximum since the report before, as a change of the newest full
//! sample. A report waits for the heartbeat that carries it; news that cannot wait says so.

use crate::clock::BootMs;
use crate::event::Reading;
use dunlin_wire::limits::DELTA_MAX;
use dunlin_wire::message::Profile;
use dunlin_wire::require::{Facts, Require};
use dunlin_wire::telemetry::{ALARM_MS, Alarm, FULL_EVERY, Figure, Inventory, Sample, Slot};
use std::sync::Arc;

/// How old a reading may be that decides whether a job starts, in milliseconds.
const FRESH_MS: BootMs = 10_000;
/// A temperature this near to its trip point is news, in tenths of a degree.
const NEAR_TRIP: i64 = 50;

/// What goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A full sample, on the control stream.
    Full(Sample),
    /// A delta, wherever there is room.
    Delta(Sample),
}

/// Readings of one slot since the last report.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    n: i64,
    sum: i64,
    max: i64,
    last: i64,
}

/// One kind of alarm.
#[derive(Debug, Clone, Default)]
struct Watched {
    // Whether what lasts is known to the hub, and when it was last taken for news.
    is_told: bool,
    news_at: Option<BootMs>,
    // What is to be told of: where, and when it was seen.
    untold: Option<(String, BootMs)>,
}

/// State of all this.
#[derive(Debug)]
pub struct Reports {
    profile: Profile,
    inventory: Option<Arc<Inventory>>,
    // The number that this connection was told.
    told: Option<u32>,
    sums: Vec<Sum>,
    seq: u32,
    base: Option<(u32, Vec<Option<Figure>>)>,
    since_full: u32,
    reported_at: BootMs,
    // What cannot wait, by kind.
    alarms: [Watched; Alarm::ALL.len()],
    before: Vec<Option<i64>>,
    read_at: BootMs,
    // Whether it was read since the report before.
    is_read: bool,
    urgent: bool,
}

impl Reports {
    /// Of a board with this profile.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            inventory: None,
            told: None,
            sums: Vec::new(),
            seq: 0,
            base: None,
            since_full: 0,
            reported_at: 0,
            alarms: Default::default(),
            before: Vec::new(),
            read_at: 0,
            is_read: false,
            urgent: false,
        }
    }

    /// A new connection knows nothing.
    pub fn handle_connected(&mut self) {
        self.told = None;
        self.base = None;
    }

    /// The board was looked at.
    pub fn handle_reading(&mut self, reading: &Reading, now: BootMs) {
        let slots = &reading.inventory.slots;
        self.sums.resize(slots.len(), Sum::default());
        for (sum, value) in self.sums.iter_mut().zip(&reading.values) {
            if let Some(value) = *value {
                sum.max = if sum.n == 0 { value } else { sum.max.max(value) };
                sum.sum = sum.sum.saturating_add(value);
                sum.n += 1;
                sum.last = value;
            }
        }
        self.look_for_alarms(slots, &reading.values, now);
        self.before.clone_from(&reading.values);
        self.read_at = now;
        self.is_read = true;
        self.inventory = Some(reading.inventory.clone());
    }

    /// Whether the board meets all of `requires`, as it was read a moment ago.
    pub fn meets(&self, requires: &[Require], now: BootMs) -> bool {
        let fresh = self.inventory.as_ref().filter(|_| now.saturating_sub(self.read_at) <= FRESH_MS);
        let figure = |value: &Option<i64>| value.map(|mean| Figure { mean, over: 0 });
        let figures: Vec<Option<Figure>> = self.before.iter().map(figure).collect();
        let facts = fresh.map(|inventory| Facts { inventory, figures: &figures });
        requires.iter().all(|require| require.check(facts).is_ok())
    }

    /// The inventory, when this connection does not know it. A full sample must follow.
    pub fn untold(&mut self) -> Option<Inventory> {
        let inventory = self.inventory.as_ref().filter(|i| self.told != Some(i.number))?;
        self.told = Some(inventory.number);
        self.base = None;
        Some((**inventory).clone())
    }

    /// Alarms that the hub was not told: kind, the board's name of the place, and age in milliseconds.
    pub fn take_alarms(&mut self, now: BootMs) -> Vec<(Alarm, String, u64)> {
        let untold = Alarm::ALL.into_iter().zip(&mut self.alarms);
        untold
            .filter_map(|(alarm, watched)| {
                let (name, at) = watched.untold.take()?;
                Some((alarm, name, now.saturating_sub(at)))
            })
            .collect()
    }

    /// What the board last drew, in mW, and when that was read.
    pub fn power(&self) -> Option<(BootMs, i64)> {
        let slots = &self.inventory.as_ref()?.slots;
        let at = slots.iter().position(|slot| matches!(slot, Slot::Power { .. }))?;
        Some((self.read_at, (*self.before.get(at)?)?))
    }

    /// Whether the hub must hear at once.
    pub fn is_urgent(&self) -> bool {
        self.urgent && self.told.is_some()
    }

    /// The report, when it is due: when now is nearer to that time than the next heartbeat will be.
    pub fn due(&mut self, now: BootMs, every_ms: u64, heartbeat_ms: u64) -> Option<Report> {
        let at = self.reported_at + self.profile.report_ms(heartbeat_ms);
        (now + every_ms / 2 >= at).then(|| self.report(now))?
    }

    /// A report now, if the board was read since the one before: what nobody looked at is not unknown. Full when there is no
    /// base, or it is old, or so much changed that a packet might not hold it.
    pub fn report(&mut self, now: BootMs) -> Option<Report> {
        if !self.is_read {
            return None;
        }
        let (inventory, figures) = (self.told?, self.figures()?);
        let delta = self.base.as_ref().map(|(base, known)| (*base, self.changes(known, &figures)));
        let delta = delta.filter(|(_, changes)| {
            !self.urgent && self.since_full + 1 < FULL_EVERY && changes.len() <= DELTA_MAX
        });
        self.seq += 1;
        self.reported_at = now;
        self.sums.fill(Sum::default());
        self.is_read = false;
        if let Some((base, figures)) = delta {
            self.since_full += 1;
            return Some(Report::Delta(Sample { seq: self.seq, inventory, base: Some(base), figures }));
        }
        self.since_full = 0;
        self.urgent = false;
        let known = (0..).zip(&figures).filter(|(_, f)| f.is_some()).map(|(n, f)| (n, *f)).collect();
        self.base = Some((self.seq, figures));
        Some(Report::Full(Sample { seq: self.seq, inventory, base: None, figures: known }))
    }

    /// As a full report now, whatever was said before; when the board was not read since, as soon as it is.
    pub fn full(&mut self, now: BootMs) -> Option<Sample> {
        self.base = None;
        let report = self.report(now);
        self.urgent = report.is_none();
        match report? {
            Report::Full(sample) | Report::Delta(sample) => Some(sample),
        }
    }

    fn figures(&self) -> Option<Vec<Option<Figure>>> {
        let slots = &self.inventory.as_ref()?.slots;
        let figure = |(slot, sum): (&Slot, &Sum)| {
            (sum.n > 0).then(|| {
                let mean = if slot.is_counter() { sum.last } else { mean(sum) };
                let over = if slot.is_counter() { 0 } else { sum.max.saturating_sub(mean) };
                Figure { mean, over: over.try_into().unwrap_or(u32::MAX) }
            })
        };
        Some(slots.iter().zip(&self.sums).map(figure).collect())
    }

    /// What is otherwise than the base; where bytes cost, only what is so by more than its dead band.
    fn changes(&self, known: &[Option<Figure>], now: &[Option<Figure>]) -> Vec<(u8, Option<Figure>)> {
        let slots = self.inventory.as_ref().map_or(&[][..], |i| &i.slots);
        let is_news = |slot: &Slot, a: &Option<Figure>, b: &Option<Figure>| match (a, b) {
            (Some(a), Some(b)) if self.profile == Profile::Metered => {
                let band = slot.band(a.mean);
                // A peak must stand out further: the greatest of 150 readings is noise.
                a.mean.abs_diff(b.mean) > band || a.max().abs_diff(b.max()) > band.saturating_mul(4)
            }
            (a, b) => a != b,
        };
        let pairs = slots.iter().zip(known).zip(now);
        (0..)
            .zip(pairs)
            .filter(|(_, ((slot, a), b))| is_news(slot, a, b))
            .map(|(n, (_, b))| (n, *b))
            .collect()
    }

    fn look_for_alarms(&mut self, slots: &[Slot], values: &[Option<i64>], now: BootMs) {
        let mut on: [Option<&str>; Alarm::ALL.len()] = Default::default();
        for (n, (slot, value)) in slots.iter().zip(values).enumerate() {
            let Some(value) = *value else { continue };
            let grew = self.before.get(n).copied().flatten().is_some_and(|before| value > before);
            let (alarm, is_on) = match slot {
                Slot::Throttled => (Alarm::Throttled, value > 0),
                Slot::UnderVoltage => (Alarm::UnderVoltage, value > 0),
                // The third counts instants, and climbs in the ordinary work of the fastest power mode.
                Slot::OverCurrent { kind: 1 | 2 } => (Alarm::UnderVoltage, grew),
                Slot::OomKills => (Alarm::OomKill, grew),
                Slot::Filesystem { total_mib, .. } => {
                    (Alarm::DiskLow, value.unsigned_abs().saturating_mul(20) < *total_mib)
                }
                Slot::Temperature { trip: Some(trip), .. } => {
                    (Alarm::Hot, value >= i64::from(*trip) - NEAR_TRIP)
                }
                _ => continue,
            };
            if is_on {
                on[alarm as usize].get_or_insert(slot.words().1);
            }
        }
        for (on, watched) in on.into_iter().zip(&mut self.alarms) {
            let Some(name) = on else {
                watched.is_told = false;
                continue;
            };
            // What begins too early after the one before is news later, if it lasts.
            if !watched.is_told && watched.news_at.is_none_or(|at| now >= at + ALARM_MS) {
                watched.is_told = true;
                watched.news_at = Some(now);
                watched.untold = Some((name.to_owned(), now));
                self.urgent = true;
            }
        }
    }
}

/// Rounded to the nearest.
fn mean(sum: &Sum) -> i64 {
    let half = if sum.sum < 0 { -sum.n / 2 } else { sum.n / 2 };
    sum.sum.saturating_add(half) / sum.n
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(number: u32) -> Arc<Inventory> {
        let temperature = |name: &str| Slot::Temperature { name: name.into(), trip: Some(1000) };
        let slots = vec![Slot::Cpu, temperature("tj"), Slot::OomKills, Slot::Throttled];
        Arc::new(Inventory { number, slots, ..Inventory::default() })
    }

    fn read(reports: &mut Reports, values: [Option<i64>; 4], now: BootMs) {
        reports.handle_reading(
            &Reading { inventory: inventory(1), values: values.to_vec(), jobs: Vec::new() },
            now,
        );
    }

    fn started(profile: Profile) -> Reports {
        let mut reports = Reports::new(profile);
        assert_eq!(reports.untold(), None);
        read(&mut reports, [Some(100), Some(500), Some(0), None], 0);
        assert_eq!(reports.untold().map(|i| i.number), Some(1));
        assert_eq!(reports.untold(), None);
        let full = reports.full(0).unwrap();
        let figure = |mean| Some(Figure { mean, over: 0 });
        assert_eq!(full.figures, [(0, figure(100)), (1, figure(500)), (2, figure(0))], "unknown is not 0");
        reports
    }

    #[test]
    fn a_report_is_mean_and_maximum_against_the_base_and_waits_for_its_time() {
        let mut reports = started(Profile::Wan);
        for (cpu, at) in [(100, 2_000), (300, 4_000), (110, 6_000)] {
            read(&mut reports, [Some(cpu), Some(500), Some(1), Some(0)], at);
        }
        assert_eq!(reports.due(6_000, 25_000, 25_000), None);
        let changed = [
            (0, Some(Figure { mean: 170, over: 130 })),
            (2, Some(Figure { mean: 1, over: 0 })),
            (3, Some(Figure { mean: 0, over: 0 })),
        ];
        // The counter grew: that is told at once, and in full.
        assert!(reports.is_urgent());
        let Some(Report::Full(full)) = reports.due(50_000, 25_000, 25_000) else { panic!("not full") };
        assert!(changed.iter().all(|c| full.figures.contains(c)), "{full:?}");
        assert_eq!(full.figures.len(), 4);
        read(&mut reports, [Some(170), None, Some(1), Some(0)], 52_000);
        let Some(Report::Delta(delta)) = reports.due(110_000, 25_000, 25_000) else { panic!("no delta") };
        assert_eq!(delta.base, Some(full.seq));
        assert_eq!(delta.figures, [(0, Some(Figure { mean: 170, over: 0 })), (1, None)]);
        assert_eq!(
            reports.report(170_000),
            None,
            "nobody looked: its age tells, and nothing is called unknown"
        );
        reports.handle_connected();
        assert!(reports.untold().is_some() && reports.full(171_000).is_none());
        read(&mut reports, [Some(170), None, Some(1), Some(0)], 172_000);
        assert!(reports.is_urgent(), "a new connection waits for no more than the next reading");
        assert_eq!(reports.full(172_000).map(|full| full.figures.len()), Some(3));
        assert!(!reports.is_urgent());
    }

    #[test]
    fn dead_bands_hold_back_what_is_no_news() {
        let mut reports = started(Profile::Metered);
        read(&mut reports, [Some(119), Some(509), Some(0), None], 1_000);
        let Some(Report::Delta(delta)) = reports.report(1_000) else { panic!("no delta") };
        assert_eq!(delta.figures, []);
        read(&mut reports, [Some(121), Some(511), Some(0), None], 2_000);
        let Some(Report::Delta(delta)) = reports.report(2_000) else { panic!("no delta") };
        assert_eq!(delta.figures.len(), 2);
    }

    #[test]
    fn requirements_are_met_by_a_reading_of_now() {
        let mut reports = started(Profile::Wan);
        let requires = ["temperatureHeadroomC >= 10", "not throttled"].map(|text| text.parse().unwrap());
        for (values, at, want) in [
            ([None, Some(900), None, Some(0)], 0, true),
            ([None, Some(901), None, Some(0)], 0, false),
            ([None, Some(900), None, None], 0, false),
            ([None, Some(900), None, Some(0)], FRESH_MS, true),
            ([None, Some(900), None, Some(0)], FRESH_MS + 1, false),
        ] {
            read(&mut reports, values, 0);
            assert_eq!(reports.meets(&requires, at), want, "{values:?} at {at}");
        }
        assert!(Reports::new(Profile::Wan).meets(&[], 0));
        assert!(!Reports::new(Profile::Wan).meets(&requires, 0));
    }

    #[test]
    fn alarms_are_told_at_once_but_not_again_and_again() {
        let mut reports = started(Profile::Metered);
        let calm = [Some(100), Some(500), Some(0), Some(0)];
        let hot = [Some(100), Some(950), Some(0), Some(0)];
        let mut urgent = 0;
        for second in 0..60 {
            let values = if second % 4 < 2 { hot } else { calm };
            read(&mut reports, values, second * 1000);
            if reports.is_urgent() {
                urgent += 1;
                assert_eq!(reports.take_alarms(second * 1000), [(Alarm::Hot, "tj".into(), 0)]);
                assert!(matches!(reports.report(second * 1000), Some(Report::Full(_))));
            }
        }
        assert_eq!(urgent, 2, "once in 30 s");
        assert_eq!(reports.take_alarms(60_000), []);
        read(&mut reports, calm, 60_000);
        read(&mut reports, [Some(100), Some(950), Some(1), Some(1000)], 61_000);
        read(&mut reports, [Some(100), Some(950), Some(1), Some(1000)], 62_000);
        let told = reports.take_alarms(90_000);
        let kinds = told.iter().map(|(alarm, _, age)| (alarm.as_str(), *age)).collect::<Vec<_>>();
        assert_eq!(kinds, [("throttled", 29_000), ("oom_kill", 29_000), ("hot", 28_000)]);
    }

    #[test]
    fn a_new_connection_and_every_sixtieth_report_are_told_in_full() {
        let mut reports = started(Profile::Lan);
        let mut kinds = Vec::new();
        for n in 1..=FULL_EVERY {
            read(&mut reports, [Some(100), Some(500), Some(0), None], 0);
            kinds.push(matches!(reports.report(n.into()), Some(Report::Full(_))));
        }
        assert_eq!(kinds.iter().position(|full| *full), Some(FULL_EVERY as usize - 1));
        reports.handle_connected();
        assert!(!reports.is_urgent());
        assert!(reports.untold().is_some());
        read(&mut reports, [Some(100), Some(500), Some(0), None], 98);
        assert!(matches!(reports.report(99), Some(Report::Full(_))));
    }
}
