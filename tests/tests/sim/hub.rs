//! A hub without a process: its engine, over its real store.

use dunlin_hub::clock::Now;
use dunlin_hub::core::node::NodeSpec;
use dunlin_hub::core::timing::Timing;
use dunlin_hub::event::{Answer, ConnId, Effect, Event, Request};
use dunlin_hub::hub::{Hub, Setup};
use dunlin_hub::store::{Store, StoreOptions, Writer};
use dunlin_wire::Key;
use dunlin_wire::message::{Join, Numbered, Profile, Role, ToAgent, ToHub};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::version::GENERATION;
use ring::signature::Ed25519KeyPair;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A hub and what it writes with.
pub(super) struct Running<'s> {
    pub(super) hub: Hub,
    pub(super) writer: Writer<'s>,
}

impl<'s> Running<'s> {
    /// As a process that starts: what the redo log holds is applied.
    pub(super) fn open(store: &'s Store, timing: Timing, now: Now) -> Self {
        let mut writer = store.writer().unwrap();
        let hub = Hub::open(&mut writer, setup(timing), now).unwrap();
        Self { hub, writer }
    }

    pub(super) fn step(&mut self, events: Vec<Event>, now: Now) -> Vec<Effect> {
        self.hub.step(&mut self.writer, events, now)
    }

    /// The engine commits, and readers see it.
    pub(super) fn catch_up(&mut self) {
        self.writer.catch_up().unwrap();
    }
}

/// An empty store, in a directory that goes with it.
pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions { bytes_max: 1 << 30, sync: false }).unwrap();
    (dir, store)
}

pub(super) fn setup(timing: Timing) -> Setup {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    Setup {
        timing,
        queue_max: 1_000_000,
        keep_tasks: 1_000_000,
        addrs: vec!["127.0.0.1:1".into()],
        key: Arc::new(key),
        seed: 5,
    }
}

/// Asks a hub that has nothing else to do, and gives its answer.
pub(super) fn ask(hub: &mut Running<'_>, request: Request, now: Now) -> Answer {
    let (reply, mut answer) = oneshot::channel();
    let effects = hub.step(vec![Event::Api { actor: "sim".into(), request, reply }], now);
    answered(effects);
    answer.try_recv().unwrap().unwrap()
}

pub(super) fn answered(effects: Vec<Effect>) {
    for effect in effects {
        if let Effect::Reply(reply, answer) = effect {
            let _ = reply.send(answer);
        }
    }
}

/// Enrols a node over a connection of its own.
pub(super) fn enrol(hub: &mut Running<'_>, at: usize, slots: u32, now: Now) -> Key {
    let node = NodeSpec {
        name: format!("b{at}").parse().unwrap(),
        tags: vec![],
        slots,
        profile: Profile::Lan,
        role: Role::Worker,
        region: None,
    };
    let Answer::Ticket { ticket, .. } = ask(hub, Request::Invite { node, ttl_ms: 1000 }, now) else {
        panic!()
    };
    let ticket = Ticket::parse(&ticket).unwrap();
    let key = Key([at as u8 + 1; 32]);
    let conn = ConnId(1_000_000 + at as u64);
    let join = Join { generation: GENERATION, invite: ticket.invite, secret: ticket.secret };
    let frame = Numbered { seq: 1, message: ToHub::Join(Box::new(join)) };
    let effects =
        hub.step(vec![Event::Opened { conn, key, early: false }, Event::Control { conn, frame }], now);
    assert!(effects.iter().any(|e| matches!(e, Effect::Send(_, ToAgent::Joined(_)))), "{effects:?}");
    hub.step(vec![Event::Closed { conn, key, by: None, traffic: Default::default() }], now);
    key
}
