//! What a job cannot do on the board, and that it always dies. On real processes, as root: without, nothing of this can be
//! had, and the tests say that they were left out.

use super::{FAST, sh};
use dunlin_tests::{Agent, Fleet, Hub, until};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Users of a test's own: whoever else runs at the same time must not be killed with its jobs.
fn users(count: u32) -> Vec<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 1_000_000 + std::process::id() % 20_000 * 100 + NEXT.fetch_add(count, Ordering::Relaxed);
    (first..first + count).collect()
}

fn is_root() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        eprintln!("not root: no job can get a user or mounts of its own, so this is not tested");
    }
    root
}

/// A fleet with one board, whose policy has slots for these users and these rules.
struct Board {
    fleet: Fleet,
    agent: Option<Agent>,
    _hub: Hub,
    _dir: tempfile::TempDir,
}

impl Board {
    fn new(users: &[u32], rules: &str, env: &[(&str, &str)]) -> Self {
        Self::new_in(Path::new("/tmp"), users, rules, env)
    }

    fn new_in(parent: &Path, users: &[u32], rules: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let fleet = Fleet::new(dir.path(), Path::new(env!("CARGO_BIN_EXE_demo")), FAST).unwrap();
        let hub = fleet.start_hub().unwrap();
        let work = fleet.dir().join("work");
        chown(&work, Some(users[0]), None).unwrap();
        std::fs::set_permissions(&work, std::fs::Permissions::from_mode(0o777)).unwrap();
        let quoted: Vec<_> = users.iter().map(|u| format!("\"{u}\"")).collect();
        let policy = format!(
            "schema = 1\n[ceilings]\ntimeout = \"1m\"\ngrace = \"500ms\"\njobs = {}\n[signing]\nrequire = \"never\"\n\
             [slots]\nusers = [{}]\n[root.work]\npath = \"{}\"\n{rules}",
            users.len(),
            quoted.join(", "),
            work.display()
        );
        std::fs::write(fleet.dir().join("policy.toml"), policy).unwrap();
        fleet.enrol("a", &["--max-concurrent", &users.len().to_string()]).unwrap();
        let agent = fleet.start_agent_with("a", env).unwrap();
        Self { fleet, agent: Some(agent), _hub: hub, _dir: dir }
    }

    /// The task's outcome and report, when it has ended.
    fn ended(&self, id: &str) -> (String, Value) {
        let task = self.fleet.wait_ended(id);
        (Fleet::outcome(&task), task["attempts"].as_array().unwrap().last().unwrap()["outcome"].clone())
    }

    /// What a shell line says, and how it ended.
    fn say(&self, script: &str) -> (String, String) {
        let id = sh(&self.fleet, script, json!({"maxAttempts": 1}));
        let outcome = self.ended(&id).0;
        (outcome, self.output(&id, "stdout"))
    }

    fn output(&self, id: &str, stream: &str) -> String {
        let args: &[&str] =
            if stream == "stderr" { &["task", "logs", "--stderr", id] } else { &["task", "logs", id] };
        let said = self.fleet.command("dunlin").args(args).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    }
}

const SH: &str = "[[rule]]\nid = \"sh\"\nprogram = \"/bin/sh\"\nlauncher = true\nargs = [\"-c\", { re = '.*' }]\n\
                  cwd = [\"work\"]\ntimeout = \"20s\"\n";

/// Pids of a user's processes.
fn processes_of(uid: u32) -> Vec<i32> {
    let line = format!("\nUid:\t{uid}\t");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    pids.filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains(&line)))
        .collect()
}

/// Programs that try to outlive their end, and how that must be called.
const ESCAPES: &[(&str, &str, &[&str])] = &[
    // Each generation forks and ends.
    (
        "fork-hopper",
        "$SIG{TERM}='IGNORE'; if(!fork){ for(;;){ my $p=fork; exit 0 if $p } } sleep 100",
        &["timed_out(kill)"],
    ),
    (
        "daemon that holds stdout",
        "use POSIX; $SIG{TERM}='IGNORE'; if(!fork){ POSIX::setsid(); if(!fork){ sleep 100 } exit 0 } sleep 100",
        &["timed_out(kill)"],
    ),
    (
        "daemon without descriptors, the lead ends",
        "use POSIX; $SIG{TERM}='IGNORE'; if(!fork){ POSIX::setsid(); POSIX::close($_) for 0..63; if(!fork){ sleep 100 } POSIX::_exit(0) } sleep 1",
        &["ok"],
    ),
    ("pids bomb", "$SIG{TERM}='IGNORE'; for(;;){ fork }", &["timed_out(kill)"]),
    ("memory bomb", "my @a; push @a, 'x' x (1<<20) for 1..4096", &["oom_killed"]),
    ("stopped", "kill 'STOP', $$; sleep 100", &["timed_out(term)", "timed_out(kill)"]),
    (
        "kills its guard",
        "$|=1; $SIG{TERM}='IGNORE'; kill 'KILL', getppid or print 'refused'; sleep 100",
        &["timed_out(kill)"],
    ),
];

