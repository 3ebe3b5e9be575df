//! Work that moves something, and other signed kinds: what a hub that was taken over can get out of a board.

use super::signed::{Signers, board_with};
use super::{fleet, lines};
use data_encoding::BASE64URL_NOPAD;
use dunlin_tests::{Fleet, until};
use dunlin_wire::seal::{Context, from_text};
use serde_json::{Value, json};

const POLICY: &str = r#"
schema = 1
[ceilings]
jobs = 4
[root.work]
path = "@DIR@/work"
[[rule]]
id = "pump"
interpreter = "/bin/sh"
script = "@DIR@/pump.sh"
args = ["on"]
cwd = ["work"]
write = ["root:work"]
actuator = { target = "actuator:pump:P1" }
[[rule]]
id = "id"
program = "/usr/bin/id"
user = "root"
[[rule]]
id = "true"
program = "/usr/bin/true"
[orchestrator]
gate = [["/usr/bin/true"]]
reviewer = ["/usr/bin/true"]
[[hook]]
name = "bell"
kind = "wake"
url = "http://127.0.0.1:1/wake"
token = "credential:bell"
allow = { text = { type = "string", max = 40 } }
"#;

struct Pump<'f> {
    s: Signers<'f>,
    fleet: &'f Fleet,
}

impl Pump<'_> {
    fn argv(&self) -> [String; 3] {
        ["/bin/sh".into(), self.s.at("pump.sh"), "on".into()]
    }

    /// What comes of an actuation that nobody signed: the hub's refusal, or the outcome.
    fn unsigned(&self, declared: Value) -> String {
        let mut payload = json!({"argv": self.argv(), "cwd": self.s.at("work")});
        payload.as_object_mut().unwrap().extend(declared.as_object().unwrap().clone());
        let body = json!({"kind": "actuation", "payload": payload, "maxAttempts": 1});
        let (_, answer) = self.fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
        match answer["taskId"].as_str() {
            Some(id) => Fleet::outcome(&self.fleet.wait_ended(id)),
            None => answer["error"]["code"].as_str().unwrap().to_owned(),
        }
    }

    /// A signed actuation, straight to the board: what a hub does that says nothing about it.
    fn signed(&self, sign: &[&str], declared: &[&str]) -> String {
        let argv = self.argv();
        let work = self.s.at("work");
        let cwd = ["--to", "a", "--max-attempts", "1", "--cwd", &work];
        let run = ["--", &argv[0], &argv[1], &argv[2]];
        let text = self.s.said(&[&["bundle"], sign, &cwd[..], declared, &run[..]].concat());
        Fleet::outcome(&self.s.offer(&from_text(Context::Job, &text, usize::MAX).unwrap()))
    }
}

