//! The API: bad input, repeated input, tokens, rates, the event stream.

use super::{fleet, fleet_with};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

#[test]
fn bad_input_names_the_field_and_loses_nothing() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let argv = json!({"argv": ["/usr/bin/uname"]});
    let with = |name: &str, value: Value| {
        let mut body = json!({"payload": argv});
        body[name] = value;
        body
    };
    for (body, field) in [
        (json!({}), "payload"),
        (json!({"payload": {}}), "payload.argv"),
        (json!({"payload": {"argv": []}}), "payload.argv"),
        (json!({"payload": {"argv": ["/x"], "shell": true}}), "payload.shell"),
        (json!({"payload": {"argv": ["/x"], "env": {"A": 1}}}), "payload.env.A"),
        (with("maxAttempts", json!(0)), "maxAttempts"),
        (with("maxAttempts", json!(11)), "maxAttempts"),
        (with("timeoutMs", json!(99)), "timeoutMs"),
        (with("timeoutMs", json!(86_400_001)), "timeoutMs"),
        (with("priority", json!(101)), "priority"),
        (with("priority", json!("soon")), "priority"),
        (with("taskId", json!("a b")), "taskId"),
        (with("requiredTags", json!(["a b"])), "requiredTags"),
        (with("onDisconnect", json!("panic")), "onDisconnect"),
        (with("delivery", json!("exactlyOnce")), "delivery"),
        (with("retries", json!(3)), "retries"),
    ] {
        let (status, answer) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
        assert_eq!((status, &answer["error"]["field"]), (400, &json!(field)), "{body}: {answer}");
    }
    let (status, answer) = fleet.call("POST", "/v1/tasks", Some(&with("kind", json!("llm")))).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("unsupported_kind")));
    let (status, answer) =
        fleet.call("POST", "/v1/tasks", Some(&with("x", json!("y".repeat(1 << 20))))).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("body_too_large")), "{answer}");
    for path in [
        "/v1/tasks/none",
        "/v1/nodes/none",
        "/v1/dlq/none",
        "/v1/tasks/none/why",
        "/v1/tasks/none/output",
        "/x",
    ] {
        assert_eq!(fleet.call("GET", path, None).unwrap().0, 404, "{path}");
    }
    for path in ["/v1/tasks?state=sleeping", "/v1/tasks?limit=0", "/v1/tasks?colour=red", "/v1/tasks?node=A"]
    {
        assert_eq!(fleet.call("GET", path, None).unwrap().0, 400, "{path}");
    }
    assert_eq!(fleet.call("DELETE", "/v1/tasks", None).unwrap().0, 405);
    assert_eq!(fleet.get("/v1/runs/summary").unwrap()["total"], 0, "nothing of that was stored");
}

#[test]
fn a_submission_is_idempotent_by_its_id() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let body = json!({"taskId": "once", "payload": {"argv": ["/usr/bin/uname", "-a"]}});
    let (status, first) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
    assert_eq!((status, &first["duplicate"]), (201, &json!(false)));
    let (status, second) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
    assert_eq!((status, &second["duplicate"]), (200, &json!(true)));
    let other = json!({"taskId": "once", "payload": {"argv": ["/usr/bin/uname"]}});
    let (status, third) = fleet.call("POST", "/v1/tasks", Some(&other)).unwrap();
    assert_eq!((status, &third["error"]["code"]), (409, &json!("task_exists")));
    let _a = fleet.add_agent("a", &[]).unwrap();
    fleet.wait_ended("once");
    let (status, done) = fleet.call("POST", "/v1/tasks", Some(&body)).unwrap();
    assert_eq!(
        (status, &done["status"], &done["attempt"]),
        (200, &json!("done"), &json!(1)),
        "it is not run again"
    );
    for action in ["cancel", "retry"] {
        let (status, refused) =
            fleet.call("POST", &format!("/v1/tasks/once/{action}"), Some(&json!({}))).unwrap();
        assert_eq!((status, &refused["error"]["state"]), (409, &json!("done")), "{action}: {refused}");
    }
}

