//! The bytes of every message. A change here is a change of the protocol: it needs a new variant or field at the end and
//! a line in `wire/src/version.rs`, never another meaning of old bytes.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_wire::actuation::{Declared, Source, Tier};
use dunlin_wire::datagram::{FromAgent, FromHub};
use dunlin_wire::envelope::{self, Audience, Envelope, Payload};
use dunlin_wire::job::*;
use dunlin_wire::keys::{Cert, KeySet, Kind, Scope};
use dunlin_wire::message::*;
use dunlin_wire::overlay::Overlay;
use dunlin_wire::seal::{Context, Sealed};
use dunlin_wire::telemetry::{Alarm, Figure, Inventory, Sample, Slot};
use dunlin_wire::{ClaimId, Fence, FleetId, Key, TaskId};
use ring::signature::{Ed25519KeyPair, KeyPair};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn check<T>(what: &str, message: &T, golden: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = postcard::to_stdvec(message).unwrap();
    assert_eq!(hex(&bytes), golden, "{what} is written otherwise than before");
    assert_eq!(&postcard::from_bytes::<T>(&bytes).unwrap(), message, "{what} reads back");
}

fn task() -> TaskId {
    "t1".parse().unwrap()
}

fn report() -> Box<Report> {
    Box::new(Report {
        outcome: Outcome::Exit { code: 3 },
        wait_status: Some(768),
        rule: Some("r".into()),
        policy: [8; 8],
        timeout_ms: Some(20_000),
        sandbox: 5,
        usage: Usage {
            duration_ms: 1,
            user_ms: 2,
            system_ms: 3,
            max_rss_kib: 4,
            leftovers: 5,
            peak_memory_kib: Some(6),
        },
        streams: [
            StreamEnd { end: 9, truncated: 2, head: 3, digest: [7; 8] },
            StreamEnd { end: 0, truncated: 0, head: 0, digest: [0; 8] },
        ],
        peaks: Peaks {
            gpu_permille: Some(630),
            memory_used_mib: None,
            gpu_memory_mib: Some(1),
            energy_mwh: Some(2),
        },
        told: Told { progress: Some(40), tokens: Some(150), cost: None, result: Some("{}".into()) },
    })
}

fn inventory() -> Inventory {
    let name = |text: &str| text.to_owned();
    let slots = vec![
        Slot::Cpu,
        Slot::Load,
        Slot::MemoryAvailable,
        Slot::SwapUsed,
        Slot::Gpu,
        Slot::GpuClock,
        Slot::GpuMemoryUsed,
        Slot::Power { measured: true },
        Slot::Rail { name: name("r") },
        Slot::Temperature { name: name("t"), trip: Some(1050) },
        Slot::Fan,
        Slot::Throttled,
        Slot::UnderVoltage,
        Slot::OverCurrent { kind: 2 },
        Slot::OomKills,
        Slot::CpuWaiting,
        Slot::MemoryWaiting,
        Slot::MemoryStalled,
        Slot::IoWaiting,
        Slot::IoStalled,
        Slot::DiskRead,
        Slot::DiskWritten,
        Slot::Filesystem { name: name("/"), total_mib: 300 },
        Slot::Wear { name: name("d") },
        Slot::FurtherGpu { name: name("1") },
        Slot::GpuMemoryFree { name: name("1"), total_mib: 300 },
        Slot::NetworkReceived { name: name("e") },
        Slot::NetworkSent { name: name("e") },
    ];
    Inventory {
        number: 1,
        family: name("f"),
        model: Some(name("m")),
        l4t: None,
        kernel: Some(name("k")),
        power_mode: Some(name("p")),
        clocks_pinned: Some(false),
        cpus: Some(6),
        memory_total_mib: Some(7620),
        swap_total_mib: Some(0),
        gpu: Some(name("g")),
        gpu_memory_shared: Some(true),
        uptime_s: Some(9),
        slots,
    }
}

fn delta() -> Sample {
    let figures =
        vec![(0, Some(Figure { mean: 120, over: 30 })), (8, Some(Figure { mean: -392, over: 0 })), (9, None)];
    Sample { seq: 300, inventory: 1, base: Some(299), figures }
}

