//! The connection to the hub: Hello, standing claims, heartbeats, and from when a lease counts.

use super::budget::Thrift;
use super::keepalive::Keepalive;
use super::reports::Report;
use super::{BLOCK, Core, Phase};
use crate::clock::BootMs;
use crate::event::{Effect, Write};
use crate::exec::message::ToExec;
use dunlin_wire::job::layer;
use dunlin_wire::message::{Hello, Numbered, Role, ToAgent, ToHub, Unfinished};
use dunlin_wire::version::GENERATION;
use dunlin_wire::{ClaimId, Tag, limits};
use std::collections::VecDeque;

/// Send times remembered. The hub answers each message, so it is never this far behind on a link that lives.
const SENT_MAX: usize = 4096;
/// Silence of a connection that is never taken for its death, in milliseconds.
const SILENCE_MS_MIN: u64 = 3_000;

/// How long a hub may take to answer Hello, in milliseconds. One that died in between never says so to a silent peer.
const WELCOME_MS: u64 = 6_000;

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    seq: u64,
    sent: VecDeque<(u64, BootMs)>,
    heard_at: BootMs,
    // When leases were last renewed, and when anything was last said.
    beat_at: BootMs,
    said_at: BootMs,
    slots: u32,
    early: bool,
    pub(super) welcome: bool,
}

impl Core {
    pub(super) fn handle_connected(&mut self, early: bool, now: BootMs, out: &mut Vec<Effect>) {
        self.forget_prepared(out);
        self.attempts.values_mut().for_each(|attempt| attempt.followed = [false; 2]);
        let connection = self.next_connection;
        self.next_connection += 1;
        if self.next_connection > self.connections_reserved {
            self.connections_reserved = self.next_connection + 63;
            out.push(Effect::Store(Write::Connections(self.connections_reserved)));
        }
        self.link = Some(Link {
            seq: 0,
            sent: VecDeque::new(),
            heard_at: now,
            beat_at: now,
            said_at: now,
            slots: self.setup.slots,
            early,
            welcome: false,
        });
        self.reports.handle_connected();
        let hello = Hello {
            generation: GENERATION,
            fleet: self.setup.fleet,
            node: self.setup.node.clone(),
            role: self.setup.role,
            boot_id: self.setup.boot_id,
            connection,
            version: self.setup.version.clone(),
            capabilities: self.capabilities(),
            slots: self.own_slots(),
            profile: self.setup.profile,
            policy: self.policy.as_ref().map_or([0; 8], |p| p.digest),
        };
        self.say(ToHub::Hello(Box::new(hello)), now, out);
        let mut ids: Vec<ClaimId> = self.claims.iter().copied().take(limits::LIST_MAX).collect();
        ids.extend(self.new_claims(limits::LIST_MAX - ids.len(), out));
        if !ids.is_empty() {
            self.say(ToHub::Claim { ids }, now, out);
        }
        if !early {
            self.say_holding(now, out);
        }
    }

    pub(super) fn handle_confirmed(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        if let Some(link) = self.link.as_mut().filter(|link| link.early) {
            link.early = false;
            self.say_holding(now, out);
            if self.is_welcome() {
                self.say_keys(now, out);
            }
        }
    }

    /// Which keys are trusted here, and which overlay is in force, so that the hub can send others.
    fn say_keys(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        if let Some(version) = self.policy.as_ref().map(|policy| policy.overlay) {
            self.say(ToHub::Overlay { version }, now, out);
        }
        if let Some(version) = self.keys {
            self.say(ToHub::Keys { version }, now, out);
        }
    }

    /// What is on disk, and the claims whose grant is not, or not yet.
    fn say_holding(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        let (mut unfinished, mut claims) = (Vec::new(), Vec::new());
        for attempt in self.attempts.values() {
            match attempt.phase {
                Phase::Blocked(_) | Phase::Preparing => claims.push(attempt.record.claim),
                Phase::Waiting | Phase::Running | Phase::Ended => unfinished.push(Unfinished {
                    task: attempt.record.task.clone(),
                    fence: attempt.record.fence,
                    ended: attempt.phase == Phase::Ended,
                }),
            }
        }
        claims.extend(&self.claims);
        unfinished.truncate(limits::LIST_MAX);
        claims.truncate(limits::LIST_MAX);
        self.say(ToHub::Holding { unfinished, claims }, now, out);
    }

    pub(super) fn handle_disconnected(&mut self, out: &mut Vec<Effect>) {
        self.link = None;
        self.forget_prepared(out);
    }

