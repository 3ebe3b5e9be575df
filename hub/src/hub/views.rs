//! What the engine shows of itself.

use super::{Hub, Member, Turn};
use crate::core::health::Health;
use crate::core::schedule::Need;
use crate::core::task::{State, Task};
use crate::core::telemetry::Current;
use crate::event::{Figures, NodeView, Why};
use dunlin_wire::NodeName;

impl Hub {
    pub(super) fn view_of(&self, member: &Member, turn: &Turn<'_>) -> NodeView {
        let heard = member.session.is_some() || !matches!(member.pulse.health(), Health::Unheard);
        let of = |accepted: bool| {
            let held = member.held.iter().filter_map(|f| self.attempts.get(f).map(|h| (f, h)));
            held.filter(|(_, h)| h.accepted == accepted).map(|(f, h)| (h.task.clone(), *f)).collect()
        };
        NodeView {
            node: member.node.clone(),
            health: member.pulse.health(),
            heard: member.pulse.heard(),
            silent_ms: heard.then(|| turn.now.mono.saturating_sub(member.pulse.heard())),
            connected: member.session.is_some(),
            unresponsive: member.unresponsive,
            claimed: of(false),
            running: of(true),
            free: member.session.as_ref().map_or(0, |s| s.claims.len() as u32),
            board: self.board_of(member, turn),
            key_set: member.session.as_ref().and_then(|session| session.keys),
            overlay: member.session.as_ref().and_then(|session| session.overlay),
            alarms: member.board.alarms().clone(),
            last_outcome: member.last_outcome.clone(),
            conn: member.session.as_ref().map(|s| s.conn),
            heartbeat_ms: member.heartbeat_ms(&self.setup.timing),
            rtt_us: None,
            traffic: member.traffic,
        }
    }

    pub(super) fn figures_now(&mut self, turn: &Turn<'_>) -> Figures {
        let mut figures = self.figures.clone();
        figures.queued.retain(|_, n| *n > 0);
        figures.nodes = Health::ALL.into_iter().map(|h| (h, 0)).collect();
        for member in self.members.values().filter(|m| m.node.revoked_ms.is_none()) {
            *figures.nodes.entry(member.pulse.health()).or_default() += 1;
        }
        let boards = self.members.iter().filter(|(_, m)| m.node.revoked_ms.is_none());
        figures.boards = boards.filter_map(|(n, m)| Some((n.clone(), self.board_of(m, turn)?))).collect();
        let alarms = self.members.iter().flat_map(|(n, m)| m.board.alarms().iter().map(move |a| (n, a)));
        figures.alarms = alarms.map(|(n, (alarm, raised))| (n.clone(), *alarm, raised.count)).collect();
        figures.connections = self.conns.len() as u64;
        figures.halted = self.halted;
        figures.store_bytes = turn.write.view().bytes().unwrap_or_default();
        figures
    }

    /// Why a task is not running, most telling reason first.
    pub(super) fn why(&self, task: &Task, turn: &Turn<'_>) -> Why {
        let mut reasons = Vec::new();
        match task.state {
            State::Queued => self.why_queued(task, turn, &mut reasons),
            State::Claimed => {
                let node = task.last().map(|a| a.node.to_string()).unwrap_or_default();
                reasons.push(("claimed", format!("granted to node `{node}`, which has not accepted it yet")));
            }
            State::Running => {
                let node = task.last().map(|a| a.node.to_string()).unwrap_or_default();
                reasons.push(("running", format!("it runs on node `{node}`")));
            }
            State::Done | State::Failed | State::Cancelled => {
                reasons.push(("ended", format!("it is {}", task.state.as_str())));
            }
        }
        Why { state: task.state, reasons }
    }

