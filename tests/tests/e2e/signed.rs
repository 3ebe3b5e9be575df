//! A hub that was taken over: it holds the queue and can say what it likes, and still makes no privileged work.

use super::{fleet, lines};
use data_encoding::BASE64URL_NOPAD;
use dunlin_tests::{Fleet, until};
use dunlin_wire::bundle::BundleResult;
use dunlin_wire::seal::{Context, from_text};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Output;

const POLICY: &str = r#"
schema = 1
[ceilings]
jobs = 4
[signing]
require = "privileged"
[shell]
enabled = true
[root.work]
path = "@DIR@/work"
[[rule]]
id = "uname"
program = "/usr/bin/uname"
args = ["-a"]
[[rule]]
id = "sh"
program = "/bin/sh"
launcher = true
args = ["-c", { re = 'echo [a-z]+ >> ran; exit [0-9]' }]
cwd = ["work"]
write = ["root:work"]
[[rule]]
id = "line"
program = "/usr/bin/dash"
shell = true
cwd = ["work"]
write = ["root:work"]
"#;

pub(super) struct Signers<'f> {
    fleet: &'f Fleet,
}

impl Signers<'_> {
    pub(super) fn at(&self, name: &str) -> String {
        self.fleet.dir().join(name).display().to_string()
    }

    pub(super) fn dunlin(&self, args: &[&str]) -> Output {
        self.fleet.command("dunlin").args(args).output().unwrap()
    }

    /// Runs `dunlin`, which must succeed; what it printed.
    pub(super) fn said(&self, args: &[&str]) -> String {
        let output = self.dunlin(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn key(&self, name: &str) -> String {
        self.said(&["key", "new", "--out", &self.at(name)])
    }

    /// A certificate for `key` by the root in `root`; its file.
    pub(super) fn cert(&self, root: &str, key: &str, name: &str, more: &[&str]) -> String {
        let enrolment = std::fs::read_to_string(self.fleet.data("a").join("enrolment.toml")).unwrap();
        let fleet = enrolment.lines().find_map(|l| l.strip_prefix("fleet = ")).unwrap().trim_matches('"');
        let (root, out) = (self.at(root), self.at(name));
        let args = ["key", "cert", "--root", &root, "--key", key, "--fleet", fleet, "--tag", "lab"];
        self.said(&[&args[..], &["--expires", "1d", "--out", &out], more].concat());
        out
    }

    /// A signed job as the hub would hold it.
    fn envelope(&self, args: &[&str], argv: &[&str]) -> Vec<u8> {
        let work = self.at("work");
        let more = ["--cwd", &work, "--max-attempts", "2", "--"];
        let text = self.said(&[&["bundle"], args, &more[..], argv].concat());
        from_text(Context::Job, &text, usize::MAX).unwrap()
    }

    /// What the board makes of an envelope that the hub gives it, whoever it was for.
    pub(super) fn offer(&self, envelope: &[u8]) -> Value {
        let envelope = BASE64URL_NOPAD.encode(envelope);
        let body = json!({"kind": "signed", "payload": {"envelope": envelope}, "targetNodeId": "a"});
        let task = self.fleet.post("/v1/tasks", &body).unwrap();
        self.fleet.wait_ended(task["taskId"].as_str().unwrap())
    }
}

/// A board with a trust file and a strict policy, not started yet, and its operators.
fn board(fleet: &Fleet) -> Signers<'_> {
    board_with(fleet, POLICY)
}

pub(super) fn board_with<'f>(fleet: &'f Fleet, policy: &str) -> Signers<'f> {
    let policy = policy.replace("@DIR@", &fleet.dir().display().to_string());
    std::fs::write(fleet.dir().join("policy.toml"), policy).unwrap();
    fleet.enrol("a", &["--max-concurrent", "4", "--tag", "gpu"]).unwrap();
    let signers = Signers { fleet };
    let root = signers.key("root");
    std::fs::write(fleet.dir().join("trust.toml"), format!("schema = 1\nroots = [\"{root}\"]\n")).unwrap();
    let config = format!("trust = \"{}\"\ntags = [\"lab\"]\n", signers.at("trust.toml"));
    std::fs::write(fleet.agent_config("a"), config).unwrap();
    signers
}

const RUN: [&str; 3] = ["/bin/sh", "-c", "echo once >> ran; exit 1"];