    pub(super) fn handle_hub(&mut self, message: ToAgent, now: BootMs, out: &mut Vec<Effect>) {
        let Some(link) = self.link.as_mut() else { return };
        link.heard_at = now;
        match message {
            ToAgent::Welcome(welcome) => {
                link.welcome = true;
                link.slots = welcome.slots;
                if welcome.heartbeat_ms != self.heartbeat_ms {
                    self.heartbeat_ms = welcome.heartbeat_ms.max(1);
                    self.keepalive = Keepalive::new(self.setup.profile, self.heartbeat_ms);
                }
                self.say_keys(now, out);
            }
            ToAgent::Keys(bytes) => {
                if bytes.len() <= limits::KEYS_MAX {
                    out.push(Effect::Exec(ToExec::Keys(bytes)));
                }
            }
            ToAgent::Overlay(overlay) => {
                if overlay.is_in_bounds() {
                    out.push(Effect::Exec(ToExec::Overlay(overlay)));
                }
            }
            ToAgent::Verdicts { heard, verdicts } => {
                for (fence, verdict) in verdicts {
                    self.handle_verdict(fence, verdict, heard, now, out);
                }
            }
            ToAgent::Grant(grant) => self.handle_grant(*grant, now, out),
            ToAgent::Renewed { heard, leases } => {
                let Some(at) = self.sent_at(heard) else { return };
                for (fence, lease_ms) in leases {
                    self.extend(fence, at + lease_ms, lease_ms, now, out);
                }
                self.forget_sent_before(heard);
            }
            ToAgent::Ack { fence, .. } => self.handle_ack(fence, now, out),
            ToAgent::Abort { fence, cause } => self.handle_abort(fence, cause, now, out),
            ToAgent::Void { claim } => drop(self.claims.remove(&claim)),
            ToAgent::Missing { fence, have } => {
                if self.attempts.get(&fence).is_some_and(|a| a.phase == Phase::Ended) {
                    out.push(Effect::Upload { fence, have: Some(have) });
                }
            }
            ToAgent::Watch { fence, stream, credit } => self.handle_watch(fence, stream, credit, out),
            ToAgent::Moved => self.keepalive.handle_moved(),
            // Only the joining command asks for this.
            ToAgent::Joined(_) => {}
        }
    }

    /// Says something on the connection, if there is one where it may be said.
    pub(super) fn say(&mut self, message: ToHub, now: BootMs, out: &mut Vec<Effect>) {
        let Some(link) = self.link.as_mut().filter(|link| !link.early || message.may_be_early()) else {
            return;
        };
        link.seq += 1;
        if link.sent.len() == SENT_MAX {
            link.sent.pop_front();
        }
        link.sent.push_back((link.seq, now));
        link.said_at = now;
        out.push(Effect::Send(Numbered { seq: link.seq, message }));
    }

    /// When the message with this number was sent on this connection.
    pub(super) fn sent_at(&self, seq: u64) -> Option<BootMs> {
        let sent = &self.link.as_ref()?.sent;
        let at = sent.binary_search_by_key(&seq, |(n, _)| *n).ok()?;
        sent.get(at).map(|(_, at)| *at)
    }

    fn forget_sent_before(&mut self, seq: u64) {
        if let Some(link) = self.link.as_mut() {
            while link.sent.front().is_some_and(|(n, _)| *n < seq) {
                link.sent.pop_front();
            }
        }
    }

    /// What was set up, and what the executor found a job can be shut in with: `sandbox:mounts` and the like.
    fn capabilities(&self) -> Vec<Tag> {
        let always = layer::NO_NEW_PRIVS | layer::RLIMITS;
        let layers = self.policy.as_ref().map_or(0, |p| p.layers & !always);
        let words = layer::words(layers).filter_map(|word| format!("sandbox:{word}").parse().ok());
        let kinds = self.policy.iter().flat_map(|p| p.kinds.clone());
        self.setup
            .capabilities
            .iter()
            .cloned()
            .chain(kinds)
            .chain(words)
            .take(limits::CAPABILITIES_MAX)
            .collect()
    }

    fn own_slots(&self) -> u32 {
        self.policy.as_ref().map_or(self.setup.slots, |p| p.jobs.min(self.setup.slots))
    }

    /// One standing claim per free slot.
    pub(super) fn claim(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        if self.is_welcome() {
            let ids = self.new_claims(limits::LIST_MAX, out);
            if !ids.is_empty() {
                self.say(ToHub::Claim { ids }, now, out);
            }
        }
    }

    /// New claims for the slots that have none. Their numbers are on disk before anybody hears of them.
    fn new_claims(&mut self, most: usize, out: &mut Vec<Effect>) -> Vec<ClaimId> {
        // What the board's policy allows is not known before the executor said it.
        let Some(link) = self.link.as_ref().filter(|_| self.policy.is_some()) else { return Vec::new() };
        if self.stop_at.is_some() || self.setup.role == Role::Viewer {
            return Vec::new();
        }
        let slots = self.own_slots().min(link.slots).saturating_sub(self.stuck.len() as u32) as usize;
        let free = slots.saturating_sub(self.live().count() + self.claims.len());
        let ids: Vec<ClaimId> = (self.next_claim..).map(ClaimId).take(free.min(most)).collect();
        self.next_claim += ids.len() as u64;
        self.claims.extend(&ids);
        if self.next_claim > self.claims_reserved {
            self.claims_reserved = self.next_claim + BLOCK;
            out.push(Effect::Store(Write::Claims(self.claims_reserved)));
        }
        ids
    }

