//! Orchestrator runs, hooks and wakes, and what jobs say of themselves.

use super::{fleet, fleet_with, lines, sh};
use dunlin_tests::{Agent, Fleet, until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

/// Puts more into the boards' policy.
fn add_policy(fleet: &Fleet, more: &str) {
    let path = fleet.dir().join("policy.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, format!("{text}\n{more}")).unwrap();
}

fn work(fleet: &Fleet, name: &str) -> String {
    fleet.dir().join("work").join(name).display().to_string()
}

/// A gate that a file can close, and a reviewer that another can.
fn add_orchestrator(fleet: &Fleet) {
    let (shut, bad, gate) = (work(fleet, "shut"), work(fleet, "bad"), work(fleet, "gate"));
    add_policy(
        fleet,
        &format!(
            "[orchestrator]\ngate = [[\"/bin/sh\", \"-c\", \"echo g >> {gate}\"], [\"/bin/sh\", \"-c\", \"test ! -e {shut}\"]]\n\
             reviewer = [\"/bin/sh\", \"-c\", \"test ! -e {bad}\"]\n"
        ),
    );
}

fn run(fleet: &Fleet, scripts: &[&str], more: Value) -> Value {
    let cwd = fleet.dir().join("work").display().to_string();
    let step = |script: &&str| json!({"argv": ["/bin/sh", "-c", script], "cwd": cwd});
    let mut body = json!({"kind": "orchestrator-run", "payload": {
        "steps": scripts.iter().map(step).collect::<Vec<_>>(),
        // What a submitter says of the gate is nothing to the board.
        "requireSecurityTests": false,
        "security": {"passed": true},
    }});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let task = fleet.post("/v1/tasks", &body).unwrap();
    fleet.wait_ended(task["taskId"].as_str().unwrap())
}

fn last(task: &Value) -> &Value {
    &task["attempts"].as_array().unwrap().last().unwrap()["outcome"]
}

#[test]
fn a_run_passes_gate_steps_and_reviewer_in_order() {
    let (_dir, fleet) = fleet();
    add_orchestrator(&fleet);
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let task = run(&fleet, &["echo 1 >> order; echo one", "echo 2 >> order; echo two"], json!({}));
    assert_eq!(task["status"], "done", "{task:#}");
    let result = &last(&task)["result"];
    assert_eq!((&result["goNoGo"], &result["code"]), (&json!("GO"), &json!("GO")), "{task:#}");
    assert_eq!(result["blockers"], json!([]));
    assert_eq!(
        (lines(&fleet, "gate"), lines(&fleet, "order")),
        (vec!["g".into()], vec!["1".into(), "2".into()])
    );
    let id = task["taskId"].as_str().unwrap();
    let out = fleet.call("GET", &format!("/v1/tasks/{id}/output?stream=stdout"), None).unwrap().1;
    assert!(out.to_string().contains("one") && out.to_string().contains("two"), "{out}");
    let node = fleet.node("a");
    assert!(node["capabilities"].as_array().unwrap().contains(&json!("kind:orchestrator-run")), "{node:#}");
}

#[test]
fn a_failed_gate_starts_no_step_whatever_the_payload_says() {
    let (_dir, fleet) = fleet();
    add_orchestrator(&fleet);
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    std::fs::write(work(&fleet, "shut"), "").unwrap();
    let task = run(&fleet, &["touch marker"], json!({}));
    assert_eq!(Fleet::outcome(&task), "no_go(security_gate_failed)", "{task:#}");
    // A decision is not asked for again.
    assert_eq!((&task["attempt"], &task["deadReason"]), (&json!(1), &json!("refused")));
    let result = &last(&task)["result"];
    assert_eq!(result["code"], "SECURITY_GATE_FAILED");
    assert_eq!((&result["goNoGo"], &result["decision"]), (&json!("NO_GO"), &json!("NO_GO")));
    assert_eq!(result["blockers"], json!(["security_gate_failed"]));
    assert_eq!(result["securityCriticalFindings"], 1);
    assert_eq!(lines(&fleet, "gate").len(), 1);
    assert!(!std::path::Path::new(&work(&fleet, "marker")).exists(), "the step never started");
    std::fs::remove_file(work(&fleet, "shut")).unwrap();
    std::fs::write(work(&fleet, "bad"), "").unwrap();
    let task = run(&fleet, &["touch marker"], json!({}));
    assert_eq!(Fleet::outcome(&task), "no_go(reviewer_no_go)", "{task:#}");
    assert!(std::path::Path::new(&work(&fleet, "marker")).exists());
    let task = run(&fleet, &["exit 3", "touch second"], json!({}));
    assert_eq!(last(&task)["result"]["code"], "STEP_FAILED", "{task:#}");
    assert!(!std::path::Path::new(&work(&fleet, "second")).exists());
}

#[test]
fn a_run_is_bounded_and_cancelled_as_a_whole() {
    let (_dir, fleet) = fleet();
    add_orchestrator(&fleet);
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let once = json!({"maxAttempts": 1, "timeoutMs": 1500});
    let task = run(&fleet, &["sleep 0.8", "sleep 30", "touch third"], once);
    assert_eq!(last(&task)["code"], "timed_out", "{task:#}");
    let task = run(&fleet, &["true"], json!({"timeoutMs": 1_000_000}));
    assert_eq!(Fleet::outcome(&task), "denied(timeout_over_ceiling)");
    let cwd = fleet.dir().join("work").display().to_string();
    let steps = ["touch began; sleep 30", "touch third"];
    let steps = steps.map(|script| json!({"argv": ["/bin/sh", "-c", script], "cwd": cwd}));
    let body = json!({"kind": "orchestrator-run", "payload": {"steps": steps}});
    let id = fleet.post("/v1/tasks", &body).unwrap()["taskId"].as_str().unwrap().to_owned();
    until("the step runs", || std::path::Path::new(&work(&fleet, "began")).exists().then_some(()));
    fleet.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).unwrap();
    until("its end is known", || (!last(&fleet.task(&id)).is_null()).then_some(()));
    assert_eq!(Fleet::outcome(&fleet.task(&id)), "cancelled(operator)");
    assert!(!std::path::Path::new(&work(&fleet, "third")).exists(), "nothing more was started");
}

#[test]
fn every_step_is_under_the_policy_and_a_board_without_a_gate_takes_no_run() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    assert_eq!(Fleet::outcome(&run(&fleet, &["true"], json!({}))), "denied(capability_missing)");
    drop(a);
    add_orchestrator(&fleet);
    let _a = fleet.start_agent("a").unwrap();
    fleet.wait_health("a", "healthy");
    let steps = json!([{"argv": ["/bin/sh", "-c", "true"]}, {"argv": ["/bin/false"]}]);
    let body = json!({"kind": "orchestrator-run", "payload": {"steps": steps}});
    let id = fleet.post("/v1/tasks", &body).unwrap()["taskId"].as_str().unwrap().to_owned();
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&id)), "denied(not_allowlisted)");
    assert_eq!(lines(&fleet, "gate").len(), 0, "not even the gate ran");
}