#[test]
fn nothing_moves_without_what_the_board_wants_declared() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let s = board_with(&fleet, POLICY);
    let script = s.at("pump.sh");
    std::fs::write(&script, "echo moved >> moved\n").unwrap();
    let _agent = fleet.start_agent("a").unwrap();
    let key = s.key("operator");
    let may = s.cert("root", &key, "may", &["--rule", "*", "--kind", "actuation,run,hook"]);
    let no = s.cert("root", &key, "no", &["--rule", "*", "--kind", "shell,line"]);
    let operator = s.at("operator");
    let sign = ["--sign", &operator, "--cert", &may];
    let pump = Pump { s, fleet: &fleet };
    let t3 =
        json!({"target": "actuator:pump:P1", "tier": "T3", "evidence": ["sensor"], "verifiedBy": ["human"]});
    let with = |more: Value| {
        let mut declared = t3.clone();
        declared.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        declared
    };

    // The hub says what it likes: it can lie about evidence and people, and cannot sign.
    assert_eq!(pump.unsigned(t3.clone()), "denied(signature_missing)");
    assert_eq!(pump.unsigned(with(json!({"evidence": ["llm"]}))), "llm_only_actuation_blocked");
    assert_eq!(pump.unsigned(with(json!({"verifiedBy": []}))), "actuation_tier");
    assert_eq!(pump.unsigned(with(json!({"verifiedBy": ["llm"]}))), "invalid_payload");
    let argv = pump.argv();
    let plain =
        json!({"kind": "shell", "payload": {"argv": argv, "cwd": pump.s.at("work")}, "maxAttempts": 1});
    let task = fleet.post("/v1/tasks", &plain).unwrap();
    let ended = fleet.wait_ended(task["taskId"].as_str().unwrap());
    assert_eq!(Fleet::outcome(&ended), "denied(actuation_declaration_required)");
    let mut tagged = plain.clone();
    tagged["requiredTags"] = json!(["actuator:*"]);
    let (status, answer) = fleet.call("POST", "/v1/tasks", Some(&tagged)).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("actuation_declaration_required")));

    // What was signed is what counts: by a key that may, and declared as the board wants it.
    let good = [
        "--actuate",
        "actuator:pump:P1",
        "--tier",
        "T3",
        "--evidence",
        "llm,sensor",
        "--verified-by",
        "human",
    ];
    assert_eq!(pump.signed(&["--sign", &operator, "--cert", &no], &good), "denied(key_scope)");
    let low =
        ["--actuate", "actuator:pump:P1", "--tier", "T2", "--evidence", "sensor", "--verified-by", "human"];
    assert_eq!(pump.signed(&sign, &low), "denied(actuation_tier)");
    let other =
        ["--actuate", "actuator:pump:P2", "--tier", "T3", "--evidence", "human", "--verified-by", "human"];
    assert_eq!(pump.signed(&sign, &other), "denied(actuation_target)");
    assert_eq!(lines(&fleet, "moved").len(), 0, "nothing of all that moved it");
    assert_eq!(pump.signed(&sign, &good), "ok");
    assert_eq!(lines(&fleet, "moved").len(), 1);
    // The sender refuses first what nobody takes.
    let llm = ["bundle", "--actuate", "actuator:p", "--tier", "T0", "--evidence", "llm", "--to", "a"];
    let output = pump.s.dunlin(&[&llm[..], &sign, &["--", "/x"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(64) && said.contains("llm_only_actuation_blocked"), "{said}");

    // Both sides have it on record, and the hub counts it.
    let audit =
        fleet.command("dunlin-agent").args(["audit", "--json", "--data"]).arg(fleet.data("a")).output();
    let rows = String::from_utf8(audit.unwrap().stdout).unwrap();
    let declared = "actuator:pump:P1 T3, evidence llm+sensor, verified by human";
    let row = rows.lines().find(|row| row.contains("\"allow\"") && row.contains(declared));
    assert!(row.is_some() && rows.contains("actuation_target"), "{rows}");
    for code in ["llm_only_actuation_blocked", "actuation_declaration_required", "actuation_tier"] {
        let rows = fleet.get(&format!("/v1/audit?code={code}")).unwrap();
        assert!(!rows["audit"].as_array().unwrap().is_empty(), "{code}");
        let metrics = fleet.call("GET", "/metrics", None).unwrap().1.to_string();
        assert!(metrics.contains(code), "{code}: {metrics}");
    }
    let offered = fleet.node("a")["capabilities"].to_string();
    assert!(offered.contains("actuator:pump:P1"), "{offered}");
}

#[test]
fn runs_and_hooks_are_signed_like_any_job() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let s =
        board_with(&fleet, &POLICY.replace("[root.work]", "[signing]\nrequire = \"always\"\n[root.work]"));
    let _agent = fleet.start_agent("a").unwrap();
    until("the board is there", || (fleet.node("a")["connected"] == true).then_some(()));
    let key = s.key("operator");
    let operator = s.at("operator");
    let cert = |name: &str, kinds: &str| {
        let more = ["--rule", "id,true,hook:bell", "--user", "*", "--kind", kinds];
        s.cert("root", &key, name, &more)
    };
    let (all, shell, run) = (cert("all", "shell,run,hook"), cert("shell", "shell"), cert("run", "run"));
    let file = s.at("payload.json");
    let submit = |kind: &str, payload: Value, cert: Option<&str>| {
        std::fs::write(&file, payload.to_string()).unwrap();
        let mut args = vec!["submit", "--wait", "--json", "--kind", kind, "--payload", &file];
        args.extend(["--max-attempts", "1", "--timeout", "1s"]);
        if let Some(cert) = cert {
            args.extend(["--to", "a", "--sign", &operator, "--cert", cert]);
        }
        Fleet::outcome(&serde_json::from_slice(&s.dunlin(&args).stdout).unwrap())
    };
    let steps = json!({"steps": [{"argv": ["/usr/bin/true"]}, {"argv": ["/usr/bin/id"]}]});
    for (cert, want) in [
        (None, "denied(signature_missing)"),
        (Some(&shell), "denied(key_scope)"),
        // Composing is one right, what is composed another.
        (Some(&run), "denied(key_scope)"),
        (Some(&all), "ok"),
    ] {
        assert_eq!(submit("orchestrator-run", steps.clone(), cert.map(String::as_str)), want);
    }
    let bell = json!({"hook": "bell", "text": "rise"});
    for (cert, want) in [
        (None, "denied(signature_missing)"),
        (Some(&shell), "denied(key_scope)"),
        // It was allowed: the board has no token, which it looks for next.
        (Some(&all), "denied(capability_missing)"),
    ] {
        assert_eq!(submit("wake", bell.clone(), cert.map(String::as_str)), want);
    }
    // What is signed is the body: a hub that changes it has nothing.
    let text = s.said(&["bundle", "--sign", &operator, "--cert", &all, "--to", "a", "--", "/usr/bin/true"]);
    let mut bytes = from_text(Context::Job, &text, usize::MAX).unwrap();
    assert_eq!(Fleet::outcome(&s.offer(&bytes)), "ok");
    let at = bytes.windows(4).position(|w| w == b"true").unwrap();
    bytes[at..at + 4].copy_from_slice(b"echo");
    let envelope = BASE64URL_NOPAD.encode(&bytes);
    let body =
        json!({"kind": "signed", "payload": {"envelope": envelope}, "targetNodeId": "a", "maxAttempts": 1});
    let (status, _) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
    assert!(status == 409 || status == 400, "{status}: the same task with another body");
}
