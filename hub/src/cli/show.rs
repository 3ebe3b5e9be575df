//! How things look on a terminal. What came from a board is escaped: a name must not move the cursor.

use serde_json::Value;

/// Prints rows under a head, each column as wide as it must be.
fn table(head: &[&str], rows: &[Vec<String>]) {
    let width =
        |at: usize| rows.iter().map(|r| r[at].chars().count()).chain([head[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(&head.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.chars().flat_map(plain).collect(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn plain(c: char) -> Vec<char> {
    let unsafe_char = c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if unsafe_char { c.escape_unicode().collect() } else { vec![c] }
}

/// The outcome of the latest attempt.
fn outcome(task: &Value) -> String {
    let outcome = task["attempts"].as_array().and_then(|a| a.last()).map(|a| &a["outcome"]);
    match outcome {
        Some(o) if o.is_object() => {
            let detail = text(&o["detail"]);
            let code = text(&o["code"]);
            if detail.is_empty() { code } else { format!("{code}({detail})") }
        }
        _ => "-".into(),
    }
}

pub(super) fn tasks(tasks: &Value, json: bool) {
    if json {
        return println!("{tasks:#}");
    }
    let row = |t: &Value| {
        let argv = text(&t["payload"]["argv"]).replace(',', " ");
        let argv: String = argv.chars().take(48).collect();
        let attempt = format!("{}/{}", t["attempt"], t["maxAttempts"]);
        vec![text(&t["taskId"]), text(&t["status"]), attempt, text(&t["nodeId"]), outcome(t), argv]
    };
    let rows: Vec<_> = tasks.as_array().into_iter().flatten().map(row).collect();
    table(&["TASK", "STATE", "ATTEMPT", "NODE", "OUTCOME", "ARGV"], &rows);
}

pub(super) fn nodes(nodes: &Value, json: bool) {
    if json {
        return println!("{nodes:#}");
    }
    let row = |n: &Value| {
        let held = |name: &str| n[name].as_array().map_or(0, Vec::len);
        let load = format!("{}/{}", held("claimed") + held("running"), n["maxConcurrentTasks"]);
        let health = if n["cloned"] == true {
            "held: cloned".into()
        } else if n["draining"] == true {
            format!("{} draining", text(&n["health"]))
        } else {
            text(&n["health"])
        };
        let silent = n["silentMs"].as_u64().map_or("-".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        vec![text(&n["nodeId"]), text(&n["state"]), health, load, silent, text(&n["role"]), text(&n["tags"])]
    };
    let rows: Vec<_> = nodes.as_array().into_iter().flatten().map(row).collect();
    table(&["NODE", "STATE", "HEALTH", "LOAD", "HEARD", "ROLE", "TAGS"], &rows);
}

pub(super) fn audit(rows: &Value, json: bool) {
    if json {
        return println!("{rows:#}");
    }
    let row = |r: &Value| ["at", "actor", "action", "target", "code", "detail"].map(|n| text(&r[n])).to_vec();
    let rows: Vec<_> = rows.as_array().into_iter().flatten().map(row).collect();
    table(&["AT", "ACTOR", "ACTION", "TARGET", "CODE", "DETAIL"], &rows);
}

fn fields(value: &Value, skip: &[&str]) {
    for (name, value) in value.as_object().into_iter().flatten().filter(|(n, _)| !skip.contains(&n.as_str()))
    {
        println!("{name:<20} {}", text(value));
    }
}

pub(super) fn task(task: &Value, json: bool) {
    if json {
        return println!("{task:#}");
    }
    fields(task, &["attempts"]);
    let row = |a: &Value| {
        let o = &a["outcome"];
        let took = o["durationMs"].as_u64().map_or("-".into(), |ms| format!("{ms} ms"));
        let ended =
            if o.is_null() { "-".into() } else { format!("{} {}", text(&o["code"]), text(&o["detail"])) };
        vec![text(&a["attempt"]), text(&a["nodeId"]), text(&a["fence"]), ended, took, text(&o["rule"])]
    };
    let rows: Vec<_> = task["attempts"].as_array().into_iter().flatten().map(row).collect();
    println!();
    table(&["ATTEMPT", "NODE", "FENCE", "OUTCOME", "TOOK", "RULE"], &rows);
    for attempt in task["attempts"].as_array().into_iter().flatten() {
        let peaks = peaks(&attempt["outcome"]);
        if !peaks.is_empty() {
            println!("attempt {}: {peaks}", text(&attempt["attempt"]));
        }
    }
}

/// What the board was like during an attempt, as far as that is known.
fn peaks(outcome: &Value) -> String {
    let shown = [
        ("peakGpuPermille", "GPU up to", 10.0, "%"),
        ("peakBoardMemoryMib", "memory of the board in use up to", 1.0, "MiB"),
        ("peakGpuMemoryMib", "its own GPU memory up to", 1.0, "MiB"),
        ("energyMwh", "the board drew", 1000.0, "Wh"),
    ];
    let known = shown.iter().filter_map(|(name, what, by, unit)| {
        Some(format!("{what} {} {unit}", outcome[*name].as_f64()? / by))
    });
    known.collect::<Vec<_>>().join(", ")
}

pub(super) fn node(node: &Value, json: bool) {
    if json {
        return println!("{node:#}");
    }
    fields(node, &["alarms"]);
    for alarm in node["alarms"].as_array().into_iter().flatten() {
        println!("{:<20} {}", "alarm", self::alarm(alarm));
    }
}

/// `hot tj: 3 since the hub started, the last at 1700000000000`, in milliseconds since the epoch like every time here.
fn alarm(alarm: &Value) -> String {
    let place = alarm["place"].as_str().map(|_| format!(" {}", text(&alarm["place"]))).unwrap_or_default();
    let at = text(&alarm["lastAt"]);
    format!(
        "{}{place}: {} since the hub started, the last at {at}",
        text(&alarm["kind"]),
        text(&alarm["count"])
    )
}

pub(super) fn event(event: &Value, json: bool) {
    if json {
        return println!("{event}");
    }
    let parts = ["taskId", "nodeId", "attempt", "detail"].iter().filter(|n| !event[**n].is_null());
    let rest: Vec<String> = parts.map(|n| text(&event[*n])).collect();
    println!("{:>6}  {:<18} {}", text(&event["id"]), text(&event["kind"]), rest.join("  "));
}
