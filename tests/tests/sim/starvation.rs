//! Lanes: low work waits behind urgent work for a bounded time only.

use super::board::Board;
use super::hub::{Running, answered, ask, enrol, store};
use super::model::Model;
use dunlin_agent::event::{Effect as AgentEffect, Event as AgentEvent};
use dunlin_hub::clock::Now;
use dunlin_hub::core::task::{State, TaskSpec};
use dunlin_hub::core::timing::Timing;
use dunlin_hub::event::{ConnId, Effect, Event, Request};
use dunlin_wire::job::{Delivery, Job, OnDisconnect, Shell, Stream};
use dunlin_wire::message::{ToAgent, Upload};

/// One node with one slot, urgent tasks without end, and one low task: it gets its turn when its waiting is worth as
/// much as their priority.
pub fn run() {
    let (_dir, store) = store();
    let timing = Timing::default();
    let mut now = Now { mono: 1_000, wall: 1_800_000_000_000 };
    let mut hub = Running::open(&store, timing.clone(), now);
    let key = enrol(&mut hub, 0, 1, now);
    let submit = |hub: &mut Running<'_>, id: String, priority: i16, now: Now| {
        let spec = TaskSpec {
            job: Job::Shell(Shell { argv: vec!["/x".into()], cwd: None, env: vec![] }),
            target: None,
            tags: vec![],
            priority,
            attempts_max: 1,
            timeout_ms: None,
            on_disconnect: OnDisconnect::Fence,
            delivery: Delivery::AtLeastOnce,
            ttl_ms: None,
            complete_by: None,
            offline_ms: None,
            requires: vec![],
        };
        ask(hub, Request::Submit { id: Some(id.parse().unwrap()), spec: Box::new(spec) }, now);
    };
    submit(&mut hub, "low".into(), -10, now);
    submit(&mut hub, "u0".into(), 100, now);
    let mut board = Board::new(0, key, "b0".parse().unwrap(), hub.hub.fleet());
    let mut queue = board.start(now.mono);
    let conn = ConnId(1);
    answered(hub.step(vec![Event::Opened { conn, key, early: false }], now));
    board.inbox.push((0, AgentEvent::Connected { early: false }));
    let mut model = Model::default();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut order: Vec<String> = Vec::new();
    let began = now.mono;
    while !order.contains(&"low".to_owned()) {
        assert!(now.mono < began + 115 * timing.ageing_ms, "low waits for {} s", (now.mono - began) / 1000);
        now.mono += 200;
        now.wall += 200;
        hub.catch_up();
        // One urgent task always waits, so that the low one never finds the queue empty.
        if store.read(|view| view.count_in(State::Queued)).unwrap() < 2 {
            submit(&mut hub, format!("u{}", now.mono), 100, now);
        }
        let core = board.core.as_mut().unwrap();
        core.handle_timeout(now.mono, &mut queue);
        for (_, event) in std::mem::take(&mut board.inbox) {
            core.handle(event, now.mono, &mut queue);
        }
        let mut events = Vec::new();
        for effect in std::mem::take(&mut queue) {
            match effect {
                AgentEffect::Store(write) => board.commit(&write),
                AgentEffect::Exec(message) => board.exec(message, now.mono, &mut rng, &mut model),
                AgentEffect::Send(frame) => events.push(Event::Control { conn, frame }),
                AgentEffect::Upload { fence, .. } => {
                    let record = board.disk.attempts[&fence].clone();
                    let kept = board.kept.get(&fence).cloned().unwrap_or_default();
                    for stream in Stream::BOTH {
                        let bytes = kept[stream as usize].clone();
                        let frame = Upload::Chunk { fence, stream, offset: 0, bytes };
                        events.push(Event::Upload { conn, frame });
                    }
                    let frame = Upload::Outcome { task: record.task, fence, report: record.report.unwrap() };
                    events.push(Event::Upload { conn, frame });
                }
                _ => {}
            }
        }
        for effect in hub.step(events, now) {
            if let Effect::Send(_, message) = effect {
                if let ToAgent::Grant(grant) = &message {
                    order.push(grant.task.to_string());
                }
                board.inbox.push((now.mono, AgentEvent::FromHub(message)));
            }
        }
        board.end_processes(now.mono, &mut rng, &mut model);
    }
    assert!(order.len() > 100 && order[0] == "u0", "urgent work goes first: {order:?}");
}