#[test]
fn messages_to_the_hub() {
    let hello = Hello {
        generation: 1,
        fleet: FleetId([2; 16]),
        node: "n1".parse().unwrap(),
        role: Role::Viewer,
        boot_id: [3; 16],
        connection: 300,
        version: "0.1.0".into(),
        capabilities: vec!["a:b".parse().unwrap()],
        slots: 2,
        profile: Profile::Metered,
        policy: [4; 8],
    };
    let holding = ToHub::Holding {
        unfinished: vec![Unfinished { task: task(), fence: Fence(5), ended: true }],
        claims: vec![ClaimId(6)],
    };
    let join = Join { generation: 1, invite: [1; 16], secret: [2; 16] };
    let fence = Fence(70_000);
    let chunk = Upload::Chunk { fence, stream: Stream::Stderr, offset: 9, bytes: vec![1, 2] };
    let outcome = Upload::Outcome { task: task(), fence, report: report() };
    let numbered = |message| Numbered { seq: 129, message };
    for (what, message, golden) in [
        ("Hello", ToHub::Hello(Box::new(hello)), GOLDEN[0]),
        ("Join", ToHub::Join(Box::new(join)), GOLDEN[1]),
        ("Claim", ToHub::Claim { ids: vec![ClaimId(1), ClaimId(300)] }, GOLDEN[2]),
        ("Accepted", ToHub::Accepted { fence }, GOLDEN[3]),
        ("Started", ToHub::Started { fence }, GOLDEN[4]),
        ("Heartbeat", ToHub::Heartbeat { fences: vec![fence], sample: Some(Box::new(delta())) }, GOLDEN[5]),
        ("Chunk", ToHub::Upload(chunk), GOLDEN[6]),
        ("Outcome", ToHub::Upload(outcome), GOLDEN[7]),
        ("Leaving", ToHub::Leaving, GOLDEN[8]),
        ("Holding", holding, GOLDEN[9]),
        ("Inventory", ToHub::Inventory(Box::new(inventory())), GOLDEN[21]),
        ("Alarm", ToHub::Alarm { alarm: Alarm::Hot, name: "tj".into(), age_ms: 5 }, "81010b0402746a05"),
        ("Sample", ToHub::Sample(Box::new(Sample { base: None, ..delta() })), GOLDEN[22]),
        ("Keys", ToHub::Keys { version: 300 }, "81010cac02"),
        (
            "Told",
            ToHub::Told { fence, told: Told { progress: Some(9), ..Told::default() } },
            "81010df0a2040109000000",
        ),
    ] {
        check(what, &numbered(message), golden);
    }
}

#[test]
fn messages_to_the_agent() {
    let fence = Fence(70_000);
    let welcome = Welcome { generation: 1, heard: 2, slots: 3, heartbeat_ms: 5_000 };
    let verdicts = vec![
        (Fence(1), Verdict::Continue { lease_ms: 30_000, have: [1, 2] }),
        (Fence(2), Verdict::Abort { cause: AbortCause::LeaseLost }),
        (Fence(3), Verdict::Ack { verdict: AckVerdict::UnknownTask }),
    ];
    let joined = Joined {
        fleet: FleetId([2; 16]),
        node: "n1".parse().unwrap(),
        slots: 1,
        profile: Profile::Lan,
        role: Role::Worker,
    };
    let shell = Shell {
        argv: vec!["/bin/x".into(), "y".into()],
        cwd: Some("/d".into()),
        env: vec![("K".into(), "V".into())],
    };
    let grant = Grant {
        claim: ClaimId(1),
        fence,
        heard: 2,
        lease_ms: 30_000,
        task: task(),
        attempt: 1,
        job: Job::Shell(shell),
        timeout_ms: Some(1_000),
        on_disconnect: OnDisconnect::CarryOn,
        delivery: Delivery::AtMostOnce,
        requires: vec!["l4t >= 36.4".parse().unwrap()],
    };
    let overlay = Overlay {
        version: 3,
        rules: Some(vec!["r".into()]),
        timeout_ms: Some(1_000),
        output: Some(1_000),
        jobs: Some(1),
    };
    let cancelled = AbortCause::Cancelled { by: CancelledBy::Halt };
    for (what, message, golden) in [
        ("Welcome", ToAgent::Welcome(Box::new(welcome)), GOLDEN[10]),
        ("Joined", ToAgent::Joined(Box::new(joined)), GOLDEN[11]),
        ("Grant", ToAgent::Grant(Box::new(grant)), GOLDEN[12]),
        ("Renewed", ToAgent::Renewed { heard: 3, leases: vec![(fence, 30_000)] }, GOLDEN[13]),
        ("Ack", ToAgent::Ack { fence, verdict: AckVerdict::NotYourLease }, GOLDEN[14]),
        ("Abort", ToAgent::Abort { fence, cause: cancelled }, GOLDEN[15]),
        ("Void", ToAgent::Void { claim: ClaimId(4) }, GOLDEN[16]),
        ("Missing", ToAgent::Missing { fence, have: [1, 2] }, GOLDEN[17]),
        ("Verdicts", ToAgent::Verdicts { heard: 2, verdicts }, GOLDEN[18]),
        ("Moved", ToAgent::Moved, "09"),
        ("Keys", ToAgent::Keys(vec![1, 2]), "0a020102"),
        ("Overlay", ToAgent::Overlay(Box::new(overlay)), "0b030101017201e80701e8070101"),
    ] {
        check(what, &message, golden);
    }
}