/// Runs every escape at once on a board on which these ways to kill are masked.
fn check_escapes(mask: &str) {
    if !is_root() {
        return;
    }
    let users = users(ESCAPES.len() as u32);
    let rule = "[[rule]]\nid = \"perl\"\nprogram = \"/usr/bin/perl\"\nlauncher = true\nargs = [\"-e\", { re = '.*' }]\n\
                timeout = \"1500ms\"\nlimits = { pids = 50, memory = \"128MiB\" }\n";
    let board = Board::new(&users, rule, &[("DUNLIN_MASK", mask)]);
    let mut ids = Vec::new();
    for (name, script, _) in ESCAPES {
        let id = board.fleet.submit(&["/usr/bin/perl", "-e", script], json!({"maxAttempts": 1})).unwrap();
        ids.push((name, id));
    }
    for ((name, id), (_, _, wanted)) in ids.iter().zip(ESCAPES) {
        let (outcome, report) = board.ended(id);
        if outcome == "denied(sandbox_unavailable)" {
            eprintln!("no limits by cgroup here, so this is not tested");
            return;
        }
        assert!(wanted.contains(&outcome.as_str()), "{name}, without {mask}: {outcome} {report:#}");
        let took = report["durationMs"].as_u64().unwrap();
        assert!(took < 1_500 + 500 + 3_000, "{name}, without {mask}: {took} ms");
        if **name == "kills its guard" {
            assert_eq!(board.output(id, "stdout"), "refused", "{mask}");
        }
        if **name == "memory bomb" {
            let peak = report["peakMemoryKib"].as_u64().unwrap();
            assert!((64 << 10..=128 << 10).contains(&peak), "{peak} KiB");
        }
    }
    for uid in users {
        assert_eq!(processes_of(uid), [0; 0], "something of user {uid} is left without {mask}");
    }
}

#[test]
fn nothing_escapes_cgroup_kill() {
    check_escapes("");
}

#[test]
fn nothing_escapes_the_freezer() {
    check_escapes("cgroup.kill");
}

#[test]
fn nothing_escapes_the_old_freezer() {
    check_escapes("cgroup.kill,cgroup.freeze");
}

#[test]
fn nothing_escapes_its_own_user() {
    check_escapes("cgroup.kill,cgroup.freeze,freezer,walk");
}