    fn why_queued(&self, task: &Task, turn: &Turn<'_>, reasons: &mut Vec<(&'static str, String)>) {
        if self.halted {
            reasons.push(("fleet_halted", "the fleet is halted; `dunlin resume` goes on".into()));
        }
        if let Some(at) = task.retry_at_ms.filter(|at| *at > turn.now.wall) {
            let left = at - turn.now.wall;
            reasons
                .push(("retry_wait", format!("waiting {left} ms more before attempt {}", task.attempt + 1)));
        }
        let need = Need::of(task);
        if let Some(target) = &need.target
            && !self.members.contains_key(target)
        {
            return reasons.push(("unknown_node", format!("no node `{target}` is enrolled")));
        }
        let mut fits = false;
        for (name, member) in &self.members {
            if need.target.as_ref().is_some_and(|t| t != name) {
                continue;
            }
            if need.fits(name, &member.tags) {
                fits = true;
                if let Some((code, text)) = self.not_ready(name, member, turn) {
                    reasons.push((code, text));
                } else if let Some(text) = self.unmet(&need, name, member, turn) {
                    reasons.push(("requirement", text));
                }
            } else if need.denied_by.contains(name) {
                reasons.push(("denied", format!("node `{name}` refused it")));
            }
        }
        if !fits {
            let nearest = self.nearest(&need);
            reasons.insert(0, ("no_node_fits", nearest));
        }
        if reasons.is_empty() {
            reasons.push(("next", "it is about to be granted".into()));
        }
        // Fleets are large: the first reasons tell enough.
        reasons.truncate(20);
    }

    fn not_ready(&self, name: &NodeName, member: &Member, turn: &Turn<'_>) -> Option<(&'static str, String)> {
        let silent_s = turn.now.mono.saturating_sub(member.pulse.heard()) / 1000;
        let node = &member.node;
        let of = |code, text: &str| Some((code, format!("node `{name}` {text}")));
        if node.revoked_ms.is_some() {
            return of("revoked", "is revoked");
        }
        if !node.is_worker() {
            return of("viewer", "is a viewer and never works");
        }
        if node.draining {
            return of("draining", "is draining");
        }
        match member.pulse.health() {
            Health::Unheard => return of("unheard", "was not heard since the hub started"),
            Health::Offline => return of("offline", &format!("is offline for {silent_s} s")),
            Health::Degraded => return of("degraded", &format!("is silent for {silent_s} s")),
            Health::Healthy => {}
        }
        if member.session.is_none() {
            return of("disconnected", "has no connection at the moment");
        }
        if member.unresponsive {
            return of("unresponsive", "left a grant unaccepted");
        }
        if member.held.len() as u32 >= node.capacity() {
            return of("full", &format!("is full: it holds {} tasks", member.held.len()));
        }
        if member.session.as_ref().is_some_and(|s| s.claims.is_empty()) {
            return of("no_claim", "has no free slot");
        }
        None
    }

    /// What a ready node's board does not meet, and how old that is.
    fn unmet(&self, need: &Need, name: &NodeName, member: &Member, turn: &Turn<'_>) -> Option<String> {
        let fresh = |board: &&Current| board.is_fresh(turn.now.mono, self.report_ms(member));
        let known = member.board.current();
        let unmet = need.unmet(known.filter(fresh))?;
        let age = match known {
            Some(board) => format!("as of {} s ago", turn.now.mono.saturating_sub(board.at) / 1000),
            None => "it has reported nothing".into(),
        };
        Some(format!("node `{name}`: {unmet} ({age})"))
    }

    fn nearest(&self, need: &Need) -> String {
        let missing = |member: &Member| {
            need.tags
                .iter()
                .filter(|t| !member.tags.iter().any(|h| t.matches(h)))
                .cloned()
                .collect::<Vec<_>>()
        };
        let workers = self.members.iter().filter(|(_, m)| m.node.is_worker());
        match workers.map(|(name, m)| (missing(m), name)).min_by_key(|(lacks, _)| lacks.len()) {
            None => "no worker is enrolled".into(),
            Some((lacks, _)) if lacks.is_empty() => {
                "every node with its tags refused it or is not meant".into()
            }
            Some((lacks, name)) => {
                let lacks: Vec<String> = lacks.iter().map(ToString::to_string).collect();
                format!("no node has all its tags; the nearest, `{name}`, lacks {}", lacks.join(", "))
            }
        }
    }
}