/// What is signed is read back years later, on boards that nobody updates.
#[test]
fn signed_jobs() {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let key = Key(pair.public_key().as_ref().try_into().unwrap());
    let fleet = FleetId([2; 16]);
    let (rules, users) = (vec!["r".into()], vec!["slot".into()]);
    let tags = vec!["*".parse().unwrap()];
    let scope = Scope { kinds: vec![Kind::Shell, Kind::Line], rules, users, tags };
    let cert = Cert { key, name: "op".into(), fleet, scope, not_after_ms: 300 };
    check("Cert", &cert, SIGNED[0]);
    let set = KeySet { version: 300, certs: vec![cert.clone()], revoked: vec![Key([9; 32])] };
    check("KeySet", &set, SIGNED[1]);
    let work = envelope::Work::Shell(Shell { argv: vec!["/x".into()], cwd: None, env: vec![] });
    let payload = Payload {
        version: 1,
        work,
        rules: vec!["r".into()],
        task: task(),
        fleet,
        audience: Audience::Tags(vec!["gpu".parse().unwrap()]),
        timeout_ms: Some(1_000),
        user: Some("root".into()),
        delivery: Delivery::AtMostOnce,
        attempts_max: 3,
        not_before_ms: 1,
        expires_ms: 300,
        nonce: [4; 16],
        issuer: key,
        reason: "why".into(),
    };
    check("Payload", &payload, SIGNED[2]);
    check("Audience::Nodes", &Audience::Nodes(vec!["n".parse().unwrap()]), "0001016e");
    check("Audience::Keys", &Audience::Keys(vec![]), "0100");
    // The signature too: it is over the context, the length in four bytes, and the payload.
    let bytes = Envelope::sign(&payload, Some(Sealed::make(Context::Cert, &cert, &pair)), &pair).unwrap();
    assert_eq!(hex(&bytes), SIGNED[3]);
    let body = postcard::to_stdvec(&payload).unwrap();
    let message = [b"dunlin-job-v1\0".as_slice(), &(body.len() as u32).to_le_bytes(), &body].concat();
    assert!(hex(&bytes).ends_with(&hex(pair.sign(&message).as_ref())));
    check("Signed", &Job::Signed(vec![1, 2]), "01020102");
}

#[test]
fn kinds() {
    let step = Shell { argv: vec!["/x".into()], cwd: None, env: vec![] };
    let run = OrchestratorRun { steps: vec![step.clone(), step] };
    check("OrchestratorRun", &Job::OrchestratorRun(run), "020201022f78000001022f780000");
    let hook = HookDispatch { hook: "h".into(), payload: "{}".into() };
    check("HookDispatch", &Job::HookDispatch(hook), "030168027b7d");
    check("Wake", &Job::Wake(Wake { hook: "h".into(), text: "t".into() }), "0401680174");
    let declared = Declared {
        target: "actuator:p".parse().unwrap(),
        tier: Tier::T3,
        evidence: vec![Source::Llm, Source::Sensor],
        verified_by: vec![Source::Human],
    };
    let shell = Shell { argv: vec!["/x".into()], cwd: None, env: vec![] };
    let actuation = Actuation { shell, declared };
    check(
        "Actuation",
        &Job::Actuation(actuation.clone()),
        "0501022f7800000a6163747561746f723a70030200010102",
    );
    let work = envelope::Work::try_from(Job::Actuation(actuation)).unwrap();
    let watch = ToAgent::Watch { fence: Fence(7), stream: Stream::Stderr, credit: 70_000 };
    check("Watch", &watch, "0c0701f0a204");
    let tail = Upload::Tail { fence: Fence(7), stream: Stream::Stdout, offset: 300, bytes: vec![1, 2] };
    check("Tail", &tail, "020700ac02020102");
    check("Work::Actuation", &work, "0101022f7800000a6163747561746f723a70030200010102");
}

#[test]
fn datagrams() {
    let beat = FromAgent::Beat { every_ms: 25_000, sample: Some(Box::new(delta())) };
    check("Beat", &beat, GOLDEN[23]);
    check("Probe", &FromAgent::Probe, "01");
    check("Alive", &FromAgent::Alive, "02");
    check("Echo", &FromHub::Echo, "00");
    check("Again", &FromHub::Again(Box::new(ToAgent::Void { claim: ClaimId(4) })), "010604");
    check("Ask", &FromHub::Ask, "02");
}

