//! What the core makes of a job that runs: where its output goes, and what becomes of its slot.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod granted;

use dunlin_agent::core::Core;
use dunlin_agent::event::{Effect, Event, Loaded};
use dunlin_agent::exec::message::{Decision, FromExec};
use dunlin_wire::Fence;
use dunlin_wire::job::{Outcome, Report, Stream};
use dunlin_wire::message::{Profile, ToAgent, ToHub, Upload, Welcome};
use dunlin_wire::report::Told;
use granted::{FENCE, claims, grant, policy, setup};

struct Board(Core);

impl Board {
    /// One whose only slot runs an attempt.
    fn running(profile: Profile) -> Self {
        let mut board = Self(Core::new(setup(profile), Loaded::default(), &mut Vec::new()));
        board.does(policy(), 0);
        let claim = claims(&board.connect(0))[0];
        board.hub(grant(claim, vec![]), 0);
        let decision = Decision::Allow { rule: "r".into(), timeout_ms: 1_000 };
        board.does(Event::FromExec(FromExec::Prepared { fence: FENCE, decision }), 0);
        board
    }

    fn connect(&mut self, now: u64) -> Vec<Effect> {
        let mut out = self.does(Event::Connected { early: false }, now);
        let welcome = Welcome { generation: 2, heard: 1, slots: 1, heartbeat_ms: 300_000 };
        out.extend(self.hub(ToAgent::Welcome(Box::new(welcome)), now));
        out
    }

    fn does(&mut self, event: Event, now: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        self.0.handle(event, now, &mut out);
        out
    }

    fn hub(&mut self, message: ToAgent, now: u64) -> Vec<Effect> {
        self.does(Event::FromHub(message), now)
    }

    /// What becomes of a byte that the job writes.
    fn writes(&mut self, now: u64) -> Vec<Effect> {
        let output = FromExec::Output { fence: FENCE, stream: Stream::Stdout, offset: 5, bytes: vec![1] };
        self.does(Event::FromExec(output), now)
    }

    fn watch(&mut self, stream: Stream, credit: u64, now: u64) -> Vec<Effect> {
        self.hub(ToAgent::Watch { fence: FENCE, stream, credit }, now)
    }
}

fn told(out: &[Effect]) -> Option<Told> {
    out.iter().find_map(|effect| match effect {
        Effect::Send(frame) => match &frame.message {
            ToHub::Told { told, .. } => Some(told.clone()),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn over_a_metered_link_output_is_for_who_follows_it() {
    let stream = Stream::Stdout;
    let tail = [Effect::Tail { fence: FENCE, stream, offset: 5, bytes: vec![1] }];
    let mut board = Board::running(Profile::Metered);
    let first = Told { progress: Some(40), ..Told::default() };
    board.does(Event::FromExec(FromExec::Told { fence: FENCE, told: Box::new(first.clone()) }), 1_000);
    // Nobody follows it: that it goes on is said once a minute, and takes nothing back.
    assert_eq!(board.writes(2_000), []);
    assert_eq!(told(&board.writes(61_000)), Some(first));
    assert_eq!(board.writes(62_000), []);
    // The other stream is another matter.
    board.watch(Stream::Stderr, 9, 63_000);
    assert_eq!(board.writes(63_000), []);
    assert_eq!(board.watch(stream, 9, 64_000), [Effect::Credit { fence: FENCE, stream, credit: 9 }]);
    assert_eq!(board.writes(64_000), tail);
    board.watch(stream, 0, 65_000);
    assert_eq!(board.writes(65_000), []);
    // A new connection knows nothing of the one before.
    board.watch(stream, 9, 66_000);
    assert_eq!(board.writes(66_000), tail);
    board.does(Event::Disconnected, 67_000);
    board.connect(67_000);
    assert_eq!(board.writes(68_000), []);
    // What is none of its attempts is nothing that could be followed.
    assert_eq!(board.hub(ToAgent::Watch { fence: Fence(8), stream, credit: 9 }, 69_000), []);
}

#[test]
fn over_other_links_it_is_a_part_of_the_output_at_once() {
    let stream = Stream::Stdout;
    let mut board = Board::running(Profile::Wan);
    let live = [Effect::Live { fence: FENCE, stream, offset: 5, bytes: vec![1] }];
    assert_eq!(board.writes(1_000), live);
    assert_eq!(board.watch(stream, 9, 1_000), []);
    assert_eq!(board.writes(1_000), live);
}

#[test]
fn a_slot_with_something_stuck_is_offered_again_when_that_is_gone() {
    let mut board = Board::running(Profile::Wan);
    let report = Box::new(Report::without_process(Outcome::Stuck));
    let ended = FromExec::Ended { fence: FENCE, report, kept: Default::default() };
    assert_eq!(claims(&board.does(Event::FromExec(ended), 1_000)), []);
    assert_eq!(claims(&board.does(Event::FromExec(FromExec::Freed { fence: Fence(8) }), 2_000)), []);
    assert_eq!(claims(&board.does(Event::FromExec(FromExec::Freed { fence: FENCE }), 3_000)).len(), 1);
    assert_eq!(claims(&board.does(Event::FromExec(FromExec::Freed { fence: FENCE }), 4_000)), []);
}

#[test]
fn an_outcome_and_the_claim_for_its_slot_are_said_in_one_turn() {
    let mut board = Board::running(Profile::Wan);
    let report = Box::new(Report::without_process(Outcome::Ok));
    let ended = FromExec::Ended { fence: FENCE, report, kept: Default::default() };
    let out = board.does(Event::FromExec(ended), 1_000);
    let is_outcome = |effect: &Effect| matches!(effect, Effect::Send(frame) if matches!(&frame.message, ToHub::Upload(Upload::Outcome { .. })));
    assert!(out.iter().any(is_outcome), "{out:?}");
    assert_eq!(claims(&out).len(), 1);
}