/// A receiver that answers as OpenClaw's gateway was seen to (HOOKS.md): each request gets the next answer, the last one for
/// ever. It keeps what it was asked.
struct Receiver {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    fn start(answers: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, answers): (_, Vec<_>) =
            (asked.clone(), answers.iter().map(|(s, b)| ((*s).to_owned(), (*b).to_owned())).collect());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let text = request(&mut stream);
                let at = {
                    let mut kept: std::sync::MutexGuard<'_, Vec<String>> = kept.lock().unwrap();
                    kept.push(text);
                    kept.len() - 1
                };
                let (status, body) = &answers[at.min(answers.len() - 1)];
                if status.is_empty() {
                    // It never answers.
                    std::mem::forget(stream);
                    continue;
                }
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(head.as_bytes());
            }
        });
        Self { port, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn request(stream: &mut std::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap_or("0");
            if body.len() >= length.parse().unwrap() {
                return text;
            }
        }
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the caller went away: {text}");
        bytes.extend_from_slice(&buffer[..n]);
    }
}

fn start_with_hooks(fleet: &Fleet, receiver: &Receiver) -> Agent {
    let port = receiver.port;
    add_policy(
        fleet,
        &format!(
            "[[hook]]\nname = \"claw\"\nkind = \"agent\"\nurl = \"http://127.0.0.1:{port}/hooks/agent\"\n\
             token = \"credential:claw\"\ntimeout = \"20s\"\n\
             allow = {{ message = {{ type = \"string\", max = 100 }} }}\n\
             set = {{ agentId = \"main\", waitForCompletion = true }}\n\
             [[hook]]\nname = \"bell\"\nkind = \"wake\"\nurl = \"http://127.0.0.1:{port}/hooks/wake\"\n\
             token = \"credential:claw\"\nallow = {{ text = {{ type = \"string\" }} }}\nset = {{ mode = \"now\" }}\n"
        ),
    );
    let dir = fleet.dir().join("credentials");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("claw"), "s3cr3t-hook-token\n").unwrap();
    std::fs::set_permissions(dir.join("claw"), std::fs::Permissions::from_mode(0o400)).unwrap();
    fleet.enrol("a", &[]).unwrap();
    let agent = fleet.start_agent_with("a", &[("CREDENTIALS_DIRECTORY", dir.to_str().unwrap())]).unwrap();
    fleet.wait_health("a", "healthy");
    agent
}