    pub(super) fn handle_heard(&mut self, now: BootMs) {
        if let Some(link) = self.link.as_mut() {
            link.heard_at = now;
        }
    }

    pub(super) fn handle_asked(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        let Some(link) = self.link.as_mut().filter(|link| link.welcome) else { return };
        link.heard_at = now;
        link.said_at = now;
        out.push(Effect::Beat { every_ms: self.announced_ms(), sample: None });
    }

    /// Longest silence, in milliseconds.
    fn every_ms(&self) -> u64 {
        if self.thrift > Thrift::None { self.keepalive.longest_ms() } else { self.keepalive.every_ms() }
    }

    /// What a beat says of it: nothing, when it is what the hub expects anyway.
    fn announced_ms(&self) -> u64 {
        Some(self.every_ms()).filter(|every| *every > self.heartbeat_ms).unwrap_or(0)
    }

    /// How often leases are renewed: at a third of the shortest. `None` when there are none.
    fn renew_ms(&self) -> Option<u64> {
        let live = self.attempts.values().filter(|a| matches!(a.phase, Phase::Waiting | Phase::Running));
        live.map(|a| (a.lease_ms / 3).max(1)).min()
    }

    fn silence_ms(&self, link: &Link) -> u64 {
        if !link.welcome {
            return WELCOME_MS;
        }
        let every = self.renew_ms().unwrap_or(u64::MAX).min(self.every_ms());
        (every * 5 / 2).max(SILENCE_MS_MIN)
    }

    pub(super) fn next_beat(&self) -> Option<BootMs> {
        let link = self.link.as_ref()?;
        let dead = link.heard_at + self.silence_ms(link);
        if !link.welcome {
            return Some(dead);
        }
        let renew = self.renew_ms().map(|every| link.beat_at + every);
        Some(dead.min(link.said_at + self.every_ms()).min(renew.unwrap_or(BootMs::MAX)))
    }

    pub(super) fn beat_when_due(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        let Some(link) = self.link.as_ref() else { return };
        if now >= link.heard_at + self.silence_ms(link) {
            out.push(Effect::Reconnect);
            return self.handle_disconnected(out);
        }
        if !link.welcome {
            return;
        }
        if self.renew_ms().is_some_and(|every| now >= link.beat_at + every) {
            return self.renew(now, out);
        }
        if now >= link.said_at + self.every_ms() {
            self.keepalive.handle_beat(now - link.said_at.max(link.heard_at));
            let every_ms = self.announced_ms();
            let sample = match self.due_report(now) {
                // It is a sign of life by itself.
                Some(Report::Full(sample)) => return self.say(ToHub::Sample(Box::new(sample)), now, out),
                Some(Report::Delta(sample)) => Some(Box::new(sample)),
                None => None,
            };
            out.push(Effect::Beat { every_ms, sample });
            if let Some(link) = self.link.as_mut() {
                link.said_at = now;
            }
        }
    }

    fn renew(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        let live = self.attempts.iter().filter(|(_, a)| matches!(a.phase, Phase::Waiting | Phase::Running));
        let fences = live.map(|(fence, _)| *fence).take(limits::LIST_MAX).collect();
        let report = self.due_report(now);
        let sample = report.map(|(Report::Full(sample) | Report::Delta(sample))| Box::new(sample));
        if let Some(link) = self.link.as_mut() {
            link.beat_at = now;
        }
        self.say(ToHub::Heartbeat { fences, sample }, now, out);
    }

    /// The report that a heartbeat carries; none while bytes are saved.
    fn due_report(&mut self, now: BootMs) -> Option<Report> {
        let every_ms = self.every_ms();
        (self.thrift == Thrift::None).then(|| self.reports.due(now, every_ms, self.heartbeat_ms))?
    }

    /// What cannot wait for a heartbeat: what the board is, on a new connection and when that changed, and alarms. Never
    /// before a claim.
    pub(super) fn report(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        let may_say = self.link.as_ref().is_some_and(|link| link.welcome && !link.early);
        if !may_say || self.thrift > Thrift::None {
            return;
        }
        let inventory = self.reports.untold();
        if inventory.is_none() && !self.reports.is_urgent() {
            return;
        }
        if let Some(inventory) = inventory {
            self.say(ToHub::Inventory(Box::new(inventory)), now, out);
        }
        for (alarm, name, age_ms) in self.reports.take_alarms(now) {
            self.say(ToHub::Alarm { alarm, name, age_ms }, now, out);
        }
        if let Some(sample) = self.reports.full(now) {
            self.say(ToHub::Sample(Box::new(sample)), now, out);
        }
    }
}