#[test]
fn without_any_way_to_kill_it_is_stuck() {
    if !is_root() {
        return;
    }
    let users = users(2);
    let board =
        Board::new(&users, SH, &[("DUNLIN_MASK", "cgroup.kill,cgroup.freeze,freezer,kill-user,walk")]);
    let id = sh(&board.fleet, "trap '' TERM; echo $$; while :; do sleep 1; done", json!({"timeoutMs": 500}));
    assert_eq!(board.ended(&id).0, "stuck");
    assert_eq!(board.say("id -u"), ("ok".to_owned(), format!("{}\n", users[1])));
    for pid in users.iter().flat_map(|uid| processes_of(*uid)) {
        let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    until("its slot is of use again", || (board.fleet.node("a")["freeSlots"] == 2).then_some(()));
}

/// What a job with everything says of its surroundings; the same with the calls of an old kernel.
fn check_confined(parent: &str, mask: &str) {
    if !is_root() {
        return;
    }
    let users = users(1);
    let rules = format!("{SH}write = [\"root:work\"]\nsandbox = \"require\"\nnetwork = false\n");
    let board = Board::new_in(Path::new(parent), &users, &rules, &[("DUNLIN_MASK", mask)]);
    board.fleet.wait_health("a", "healthy");
    let said = board.fleet.node("a")["capabilities"].to_string();
    assert!(
        said.contains("sandbox:mounts") && !(mask.contains("landlock") && said.contains("landlock")),
        "{said}"
    );
    let data = board.fleet.data("a");
    // No mode hides it.
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(data.join("canary"), "seen").unwrap();
    let data = data.display();
    let marker = format!("/tmp/dunlin-sandbox-{}", users[0]);
    for (script, want) in [
        ("id -u; id -G", format!("{0}\n{0}\n", users[0])),
        (
            "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '",
            "CapInh:0000000000000000 CapPrm:0000000000000000 CapEff:0000000000000000 CapBnd:0000000000000000 \
             CapAmb:0000000000000000 NoNewPrivs:1 Seccomp:2 "
                .to_owned(),
        ),
        ("grep SigIgn /proc/self/status | tr -d '\\t'", "SigIgn:0000000000000000\n".into()),
        // It writes where it may, and nowhere else, whatever the modes say.
        ("echo x > mine && cat mine", "x\n".into()),
        (&format!("echo x > {marker} && cat {marker}"), "x\n".into()),
        ("for d in /etc /var/tmp /run /dev /proc/sys/kernel /home; do echo x > $d/dunlin-x && echo wrote $d; done 2>&1 | grep -c wrote", "0\n".into()),
        ("echo x > /dev/null && head -c 3 /dev/zero | wc -c", "3\n".into()),
        // A program of its own does not run.
        ("cp /bin/true mine2; chmod +x mine2; ./mine2 2>/dev/null || echo refused", "refused\n".into()),
        ("ls /dev | tr '\\n' ' '", "fd full null random shm stderr stdin stdout urandom zero ".into()),
        // Nothing of the agent's own.
        (&format!("ls {data}; cat {data}/canary 2>/dev/null || echo hidden"), "scratch\nhidden\n".into()),
        ("ls /etc/dunlin 2>/dev/null | wc -l", "0\n".into()),
        (&format!("ls {data}/.. | wc -l"), "1\n".into()),
        // No way to more.
        ("unshare -U true 2>/dev/null || echo refused", "refused\n".into()),
        ("unshare -m true 2>/dev/null || echo refused", "refused\n".into()),
        ("mount -t tmpfs none /tmp 2>/dev/null || echo refused", "refused\n".into()),
        ("su -c 'id -u' 2>/dev/null || echo refused", "refused\n".into()),
        ("kill -0 $PPID 2>/dev/null || echo refused", "refused\n".into()),
        ("grep -c : /proc/net/dev; perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(\"192.0.2.1:9\") ? \"on\" : $!'", "1\nNetwork is unreachable".into()),
    ] {
        let (outcome, said) = board.say(script);
        assert!(outcome == "ok" || outcome.starts_with("exit("), "{script}: {outcome}");
        assert_eq!(said, want, "{script}");
    }
    assert!(!Path::new(&marker).exists(), "the job's /tmp is its own");
    let script = "cd && pwd && echo x > f && cat f && ls .. | wc -l";
    let id = board.fleet.submit(&["/bin/sh", "-c", script], json!({"maxAttempts": 1})).unwrap();
    assert_eq!(board.ended(&id).0, "ok");
    let said = board.output(&id, "stdout");
    assert!(said.starts_with(&format!("{data}/scratch/")) && said.ends_with("\nx\n1\n"), "{said}");
    let id = sh(&board.fleet, "true", json!({}));
    let (_, report) = board.ended(&id);
    let layers: Vec<_> = report["sandbox"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for layer in
        ["no_new_privs", "cgroup", "rlimits", "user", "mounts", "ipc", "network", "seccomp", "capabilities"]
    {
        assert!(layers.contains(&layer), "{layer} is not in {layers:?}");
    }
}

#[test]
fn a_job_is_shut_in() {
    check_confined("/var/tmp", "");
}

#[test]
fn a_job_is_shut_in_on_an_old_kernel_too() {
    check_confined("/tmp", "mount_setattr,layer:landlock,cgroup.kill,cgroup.freeze");
}

#[test]
fn landlock_alone_keeps_a_job_from_writing() {
    if !is_root() {
        return;
    }
    let users = users(1);
    let rules = format!("{SH}write = [\"root:work\"]\n");
    let board = Board::new(&users, &rules, &[("DUNLIN_MASK", "layer:mounts,layer:user")]);
    let (_, said) = board.say("echo x > mine && cat mine; echo x > /var/tmp/dunlin-x || echo refused");
    if board.fleet.node("a")["capabilities"].to_string().contains("sandbox:landlock") {
        assert_eq!(said, "x\nrefused\n");
    } else {
        eprintln!("this kernel has no Landlock, and what asks for `write` is denied: {said}");
    }
}

#[test]
fn what_is_required_and_not_there_is_denied() {
    if !is_root() {
        return;
    }
    let users = users(1);
    let more = |id: &str, arg: &str, more: &str| {
        format!("[[rule]]\nid = \"{id}\"\nprogram = \"/usr/bin/echo\"\nargs = [\"{arg}\"]\n{more}\n")
    };
    let rules = [
        more("a", "require", "sandbox = \"require\""),
        more("b", "asked", "network = false"),
        more("c", "best", "network = false\nsandbox = \"best-effort\""),
    ]
    .concat();
    let board = Board::new(&users, &rules, &[("DUNLIN_MASK", "layer:mounts,layer:network")]);
    for (arg, want) in
        [("require", "denied(sandbox_unavailable)"), ("asked", "denied(sandbox_unavailable)"), ("best", "ok")]
    {
        let id = board.fleet.submit(&["/usr/bin/echo", arg], json!({"maxAttempts": 1})).unwrap();
        let (outcome, report) = board.ended(&id);
        assert_eq!(outcome, want, "{arg}");
        assert!(!report["sandbox"].to_string().contains("mounts"), "{report:#}");
    }
}

#[test]
fn what_cannot_be_killed_is_stuck_and_the_next_job_runs() {
    if !is_root() {
        return;
    }
    let users = users(2);
    let board = Board::new(&users, SH, &[]);
    // What is frozen by somebody else does not die, like a process that waits for a disk that is gone.
    let freezer = Path::new("/sys/fs/cgroup/freezer").join(format!("dunlin-test-{}", users[0]));
    if std::fs::create_dir(&freezer).is_err() {
        eprintln!("no freezer of cgroup v1 here, so nothing can be made that cannot be killed");
        return;
    }
    let id = sh(&board.fleet, "sleep 30", json!({"maxAttempts": 1}));
    let pids = until("it runs", || Some(processes_of(users[0])).filter(|pids| !pids.is_empty()));
    let thaw = Thaw(&freezer);
    for pid in &pids {
        std::fs::write(freezer.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    until("it is frozen", || {
        let state = std::fs::read_to_string(freezer.join("freezer.state")).unwrap();
        (state.trim() == "FROZEN").then_some(())
    });
    board.fleet.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).unwrap();
    until("it is stuck", || (Fleet::outcome(&board.fleet.task(&id)) == "stuck").then_some(()));
    // The other slot goes on, and never takes the user of the first.
    for _ in 0..2 {
        assert_eq!(board.say("id -u"), ("ok".to_owned(), format!("{}\n", users[1])));
    }
    let free = || board.fleet.node("a")["freeSlots"].clone();
    assert_eq!(free(), 1, "the slot of what is stuck is not offered");
    drop(thaw);
    until("it is gone in the end", || processes_of(users[0]).is_empty().then_some(()));
    until("its slot is of use again", || (free() == 2).then_some(()));
    // What it had is cleared away with it.
    let left = |dir: &str| std::fs::read_dir(board.fleet.data("a").join(dir)).map_or(0, Iterator::count);
    assert_eq!((left("run"), left("scratch")), (0, 0));
    let _ = std::fs::remove_dir(&freezer);
}

/// Thaws in the end, whatever the test came to.
struct Thaw<'a>(&'a Path);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
    }
}