#[test]
fn a_hostile_hub_makes_no_privileged_work() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let s = board(&fleet);
    let mut agent = fleet.start_agent("a").unwrap();
    let operator = s.key("operator");
    let cert = s.cert("root", &operator, "cert", &["--rule", "sh", "--kind", "shell,line"]);
    let key = s.at("operator");
    let sign = ["--sign", &key, "--cert", &cert];
    let for_a = [&sign[..], &["--to", "a"]].concat();

    // Its own work: what needs no signature runs, and nothing else does.
    let unsigned = |argv: &[&str]| {
        let more = json!({"cwd": s.at("work"), "maxAttempts": 1});
        Fleet::outcome(&fleet.wait_ended(&fleet.submit(argv, more).unwrap()))
    };
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), "ok");
    assert_eq!(unsigned(&RUN), "denied(signature_missing)");
    assert_eq!(unsigned(&["/usr/bin/dash", "-c", "touch ran"]), "denied(shell_unsigned)");

    // Work that it forges: signed by itself, by a root of its own, altered, or with another's certificate.
    let own = s.key("hub-own");
    s.key("hub-root");
    let hub_cert = s.cert("hub-root", &own, "hub-cert", &["--rule", "*"]);
    let hub_key = s.at("hub-own");
    let forged = s.envelope(&["--sign", &hub_key, "--cert", &hub_cert, "--to", "a"], &RUN);
    assert_eq!(Fleet::outcome(&s.offer(&forged)), "denied(key_unknown)");
    let mut altered = s.envelope(&for_a, &RUN);
    *altered.last_mut().unwrap() ^= 1;
    let forged = s.offer(&altered);
    // The last bytes are the signature's.
    assert_eq!(Fleet::outcome(&forged), "denied(signature_invalid)", "{forged:#}");

    // Work that an operator signed for others, for another time, or beyond what the key may do.
    let others = s.envelope(&[&sign[..], &["--to", "b"]].concat(), &RUN);
    assert_eq!(Fleet::outcome(&s.offer(&others)), "denied(audience)");
    let others = s.envelope(&[&sign[..], &["--tags", "lab,gpu"]].concat(), &RUN);
    // The hub says that the board has `gpu`; the board's own configuration does not.
    let task = s.offer(&others);
    assert_eq!(task["requiredTags"], json!(["gpu", "lab"]));
    assert_eq!(Fleet::outcome(&task), "denied(audience)");
    let old = s.envelope(&[&for_a[..], &["--expires", "1ms"]].concat(), &RUN);
    assert_eq!(Fleet::outcome(&s.offer(&old)), "denied(expired)");
    let far = s.envelope(&for_a, &["/usr/bin/dash", "-c", "touch ran"]);
    assert_eq!(Fleet::outcome(&s.offer(&far)), "denied(key_scope)");
    assert_eq!(lines(&fleet, "ran").len(), 0, "nothing of all that ran");

    // Work that an operator signed runs, as often as was signed: also when the hub repeats it after a restart.
    let good = s.envelope(&for_a, &RUN);
    let task = s.offer(&good);
    assert_eq!((Fleet::outcome(&task), lines(&fleet, "ran").len()), ("exit(1)".to_owned(), 2), "{task:#}");
    assert_eq!((&task["kind"], &task["payload"]["issuer"]), (&json!("signed"), &json!(operator)));
    let id = task["taskId"].as_str().unwrap().to_owned();
    let again = || {
        fleet.post(&format!("/v1/tasks/{id}/retry"), &json!({})).unwrap();
        Fleet::outcome(&fleet.wait_ended(&id))
    };
    assert_eq!(again(), "denied(replayed)");
    agent.proc.kill();
    let _agent = fleet.start_agent("a").unwrap();
    assert_eq!(again(), "denied(replayed)");
    assert_eq!(lines(&fleet, "ran").len(), 2, "each attempt that was signed, and no more");

    // All of it is in the board's own record.
    let audit = |args: &[&str]| {
        let mut command = fleet.command("dunlin-agent");
        command.arg("audit").args(args).arg("--data").arg(fleet.data("a"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let rows: Vec<Value> = audit(&["--json"]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for reason in
        ["signature_missing", "shell_unsigned", "key_unknown", "signature_invalid", "audience", "replayed"]
    {
        assert!(rows.iter().any(|row| row["reason"] == reason), "{reason}");
    }
    assert!(rows.iter().any(|row| row["decision"] == "allow" && row["issuer"] == operator.as_str()));
    assert!(audit(&["--verify"]).starts_with(&format!("{} lines in order", rows.len())));
}

#[test]
fn keys_travel_through_the_hub_and_stay_revoked() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let s = board(&fleet);
    let mut agent = fleet.start_agent("a").unwrap();
    let operator = s.key("operator");
    let cert = s.cert("root", &operator, "cert", &["--rule", "*", "--kind", "shell,line"]);
    let (key, root) = (s.at("operator"), s.at("root"));
    let sets = [("1", vec!["--cert", cert.as_str()]), ("2", vec!["--revoke", operator.as_str()])];
    for (version, more) in &sets {
        let out = s.at(&format!("keys{version}"));
        let args = ["keys", "make", "--root", &root, "--version", version, "--out", &out];
        s.said(&[&args[..], more].concat());
    }
    let in_force = |version: u64| {
        until("the board has the set", || (fleet.node("a")["keySet"] == version).then_some(()));
    };
    // A job without a certificate, by a key of the set; a free line, in the terms of the command line.
    let enrolment = std::fs::read_to_string(fleet.data("a").join("enrolment.toml")).unwrap();
    let id = enrolment.lines().find_map(|l| l.strip_prefix("fleet = ")).unwrap().trim_matches('"').to_owned();
    let work = s.at("work");
    let submit = || {
        let sign = ["submit", "--wait", "--sign", &key, "--fleet", &id, "--tags", "lab"];
        let line = [
            "--reason",
            "a test",
            "--cwd",
            &work,
            "--",
            "/usr/bin/dash",
            "-c",
            "echo a | tr a b; echo $PWD >> ran",
        ];
        s.dunlin(&[&sign[..], &line[..]].concat())
    };
    in_force(0);
    assert_eq!(submit().status.code(), Some(77), "nobody has said who this is");
    s.said(&["keys", "push", &s.at("keys1")]);
    in_force(1);
    let output = submit();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"b\n"[..]), "{output:?}");
    s.said(&["keys", "push", &s.at("keys2")]);
    in_force(2);
    assert_eq!(submit().status.code(), Some(77));
    // Neither the hub nor a board that was away goes back.
    assert_eq!(s.dunlin(&["keys", "push", &s.at("keys1")]).status.code(), Some(65));
    agent.proc.kill();
    let _agent = fleet.start_agent("a").unwrap();
    fleet.wait_health("a", "healthy");
    in_force(2);
    assert_eq!(submit().status.code(), Some(77));
    assert_eq!(lines(&fleet, "ran").len(), 1);
    let tasks = fleet.get("/v1/tasks?limit=10").unwrap();
    let ends: Vec<String> = tasks["tasks"].as_array().unwrap().iter().map(Fleet::outcome).collect();
    assert_eq!(ends, ["denied(key_revoked)", "denied(key_revoked)", "ok", "denied(key_unknown)"]);
}

