//! The operator's command line: a client of the API, and nothing that the API cannot do.

mod args;
mod client;
mod hub_url;
mod key;
mod policy;
mod show;
mod sign;
mod top;
mod trust;
mod wait;
mod work;

use args::{Cli, Command, NodeCommand, SubmitArgs, TaskCommand};
use clap::Parser;
use client::{Client, Failure};
use key::KeysCommand;
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;

/// Runs `dunlin` with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let done = match cli.command {
        // These need no hub, and no token for it.
        Command::Key { command } => key::key(command).map(|()| 0),
        Command::Keys { command: command @ KeysCommand::Make { .. } } => key::make(command).map(|()| 0),
        Command::Bundle(args) => sign::bundle(*args),
        command => Client::new(cli.target).and_then(|client| run(&client, command)),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("dunlin: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(client: &Client, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Submit(args) => return submit(client, *args),
        Command::Tasks { state, node, tag, limit, json } => {
            let mut query = vec![format!("limit={limit}")];
            let given = [("state", state), ("node", node), ("tag", tag)];
            query.extend(given.into_iter().filter_map(|(k, v)| v.map(|v| format!("{k}={v}"))));
            let page = client.get(&format!("/v1/tasks?{}", query.join("&")))?;
            show::tasks(&page["tasks"], json);
        }
        Command::Dlq { json } => show::tasks(&client.get("/v1/dlq?limit=500")?["tasks"], json),
        Command::Audit { actor, target, code, since, limit, json } => {
            let mut query = vec![format!("limit={limit}")];
            let since = since.map(|since| since.to_string());
            let given = [("actor", actor), ("target", target), ("code", code), ("since", since)];
            query.extend(given.into_iter().filter_map(|(k, v)| v.map(|v| format!("{k}={v}"))));
            show::audit(&client.get(&format!("/v1/audit?{}", query.join("&")))?["audit"], json);
        }
        Command::Top { once } => top::run(client, once)?,
        Command::Nodes { json } => show::nodes(&client.get("/v1/nodes")?["nodes"], json),
        Command::Task { command } => task(client, command)?,
        Command::Node { command } => node(client, command)?,
        Command::Watch { since, json } => {
            let newest = client.get("/v1/events?since=0")?["newest"].as_u64().unwrap_or(0);
            client.events(since.unwrap_or(newest), |event| {
                show::event(event, json);
                true
            })?;
        }
        Command::Keys { command: KeysCommand::Push { file } } => key::push(client, &file)?,
        Command::Key { .. } | Command::Keys { .. } | Command::Bundle(_) => {}
        Command::Policy { command: policy::PolicyCommand::Push { file, node } } => {
            policy::push(client, &file, node.as_deref())?;
        }
        Command::Halt => {
            let answer = client.post("/v1/fleet/halt", &json!({}))?;
            println!("halted; {} tasks cancelled, the queue is kept", answer["cancelled"]);
        }
        Command::Resume => {
            client.post("/v1/fleet/resume", &json!({}))?;
            println!("resumed");
        }
    }
    Ok(0)
}

fn submit(client: &Client, args: SubmitArgs) -> Result<u8, Failure> {
    let since = match args.wait {
        true => client.get("/v1/events?since=0")?["newest"].as_u64().unwrap_or(0),
        false => 0,
    };
    let answer = client.post("/v1/tasks", &body(&args)?)?;
    let id = answer["taskId"].as_str().unwrap_or_default().to_owned();
    if !args.wait {
        if args.json {
            println!("{answer:#}");
        } else {
            println!("{id}");
        }
        return Ok(0);
    }
    let ended = wait::until_ended(client, &id, since, !args.json)?;
    if args.json {
        println!("{ended:#}");
    }
    Ok(wait::exit_code(&ended))
}

fn body(args: &SubmitArgs) -> Result<Value, Failure> {
    let job = &args.job;
    let env: serde_json::Map<_, _> = job.variables()?.into_iter().map(|(k, v)| (k, v.into())).collect();
    let given = args.payload.as_deref().map(payload).transpose()?;
    let signed = args.sign.envelope(job, || work::of(&args.kind, given.clone(), job))?;
    let mut kind = args.kind.as_str();
    let mut payload = given.unwrap_or_else(|| json!({"argv": job.argv, "cwd": job.cwd, "env": env}));
    if let Some(declared) = work::declared(job)? {
        kind = "actuation";
        payload["target"] = declared.target.as_str().into();
        payload["tier"] = declared.tier.as_str().into();
        payload["evidence"] = job.actuate.evidence.clone().into();
        payload["verifiedBy"] = job.actuate.verified_by.clone().into();
    }
    let mut body = json!({
        "kind": kind,
        "payload": payload,
        "requiredTags": args.tag,
        "requires": args.require,
    });
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body[name] = value;
        }
    };
    let priority = args.priority.as_ref().map(|p| p.parse::<i64>().map_or_else(|_| json!(p), |n| json!(n)));
    set("targetNodeId", args.node.clone().map(Value::from));
    set("priority", priority);
    set("ttlMs", args.ttl.map(Value::from));
    set("onDisconnect", args.on_disconnect.clone().map(Value::from));
    match signed {
        Some(envelope) => {
            let envelope = data_encoding::BASE64URL_NOPAD.encode(&envelope);
            set("kind", Some("signed".into()));
            set("payload", Some(json!({"envelope": envelope})));
        }
        // Of a signed job these are in the envelope.
        None => {
            set("taskId", job.task_id.clone().map(Value::from));
            set("timeoutMs", job.timeout.map(Value::from));
            set("maxAttempts", job.max_attempts.map(Value::from));
            set("delivery", job.delivery.clone().map(Value::from));
        }
    }
    Ok(body)
}