/// One request without the harness: status and headers.
fn raw(fleet: &dunlin_tests::Fleet, head: &str) -> String {
    let mut stream = TcpStream::connect(fleet.url().trim_start_matches("http://")).unwrap();
    stream.write_all(format!("{head}\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn every_read_needs_a_token() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    for path in ["/v1/tasks", "/v1/nodes", "/metrics", "/v1/events", "/v1/audit", "/nowhere"] {
        let answer = raw(&fleet, &format!("GET {path} HTTP/1.1"));
        assert!(
            answer.starts_with("HTTP/1.1 401") && answer.to_lowercase().contains("www-authenticate: bearer"),
            "{answer}"
        );
        let answer = raw(&fleet, &format!("GET {path} HTTP/1.1\r\nauthorization: Bearer dunlin_00"));
        assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
    }
    assert!(raw(&fleet, "GET /health HTTP/1.1").starts_with("HTTP/1.1 200"));
    let mode = std::os::unix::fs::MetadataExt::mode(
        &std::fs::metadata(fleet.dir().join("hub/owner.token")).unwrap(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_token_s_rate_is_limited_and_agents_are_not() {
    let (_dir, fleet) = fleet_with("[api]\nrate_per_s = 5\nburst = 20\n[timing]\nheartbeat_ms = 500\n");
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let answers: Vec<u16> = (0..60).map(|_| fleet.call("GET", "/v1/tasks", None).unwrap().0).collect();
    assert!(answers.contains(&429) && answers.iter().all(|s| [200, 429].contains(s)), "{answers:?}");
    let token = std::fs::read_to_string(fleet.dir().join("hub/owner.token")).unwrap();
    let answer = (0..60)
        .map(|_| raw(&fleet, &format!("GET /v1/nodes HTTP/1.1\r\nauthorization: Bearer {}", token.trim())));
    let limited = answer.into_iter().find(|a| a.starts_with("HTTP/1.1 429")).unwrap();
    assert!(limited.to_lowercase().contains("retry-after: "), "{limited}");
    dunlin_tests::until("the agent is still there", || {
        let (status, node) = fleet.call("GET", "/v1/nodes/a", None).unwrap();
        (status == 200).then(|| assert_eq!(node["health"], "healthy"))
    });
}

/// Ids and kinds of `n` events, read as a stream.
fn stream(fleet: &dunlin_tests::Fleet, last: u64, n: usize) -> Vec<(u64, String)> {
    let token = std::fs::read_to_string(fleet.dir().join("hub/owner.token")).unwrap();
    let mut stream = TcpStream::connect(fleet.url().trim_start_matches("http://")).unwrap();
    let head = format!(
        "GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nlast-event-id: {last}\r\n\r\n",
        token.trim()
    );
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut id = 0;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        if let Some(text) = line.strip_prefix("id: ") {
            id = text.parse().unwrap();
        }
        if let Some(kind) = line.strip_prefix("event: ") {
            seen.push((id, kind.to_owned()));
        }
        if seen.len() == n && line.is_empty() {
            break;
        }
    }
    seen
}

#[test]
fn events_have_no_gaps_and_resume_after_a_restart() {
    let (_dir, fleet) = fleet();
    let hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let id = fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    fleet.wait_ended(&id);
    let all = stream(&fleet, 0, 6);
    assert_eq!(
        all.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6].map(|n: u64| if n == 1 { all[0].0 } else { n })
    );
    let kinds: Vec<&str> = all.iter().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["node.registered", "node.up", "task.enqueued", "task.claimed", "task.running", "task.done"]
    );
    drop(hub);
    let _hub = fleet.start_hub().unwrap();
    fleet.submit(&["/usr/bin/uname", "-a"], json!({})).unwrap();
    let rest = stream(&fleet, 4, 3);
    assert_eq!(rest[..2], [(5, "task.running".to_owned()), (6, "task.done".to_owned())]);
    assert_eq!(rest[2].0, 7, "the ids go on");
}

#[test]
fn output_can_be_read_in_ranges() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let _a = fleet.add_agent("a", &[]).unwrap();
    let id = fleet.submit(&["/usr/bin/echo", "0123456789"], json!({})).unwrap();
    fleet.wait_ended(&id);
    let token = std::fs::read_to_string(fleet.dir().join("hub/owner.token")).unwrap();
    let get = |more: &str| {
        raw(
            &fleet,
            &format!("GET /v1/tasks/{id}/output HTTP/1.1\r\nauthorization: Bearer {}{more}", token.trim()),
        )
    };
    assert!(get("").ends_with("\r\n\r\n0123456789\n"));
    let part = get("\r\nrange: bytes=2-4");
    assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\n234"), "{part}");
    assert!(part.to_lowercase().contains("content-range: bytes 2-4/11"), "{part}");
    assert!(get("\r\nrange: bytes=99-").starts_with("HTTP/1.1 416"));
}