#[test]
fn a_bundle_runs_without_a_hub_and_its_result_is_signed() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    let s = board(&fleet);
    let device = {
        let agent = fleet.start_agent("a").unwrap();
        fleet.wait_health("a", "healthy");
        drop(agent);
        fleet.node("a")["publicKey"].as_str().unwrap().to_owned()
    };
    drop(hub);
    let operator = s.key("operator");
    let cert = s.cert("root", &operator, "cert", &["--rule", "sh"]);
    let (key, file) = (s.at("operator"), s.at("job"));
    let sign = ["--sign", &key, "--cert", &cert, "--to", "a", "--out", &file, "--cwd"];
    s.said(&[&["bundle"], &sign[..], &[&s.at("work"), "--"], &RUN].concat());
    let run = |out: &str| {
        let mut command = fleet.command("dunlin-agent");
        command
            .args(["run-bundle", "--with-exec", &file, "--out", &s.at(out), "--data"])
            .arg(fleet.data("a"));
        command.arg("--policy").arg(fleet.dir().join("policy.toml"));
        command.arg("--config").arg(fleet.agent_config("a")).output().unwrap()
    };
    let output = run("result");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "exit(1)\n", "{output:?}");
    let shown = s.dunlin(&["bundle", "show", "--key", &device, &s.at("result")]);
    assert_eq!(shown.status.code(), Some(1), "{shown:?}");
    assert_eq!(s.dunlin(&["bundle", "show", "--key", &operator, &s.at("result")]).status.code(), Some(64));
    // The same file again.
    assert_eq!(run("again").status.code(), Some(77));
    let text = std::fs::read_to_string(PathBuf::from(s.at("again"))).unwrap();
    assert_eq!(BundleResult::parse(&text).unwrap().report.outcome.to_string(), "denied(replayed)");
    assert_eq!(lines(&fleet, "ran").len(), 1);
    // A result is never written over another.
    assert_eq!(run("result").status.code(), Some(69));
}