#[test]
fn limits_end_a_job_by_the_counter() {
    if !is_root() {
        return;
    }
    let users = users(2);
    let rules = format!("{SH}limits = {{ pids = 5, memory = \"64MiB\", cpu = \"50%\" }}\n");
    let board = Board::new(&users, &rules, &[]);
    let (outcome, said) = board.say("cat /proc/self/cgroup");
    if outcome == "denied(sandbox_unavailable)" {
        return eprintln!("no limits by cgroup here, so this is not tested");
    }
    assert!(said.contains("/dunlin-"), "{said}");
    let (outcome, _) = board.say("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait");
    assert_eq!(outcome, "limit_hit(pids)");
    let (outcome, _) = board.say("perl -e '$x = \"x\" x (1 << 28)'; exit 137");
    assert_eq!(outcome, "oom_killed");
    // The same status by itself is the job's own.
    assert_eq!(board.say("exit 137").0, "exit(137)");
}

#[test]
fn secrets_reach_the_job_and_nobody_else() {
    if !is_root() {
        return;
    }
    let users = users(1);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let secret = "correct-horse-battery";
    for (name, mode) in [("token", 0o400), ("open", 0o444)] {
        std::fs::write(dir.path().join(name), format!("{secret}\n")).unwrap();
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let one = |id: &str, program: &str, credential: &str| {
        format!(
            "[[rule]]\nid = \"{id}\"\nprogram = \"{program}\"\nlauncher = true\nargs = [\"-c\", {{ re = '.*' }}]\n\
             secret_env = {{ API_TOKEN = \"credential:{credential}\" }}\n"
        )
    };
    let rules =
        [one("a", "/bin/sh", "token"), one("b", "/usr/bin/sh", "open"), one("c", "/usr/bin/dash", "none")];
    let path = dir.path().display().to_string();
    let board = Board::new(&users, &rules.concat(), &[("CREDENTIALS_DIRECTORY", &path)]);
    let script = "echo ${#API_TOKEN}; printf 'correct-'; sleep 0.2; echo horse-battery.; echo correct-hors; \
                  printf \"<$API_TOKEN>\" >&2; echo $API_TOKEN | tr a-z A-Z; ls $DIR | wc -l";
    let script = script.replace("$DIR", &path);
    let id = board.fleet.submit(&["/bin/sh", "-c", &script], json!({"maxAttempts": 1})).unwrap();
    let (outcome, report) = board.ended(&id);
    assert_eq!(outcome, "ok", "{report:#}");
    assert_eq!(board.output(&id, "stdout"), "21\n[redacted].\ncorrect-hors\nCORRECT-HORSE-BATTERY\n0\n");
    assert!(board.output(&id, "stderr").starts_with("<[redacted]>"));
    for program in ["/usr/bin/sh", "/usr/bin/dash"] {
        let id = board.fleet.submit(&[program, "-c", "true"], json!({"maxAttempts": 1})).unwrap();
        assert_eq!(board.ended(&id).0, "denied(capability_missing)", "{program}");
    }
    assert!(!board.fleet.logged("a").contains(secret), "it is in the log");
}

#[test]
fn a_script_is_what_was_checked() {
    if !is_root() {
        return;
    }
    let users = users(1);
    // Where only root can put one.
    let dir = tempfile::Builder::new().prefix("dunlin-script").tempdir_in("/opt").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut rules = String::new();
    for (name, mode) in [("good", 0o755), ("open", 0o757)] {
        let path = dir.path().join(name);
        std::fs::write(&path, "echo \"$1 of $#\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        rules += &format!(
            "[[rule]]\nid = \"{name}\"\ninterpreter = \"/bin/sh\"\nscript = \"{}\"\nargs = [{{ one_of = [\"x\", \"y\"] }}]\n",
            path.display()
        );
    }
    // One that names its interpreter itself.
    let own = dir.path().join("own");
    std::fs::write(&own, "#!/bin/sh\necho \"own $1\"\n").unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    rules += &format!("[[rule]]\nid = \"own\"\nprogram = \"{}\"\nargs = [\"x\"]\n", own.display());
    let board = Board::new(&users, &rules, &[]);
    let id = board.fleet.submit(&[&own.display().to_string(), "x"], json!({"maxAttempts": 1})).unwrap();
    assert_eq!((board.ended(&id).0, board.output(&id, "stdout")), ("ok".to_owned(), "own x\n".to_owned()));
    let run = |name: &str, arg: &str| {
        let path = dir.path().join(name).display().to_string();
        let id = board.fleet.submit(&["/bin/sh", &path, arg], json!({"maxAttempts": 1})).unwrap();
        (board.ended(&id).0, board.output(&id, "stdout"))
    };
    assert_eq!(run("good", "x"), ("ok".to_owned(), "x of 1\n".to_owned()));
    assert_eq!(run("good", "z").0, "denied(argument)");
    assert_eq!(run("open", "x").0, "denied(program_untrusted)");
    assert_eq!(run("other", "x").0, "denied(argument)");
}

#[test]
fn a_slot_s_user_is_never_shared() {
    if !is_root() {
        return;
    }
    let users = users(2);
    let mut board = Board::new(&users, SH, &[]);
    let ids: Vec<_> = (0..4).map(|_| sh(&board.fleet, "id -u; sleep 0.5", json!({}))).collect();
    for id in &ids {
        assert_eq!(board.ended(id).0, "ok");
        assert!(users.iter().any(|uid| board.output(id, "stdout") == format!("{uid}\n")));
    }
    // With an agent that is killed, its jobs go too.
    let id = sh(&board.fleet, "sleep 30", json!({}));
    board.fleet.wait_state(&id, &["running"]);
    until("it runs", || (!processes_of(users[0]).is_empty()).then_some(()));
    board.agent.take().unwrap().proc.kill();
    until("its guard has killed it", || processes_of(users[0]).is_empty().then_some(()));
}