#[test]
fn closed_lists_keep_their_numbers() {
    let outcomes = [
        Outcome::Ok,
        Outcome::Exit { code: 1 },
        Outcome::Signal { signo: 1 },
        Outcome::TimedOut { phase: TimeoutPhase::Kill },
        Outcome::Cancelled { by: CancelledBy::Operator },
        Outcome::Denied { reason: Denial::PolicyInvalid },
        Outcome::SpawnFailed { step: SpawnStep::Exec, errno: 2 },
        Outcome::OutputOverflow,
        Outcome::OomKilled,
        Outcome::LimitHit { which: Limit::Pids },
        Outcome::Interrupted { by: Interruption::LeaseLost },
        Outcome::Stuck,
        Outcome::AgentInternal,
        Outcome::NoGo { why: NoGo::ReviewerNoGo },
        Outcome::Hook { how: HookEnd::TimeoutUnknown },
    ];
    let bytes: Vec<String> = outcomes.iter().map(|o| hex(&postcard::to_stdvec(o).unwrap())).collect();
    assert_eq!(bytes.join(" "), GOLDEN[19]);
    assert_eq!(Denial::ALL.iter().map(|d| d.as_str()).collect::<Vec<_>>().join(" "), GOLDEN[20]);
}

/// In the order of the tests above.
const GOLDEN: [&str; 24] = [
    "8101000102020202020202020202020202020202026e310103030303030303030303030303030303ac0205302e312e300103613a6202020404040404040404",
    "810101010101010101010101010101010101010102020202020202020202020202020202",
    "8101020201ac02",
    "810103f0a204",
    "810104f0a204",
    "81010501f0a20401ac020101ab02030001f0011e08018f06000900",
    "81010600f0a2040109020102",
    "81010601027431f0a204010301800c010172080808080808080801a09c0105010203040501060902030707070707070707000000000000000000000001f604000101010201280196010001027b7d",
    "810107",
    "8101080102743105010106",
    "000102038827",
    "0102020202020202020202020202020202026e31010000",
    "0201f0a20402b0ea01027431010002062f62696e2f78017901022f6401014b015601e8070101010d6c3474203e3d2033362e342e30",
    "030301f0a204b0ea01",
    "04f0a20405",
    "05f0a2040001",
    "0604",
    "07f0a2040102",
    "0802030100b0ea010102020101030204",
    "00 0101 0201 0301 0400 0526 060c04 07 08 0902 0a03 0b 0c 0d02 0e05",
    "malformed not_absolute not_allowlisted argument argument_option argument_path argument_nul argument_control argument_charset argument_length env cwd user timeout_over_ceiling output_over_ceiling program_missing program_untrusted program_setid program_digest shell_disabled shell_unsigned signature_missing signature_invalid key_unknown key_revoked key_scope audience not_yet_valid expired replayed attempts_exhausted clock_untrusted replay_store_full sandbox_unavailable capability_missing busy draining disk_full policy_invalid hook_unknown hook_field hook_paused actuation_declaration_required actuation_target llm_only_actuation_blocked actuation_tier actuation_unverified",
    "81010901016601016d0001016b0101700100010601c43b0100010167010101091c00010203040506070108017209017401b4100a0b0c0d020e0f10111213141516012fac02170164180131190131ac021a01651b0165",
    "81010aac020100030001f0011e08018f06000900",
    "00a8c30101ac020101ab02030001f0011e08018f06000900",
];

/// A certificate, a key set, a payload, an envelope.
const SIGNED: [&str; 4] = [
    "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1026f70020202020202020202020202020202020200010101720104736c6f7401012aac02",
    "ac0201ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1026f70020202020202020202020202020202020200010101720104736c6f7401012aac02010909090909090909090909090909090909090909090909090909090909090909",
    "010001022f7800000101720274310202020202020202020202020202020202010367707501e8070104726f6f74010301ac0204040404040404040404040404040404ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d103776879",
    "66010001022f7800000101720274310202020202020202020202020202020202010367707501e8070104726f6f74010301ac0204040404040404040404040404040404ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1037768790144ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1026f70020202020202020202020202020202020200010101720104736c6f7401012aac02402d6e01edfe77e5c7e8345cae1e0fd082da84772cf50779957b83a3f62ac61895893c2f4777a5ead94547de668c7538e2ca148d25abda21e2adcc193e439fd1034001da197c73e5f045e013e8681a41f761f461e6cd2a84f2000f17b465319aa21a82d0c48defdd6c63cbee517f1c64317163872cdcde7842bc07713c436c8c8b00",
];