fn dispatch(fleet: &Fleet, hook: &str, payload: Value, more: Value) -> Value {
    let mut body = json!({"kind": "hook-dispatch", "payload": {"hook": hook, "payload": payload}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let task = fleet.post("/v1/tasks", &body).unwrap();
    fleet.wait_ended(task["taskId"].as_str().unwrap())
}

#[test]
fn a_hook_gets_the_body_and_the_token_and_the_task_its_answer() {
    let (_dir, fleet) = fleet();
    let done = r#"{"ok":true,"runId":"r1","completion":{"status":"ok"}}"#;
    let busy = ("503 x\r\nRetry-After: 1", r#"{"error":"gateway_unavailable"}"#);
    let receiver = Receiver::start(&[busy, ("200 OK", done)]);
    let _hub = fleet.start_hub().unwrap();
    let _a = start_with_hooks(&fleet, &receiver);
    let body = json!({"hook": "claw", "payload": {"message": "hi"}});
    let task = fleet.post(
        "/v1/tasks",
        &json!({"kind": "hook-dispatch", "payload": body,
        "requiredTags": ["hook:claw"]}),
    );
    let task = fleet.wait_ended(task.unwrap()["taskId"].as_str().unwrap());
    assert_eq!(task["status"], "done", "{task:#}");
    assert_eq!(last(&task)["result"]["status"], "ok");
    assert_eq!(last(&task)["result"]["answer"]["runId"], "r1");
    let asked = receiver.asked();
    assert_eq!(asked.len(), 2, "it tried again after the 503");
    for asked in &asked {
        assert!(asked.starts_with("POST /hooks/agent HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("Authorization: Bearer s3cr3t-hook-token\r\n"), "{asked}");
        let key = format!("Idempotency-Key: {}\r\n", task["taskId"].as_str().unwrap());
        assert!(asked.contains(&key), "the same key each time: {asked}");
        let body: Value = serde_json::from_str(asked.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body, json!({"message": "hi", "agentId": "main", "waitForCompletion": true}));
    }
    assert!(!task.to_string().contains("s3cr3t"), "the token stays on the board");
}

#[test]
fn what_the_board_does_not_know_is_denied_before_any_connection() {
    let (_dir, fleet) = fleet();
    let receiver = Receiver::start(&[("200 OK", r#"{"ok":true}"#)]);
    let _hub = fleet.start_hub().unwrap();
    let _a = start_with_hooks(&fleet, &receiver);
    for (hook, payload, want) in [
        ("nobody", json!({"message": "x"}), "denied(hook_unknown)"),
        ("bell", json!({"text": "x"}), "denied(hook_unknown)"),
        ("claw", json!({"message": "x", "agentId": "other"}), "denied(hook_field)"),
        ("claw", json!({"message": "x".repeat(101)}), "denied(hook_field)"),
        ("claw", json!({"url": "http://10.0.0.1/"}), "denied(hook_field)"),
    ] {
        let task = dispatch(&fleet, hook, payload.clone(), json!({}));
        assert_eq!(Fleet::outcome(&task), want, "{hook} {payload}");
    }
    let over = dispatch(&fleet, "claw", json!({"message": "x"}), json!({"timeoutMs": 60_000}));
    assert_eq!(Fleet::outcome(&over), "denied(timeout_over_ceiling)");
    assert_eq!(receiver.asked().len(), 0, "nobody was called");
    assert_eq!(Fleet::outcome(&dispatch(&fleet, "claw", json!({"message": "x"}), json!({}))), "ok");
}

#[test]
fn answers_that_are_no_success_are_told_apart() {
    let (_dir, fleet) = fleet();
    let skipped = r#"{"ok":true,"completion":{"status":"skipped"}}"#;
    let error = r#"{"ok":true,"completion":{"status":"error"}}"#;
    let receiver = Receiver::start(&[
        ("200 OK", skipped),
        ("200 OK", error),
        ("400 Bad", "no text"),
        ("413 Large", ""),
        ("302 Found\r\nLocation: http://127.0.0.1:1/", ""),
        ("", ""),
        ("401 No", "Unauthorized"),
    ]);
    let _hub = fleet.start_hub().unwrap();
    let _a = start_with_hooks(&fleet, &receiver);
    for want in ["hook(skipped)", "hook(error)", "hook(rejected)", "hook(rejected)", "hook(rejected)"] {
        let task = dispatch(&fleet, "claw", json!({"message": "x"}), json!({}));
        assert_eq!((Fleet::outcome(&task), &task["attempt"]), (want.to_owned(), &json!(1)), "{task:#}");
    }
    let silent =
        dispatch(&fleet, "claw", json!({"message": "x"}), json!({"timeoutMs": 900, "maxAttempts": 1}));
    assert_eq!(Fleet::outcome(&silent), "hook(timeout_unknown)", "{silent:#}");
    for _ in 0..3 {
        let task = dispatch(&fleet, "claw", json!({"message": "x"}), json!({}));
        assert_eq!(Fleet::outcome(&task), "hook(unauthorized)");
    }
    let called = receiver.asked().len();
    let task = dispatch(&fleet, "claw", json!({"message": "x"}), json!({}));
    assert_eq!(Fleet::outcome(&task), "denied(hook_paused)");
    assert_eq!(receiver.asked().len(), called, "who refuses the token is left alone");
}

#[test]
fn a_wake_is_accepted_and_nothing_more() {
    let (_dir, fleet) = fleet();
    let receiver = Receiver::start(&[("200 OK", r#"{"ok":true,"mode":"now","eventOutcome":"queued"}"#)]);
    let _hub = fleet.start_hub().unwrap();
    let _a = start_with_hooks(&fleet, &receiver);
    let file = fleet.dir().join("wake.json");
    std::fs::write(&file, r#"{"hook": "bell", "text": "rise"}"#).unwrap();
    let out = fleet
        .command("dunlin")
        .args(["submit", "--wait", "--json", "--kind", "wake", "--payload"])
        .arg(&file)
        .output()
        .unwrap();
    let task: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &task["kind"]), (Some(0), &json!("wake")), "{task:#}");
    assert_eq!(last(&task)["result"]["status"], "accepted");
    assert_eq!(last(&task)["result"]["answer"]["eventOutcome"], "queued");
    let asked = receiver.asked();
    let body: Value = serde_json::from_str(asked[0].split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((asked.len(), body), (1, json!({"text": "rise", "mode": "now"})));
}

#[test]
fn payloads_are_checked_when_they_are_submitted() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    for (kind, payload, code, field) in [
        ("llm", json!({}), "unsupported_kind", Value::Null),
        ("shell", json!({}), "invalid_payload", json!("payload.argv")),
        ("orchestrator-run", json!({}), "invalid_payload", json!("payload.steps")),
        ("orchestrator-run", json!({"steps": []}), "invalid_payload", json!("payload.steps")),
        ("orchestrator-run", json!({"steps": [{}]}), "invalid_payload", json!("payload.argv")),
        (
            "orchestrator-run",
            json!({"steps": [{"argv": ["/x"]}], "gate": []}),
            "invalid_payload",
            json!("payload.gate"),
        ),
        ("hook-dispatch", json!({"hook": "h"}), "invalid_payload", json!("payload.payload")),
        ("hook-dispatch", json!({"hook": "../h", "payload": {}}), "invalid_payload", json!("payload.hook")),
        ("hook-dispatch", json!({"hook": "h", "payload": 1}), "invalid_payload", json!("payload.payload")),
        ("wake", json!({"hook": "h", "text": ""}), "invalid_payload", json!("payload.text")),
        ("wake", json!({"hook": "h", "text": "t", "url": "u"}), "invalid_payload", json!("payload.url")),
    ] {
        let body = json!({"kind": kind, "payload": payload});
        let (status, answer) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
        let error = &answer["error"];
        assert_eq!((status, &error["code"], &error["field"]), (400, &json!(code), &field), "{body} {answer}");
    }
}

#[test]
fn what_a_job_says_of_itself_is_kept_and_summed() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let say = concat!(
        r#"echo '{"progress":40}' >> "$DUNLIN_REPORT"; until test -e go; do sleep 0.05; done; "#,
        r#"echo '{"progress":100,"tokensUsed":150,"costUnits":7,"result":{"answer":42}}' >> "$DUNLIN_REPORT""#
    );
    let id = sh(&fleet, say, json!({}));
    until("its progress is seen", || (fleet.task(&id)["attempts"][0]["progress"] == 40).then_some(()));
    std::fs::write(work(&fleet, "go"), "").unwrap();
    let task = fleet.wait_ended(&id);
    let outcome = last(&task);
    assert_eq!((&outcome["tokensUsed"], &outcome["costUnits"]), (&json!(150), &json!(7)), "{task:#}");
    assert_eq!((&outcome["progress"], &outcome["result"]), (&json!(100), &json!({"answer": 42})));
    // A link in the file's place leads nobody astray; nor does what is no JSON.
    let bad = r#"rm "$DUNLIN_REPORT"; ln -s /etc/passwd "$DUNLIN_REPORT"; exit 0"#;
    let task = fleet.wait_ended(&sh(&fleet, bad, json!({})));
    assert_eq!((Fleet::outcome(&task), &last(&task)["tokensUsed"]), ("ok".to_owned(), &Value::Null));
    let more = r#"echo '{"tokensUsed":50}' > "$DUNLIN_REPORT""#;
    fleet.wait_ended(&sh(&fleet, more, json!({})));
    let summary = fleet.get("/v1/runs/summary").unwrap();
    assert_eq!((&summary["tokensUsed"], &summary["costUnits"]), (&json!(200), &json!(7)));
}

#[test]
fn progress_keeps_a_silent_job_from_being_stuck() {
    let (_dir, fleet) = fleet_with(&format!("{}stuck_ms = 4000\n", super::FAST));
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &["--max-concurrent", "2"]).unwrap();
    let once = || json!({"maxAttempts": 1});
    let busy =
        r#"for i in 1 2 3 4 5 6 7 8 9 10; do echo "{\"progress\":$i}" >> "$DUNLIN_REPORT"; sleep 0.9; done"#;
    let (quiet, busy) = (sh(&fleet, "sleep 30", once()), sh(&fleet, busy, once()));
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&quiet)), "interrupted(lease_lost)");
    assert_eq!(Fleet::outcome(&fleet.wait_ended(&busy)), "ok");
}

#[test]
fn decisions_and_actions_leave_one_row_each() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let rows = |query: &str| fleet.get(&format!("/v1/audit?limit=500&{query}")).unwrap()["audit"].clone();
    let denied = fleet.submit(&["/bin/false", "--password=hunter2hunter2"], json!({})).unwrap();
    fleet.wait_ended(&denied);
    let allowed = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    fleet.wait_ended(&allowed);
    let of = |id: &str| rows(&format!("target={id}"));
    let codes = |id: &str| of(id).as_array().unwrap().iter().map(|r| r["code"].clone()).collect::<Vec<_>>();
    assert_eq!(codes(&denied), [json!("not_allowlisted"), json!("ok")], "newest first");
    assert_eq!(codes(&allowed), [json!("allowed"), json!("ok")]);
    assert!(!of(&denied).to_string().contains("hunter2"), "{}", of(&denied));
    assert_eq!(of(&allowed)[0]["actor"], "node:a");
    let (status, _) = fleet.call("POST", "/v1/nodes/nobody/drain", Some(&json!({}))).unwrap();
    assert_eq!(status, 404);
    let refused = rows("target=nobody");
    assert_eq!((&refused[0]["code"], &refused[0]["actor"]), (&json!("not_found"), &json!("owner")));
    assert_eq!(rows("actor=node:a&code=not_allowlisted").as_array().unwrap().len(), 1);
    assert_eq!(rows("since=99999999999999"), json!([]));
    let metrics = fleet.get("/metrics").unwrap();
    let line = "dunlin_denials_total{reason=\"not_allowlisted\"} 1";
    assert!(metrics.as_str().unwrap().contains(line), "{metrics}");
    let out = fleet.command("dunlin").args(["audit", "--code", "not_allowlisted"]).output().unwrap();
    assert!(String::from_utf8(out.stdout).unwrap().contains(&denied));
}

#[test]
fn an_overlay_narrows_at_once_and_after_a_restart_without_a_hub() {
    let (_dir, fleet) = fleet();
    let mut hub = fleet.start_hub().unwrap();
    let a = fleet.add_agent("a", &[]).unwrap();
    let push = |text: &str| {
        let file = fleet.dir().join("overlay.toml");
        std::fs::write(&file, text).unwrap();
        let out = fleet.command("dunlin").args(["policy", "push"]).arg(&file).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let version =
        |n: u64| until("the board has it", || (fleet.node("a")["policyVersion"] == n).then_some(()));
    version(0);
    push("rules = [\"sleep\", \"uname\"]\ntimeout = \"300ms\"\n");
    version(1);
    let denied = |argv: &[&str]| Fleet::outcome(&fleet.wait_ended(&fleet.submit(argv, json!({})).unwrap()));
    assert_eq!(denied(&["/usr/bin/echo", "x"]), "denied(not_allowlisted)");
    let long =
        fleet.submit(&["/usr/bin/sleep", "30"], json!({"timeoutMs": 60_000, "maxAttempts": 1})).unwrap();
    let task = fleet.wait_ended(&long);
    assert_eq!((Fleet::outcome(&task), &last(&task)["timeoutMs"]), ("timed_out(term)".into(), &json!(300)));
    // What it names and the board's file does not have is not there by that.
    push("rules = [\"root\", \"uname\"]\ntimeout = \"23h\"\njobs = 99\n");
    version(2);
    assert_eq!(denied(&["/bin/false"]), "denied(not_allowlisted)");
    hub.proc.kill();
    drop(a);
    let _a = fleet.start_agent("a").unwrap();
    let status = || std::fs::read_to_string(fleet.data("a").join("status.json")).unwrap_or_default();
    let pid = format!("\"pid\": {}", _a.proc.pid());
    until("it is there without a hub", || {
        let status = status();
        (status.contains(&pid) && status.contains("\"policyVersion\": 2")).then_some(())
    });
    let _hub = fleet.start_hub().unwrap();
    fleet.wait_health("a", "healthy");
    assert_eq!(denied(&["/usr/bin/echo", "x"]), "denied(not_allowlisted)");
    push("");
    version(3);
    assert_eq!(denied(&["/usr/bin/echo", "x"]), "ok");
}