/// A job's payload from a file, or from stdin.
fn payload(file: &std::path::Path) -> Result<Value, Failure> {
    let named = |e: &dyn std::fmt::Display| Failure::Usage(format!("--payload {}: {e}", file.display()));
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    serde_json::from_str(&text.map_err(|e| named(&e))?).map_err(|e| named(&e))
}

fn task(client: &Client, command: TaskCommand) -> Result<(), Failure> {
    let none = json!({});
    match command {
        TaskCommand::Show { id, json } => show::task(&client.get(&format!("/v1/tasks/{id}"))?, json),
        TaskCommand::Cancel { id } => {
            client.post(&format!("/v1/tasks/{id}/cancel"), &none)?;
            println!("{id} cancelled");
        }
        TaskCommand::Retry { id } => {
            client.post(&format!("/v1/tasks/{id}/retry"), &none)?;
            println!("{id} queued again");
        }
        TaskCommand::Logs { id, stderr, attempt, follow: true, json } => {
            let stream = if stderr { "stderr" } else { "stdout" };
            let attempt = attempt.map_or(String::new(), |n| format!("&attempt={n}"));
            wait::follow(client, &format!("/v1/tasks/{id}/output/follow?stream={stream}{attempt}"), json)?;
        }
        TaskCommand::Logs { id, stderr, attempt, .. } => {
            let task = client.get(&format!("/v1/tasks/{id}"))?;
            let last = task["attempt"].as_u64().unwrap_or(0);
            let stream = if stderr { "stderr" } else { "stdout" };
            let mut offset = 0;
            loop {
                let piece = client.output(&id, attempt.unwrap_or(last), stream, offset)?;
                if piece.bytes.is_empty() || std::io::stdout().write_all(&piece.bytes).is_err() {
                    break;
                }
                offset = piece.next;
            }
        }
        TaskCommand::Why { id, json } => {
            let why = client.get(&format!("/v1/tasks/{id}/why"))?;
            if json {
                println!("{why:#}");
            } else {
                println!("{id} is {}", why["status"].as_str().unwrap_or("?"));
                for reason in why["reasons"].as_array().into_iter().flatten() {
                    println!("  {}", reason["message"].as_str().unwrap_or_default());
                }
            }
        }
    }
    Ok(())
}

fn node(client: &Client, command: NodeCommand) -> Result<(), Failure> {
    let none = json!({});
    match command {
        NodeCommand::Invite { name, tag, max_concurrent, profile, role, region, ttl, json } => {
            let mut body = json!({"name": name, "tags": tag, "maxConcurrentTasks": max_concurrent});
            for (field, value) in [("profile", profile), ("role", role), ("region", region)] {
                if let Some(value) = value {
                    body[field] = value.into();
                }
            }
            if let Some(ttl) = ttl {
                body["ttlMs"] = ttl.into();
            }
            let answer = client.post("/v1/invites", &body)?;
            if json {
                println!("{answer:#}");
            } else {
                println!("{}", answer["ticket"].as_str().unwrap_or_default());
            }
        }
        NodeCommand::Show { name, json } => show::node(&client.get(&format!("/v1/nodes/{name}"))?, json),
        NodeCommand::Drain { name } => {
            client.post(&format!("/v1/nodes/{name}/drain"), &none)?;
            println!("{name} is draining: it ends what it has and gets nothing new");
        }
        NodeCommand::Undrain { name } => {
            client.post(&format!("/v1/nodes/{name}/undrain"), &none)?;
            println!("{name} takes work again");
        }
        NodeCommand::ReportDown { name } => {
            let answer = client.post(&format!("/v1/nodes/{name}/report-down"), &none)?;
            match answer["honoured"].as_bool() {
                Some(true) => println!("{name} did not answer: it is offline"),
                _ => println!("{name} answered: it is {}", answer["health"].as_str().unwrap_or("?")),
            }
        }
        NodeCommand::Revoke { name } => {
            client.post(&format!("/v1/nodes/{name}/revoke"), &none)?;
            println!("{name} is revoked: its key will never be let in again");
        }
    }
    Ok(())
}
