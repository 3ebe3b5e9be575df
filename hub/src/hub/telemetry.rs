//! What boards say of themselves: kept in memory as it comes, on disk every ten minutes for all together.

use super::{Hub, Member, Turn};
use crate::clock::Now;
use crate::core::timer::Timer;
use crate::event::BoardView;
use crate::store::{StoreError, Writer};
use dunlin_wire::NodeName;
use dunlin_wire::telemetry::{Alarm, Inventory, Sample};

/// How often history goes to disk, in milliseconds. A hub that dies loses that much of it, and nothing else: between two
/// of them an idle hub writes nothing, and flash lasts.
pub(super) const HISTORY_MS: u64 = 600_000;

impl Hub {
    pub(super) fn handle_inventory(&mut self, name: &NodeName, inventory: Inventory) {
        if let Some(member) = self.members.get_mut(name) {
            member.board.handle_inventory(inventory);
        }
    }

    pub(super) fn handle_sample(&mut self, name: &NodeName, sample: &Sample, turn: &Turn<'_>) {
        if let Some(member) = self.members.get_mut(name) {
            let _old = !member.board.handle_sample(sample, turn.now.mono, turn.now.wall);
        }
    }

    pub(super) fn handle_alarm(
        &mut self,
        name: &NodeName,
        alarm: Alarm,
        place: &str,
        age_ms: u64,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        if !member.board.handle_alarm(alarm, place, age_ms, turn.now.mono, turn.now.wall) {
            return Ok(());
        }
        let word = alarm.as_str();
        let detail = if place.is_empty() { word.to_owned() } else { format!("{word}({place})") };
        turn.node_event("node.alarm", name, Some(&detail))
    }

    /// What the board last said, and how old that is.
    pub(super) fn board_of(&self, member: &Member, turn: &Turn<'_>) -> Option<BoardView> {
        let current = member.board.current()?;
        let report_ms = self.report_ms(member);
        Some(BoardView {
            inventory: current.inventory.clone(),
            figures: current.figures.clone(),
            age_ms: turn.now.mono.saturating_sub(current.at),
            report_ms,
            fresh: current.is_fresh(turn.now.mono, report_ms),
        })
    }

    /// Time between its reports, in milliseconds. One rides in a heartbeat, which may be rarer.
    pub(super) fn report_ms(&self, member: &Member) -> u64 {
        let profile = member.node.spec.profile;
        let heartbeat_ms = self.setup.timing.heartbeat_ms(profile);
        profile.report_ms(heartbeat_ms).max(member.heartbeat_ms(&self.setup.timing))
    }

    /// The hub stops in order: what waits for the disk goes there.
    pub fn settle(&mut self, writer: &mut Writer<'_>, now: Now) {
        self.timers.set(Timer::History, now.mono);
        self.step(writer, Vec::new(), now);
        self.catch_up(writer, now);
    }

    /// Rows that are over, of all nodes in one commit; those that are too old go.
    pub(super) fn keep_history(&mut self, turn: &mut Turn<'_>) -> Result<(), StoreError> {
        self.timers.set(Timer::History, turn.now.mono + HISTORY_MS);
        // Tasks need the room more.
        let room = turn.write.view().has_room()?;
        for (name, member) in &mut self.members {
            let history = &mut member.board.history;
            let rows = history.flush(turn.now.wall);
            // Rows name series by their places, so those are kept first or not at all.
            if room && history.has_new_names() {
                turn.write.put_series(name, &history.names())?;
                history.handle_names_kept();
            }
            for (tier, row) in rows {
                if room {
                    turn.write.put_history(name, tier, &row)?;
                }
                turn.write.forget_history(name, tier, turn.now.wall.saturating_sub(tier.keep_ms()))?;
            }
        }
        Ok(())
    }
}
