//! The agent's two roles as two processes: an uplink without rights, and an executor that believes nothing it is told.

use super::{fleet, runs, sh};
use dunlin_agent::exec::Executor;
use dunlin_agent::exec::message::{Decision, EndCause, FromExec, PolicyState, ToExec, Work};
use dunlin_tests::{Agent, Fleet, Proc, until};
use dunlin_wire::Fence;
use dunlin_wire::job::{CancelledBy, Denial, Interruption, Job, Outcome, Shell, Stream, layer};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(30);

fn socket(fleet: &Fleet) -> PathBuf {
    fleet.dir().join("exec.sock")
}

/// An executor by itself, ready to be connected to.
fn start_executor(fleet: &Fleet, peer: &str) -> Proc {
    let mut command = fleet.command("dunlin-agent");
    command.args(["exec", "--peer", peer, "--data"]).arg(fleet.dir().join("exec"));
    command.arg("--policy").arg(fleet.dir().join("policy.toml")).arg("--socket").arg(socket(fleet));
    // One that was killed leaves its socket behind, where nobody listens.
    let inode = || std::fs::metadata(socket(fleet)).ok().map(|socket| socket.ino());
    let left = inode();
    let exec = fleet.spawn("exec", command).unwrap();
    until("the executor listens", || inode().filter(|inode| Some(*inode) != left));
    exec
}

fn start_uplink(fleet: &Fleet, name: &str) -> Agent {
    let text = format!("socket = {:?}\n", socket(fleet).display().to_string());
    std::fs::write(fleet.agent_config(name), text).unwrap();
    fleet.start_uplink(name).unwrap()
}

fn me() -> String {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() }.to_string()
}

/// An uplink in somebody else's hands: it says what it likes.
struct Hostile {
    exec: Executor,
    said: mpsc::Receiver<Option<FromExec>>,
    policy: PolicyState,
}

impl Hostile {
    fn new(fleet: &Fleet) -> Self {
        let (tell, said) = mpsc::channel();
        let exec = Executor::connect(&socket(fleet), Box::new(move |m| drop(tell.send(m)))).unwrap();
        let Ok(Some(FromExec::Policy(policy))) = said.recv_timeout(WAIT) else { panic!("no policy") };
        Self { exec, said, policy }
    }

    fn next(&self) -> Option<FromExec> {
        self.said.recv_timeout(WAIT).unwrap()
    }

    fn prepare(&self, fence: u64, argv: &[&str]) -> Result<(), Denial> {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        let job = Job::Shell(Shell { argv, cwd: None, env: vec![] });
        let fence = Fence(fence);
        let work = Work { task: "t".parse().unwrap(), fence, attempt: 1, job, timeout_ms: None };
        self.exec.send(ToExec::Prepare(Box::new(work)));
        loop {
            match self.next() {
                Some(FromExec::Prepared { fence: of, decision }) if of == fence => {
                    return match decision {
                        Decision::Allow { .. } => Ok(()),
                        Decision::Deny(report) => match report.outcome {
                            Outcome::Denied { reason } => Err(reason),
                            other => panic!("{other}"),
                        },
                    };
                }
                Some(_) => {}
                None => panic!("the executor is gone"),
            }
        }
    }

    fn ended(&self, fence: u64) -> (Outcome, [Vec<u8>; 2]) {
        loop {
            match self.next() {
                Some(FromExec::Ended { fence: of, report, kept }) if of == Fence(fence) => {
                    return (report.outcome, kept);
                }
                Some(_) => {}
                None => panic!("the executor is gone"),
            }
        }
    }
}

#[test]
fn two_processes_run_a_job_and_each_outlives_the_other() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    let mut exec = start_executor(&fleet, &me());
    fleet.enrol("a", &[]).unwrap();
    let mut uplink = start_uplink(&fleet, "a");
    let id = sh(&fleet, "echo one; echo two >&2", json!({}));
    assert_eq!(fleet.wait_ended(&id)["status"], "done");
    // The uplink dies: its jobs do, too, and the next uplink finds them gone.
    let id = sh(&fleet, "sleep 77.11; echo no", json!({}));
    fleet.wait_state(&id, &["running"]);
    uplink.proc.kill();
    until("its job is gone", || (!runs("77.11")).then_some(()));
    assert!(exec.is_running());
    let mut uplink = start_uplink(&fleet, "a");
    let id2 = sh(&fleet, "echo again", json!({}));
    assert_eq!(fleet.wait_ended(&id2)["status"], "done");
    fleet.call("POST", &format!("/v1/tasks/{id}/cancel"), Some(&json!({}))).unwrap();
    fleet.wait_ended(&id);
    // The executor dies: so do its jobs, and the uplink ends to be started again.
    let id = sh(&fleet, "sleep 77.12; echo no", json!({"maxAttempts": 2}));
    fleet.wait_state(&id, &["running"]);
    exec.kill();
    assert_eq!(uplink.proc.wait(), Some(69));
    assert!(fleet.logged("a").contains("the executor is gone"), "{}", fleet.logged("a"));
    until("its job is gone", || (!runs("77.12")).then_some(()));
    let mut exec = start_executor(&fleet, &me());
    let mut uplink = start_uplink(&fleet, "a");
    until("its second attempt", || (fleet.task(&id)["attempts"].as_array()?.len() == 2).then_some(()));
    let first = &fleet.task(&id)["attempts"][0];
    assert_eq!(first["outcome"]["code"], "interrupted", "{first}");
    // In order: the uplink first.
    fleet.wait_state(&id, &["running"]);
    uplink.proc.signal("TERM");
    assert_eq!(uplink.proc.wait(), Some(0));
    exec.signal("TERM");
    assert_eq!(exec.wait(), Some(0));
    assert!(!runs("77.12"));
}

#[test]
fn without_an_executor_the_uplink_says_what_to_do() {
    let (_dir, fleet) = fleet();
    let _hub = fleet.start_hub().unwrap();
    fleet.enrol("a", &[]).unwrap();
    let mut uplink = start_uplink(&fleet, "a");
    assert_eq!(uplink.proc.wait(), Some(69));
    let said = fleet.logged("a");
    assert!(said.contains("exec.sock") && said.contains("--with-exec"), "{said}");
    let out = fleet.command("dunlin-agent").args(["exec", "--peer", "nobody-of-that-name"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(69) && said.contains("--peer USER"), "{said}");
}

#[test]
fn a_hostile_uplink_starts_only_what_the_policy_allows() {
    let (_dir, fleet) = fleet();
    let mut exec = start_executor(&fleet, &me());
    let uplink = Hostile::new(&fleet);
    assert!(uplink.policy.error.is_none());
    assert_eq!(uplink.prepare(1, &["/bin/cat", "/etc/shadow"]), Err(Denial::NotAllowlisted));
    assert_eq!(uplink.prepare(1, &["/bin/sh", "-c", "a\0b"]), Err(Denial::ArgumentNul));
    // Out of order: nothing was prepared, so nothing starts, and nothing is extended, ended or forgotten.
    for message in [
        ToExec::Start { fence: Fence(7), lease_until: u64::MAX },
        ToExec::Extend { fence: Fence(7), lease_until: u64::MAX },
        ToExec::End { fence: Fence(7), cause: EndCause::Cancelled(CancelledBy::Operator) },
        ToExec::Forget { fence: Fence(7) },
    ] {
        uplink.exec.send(message);
    }
    // The same once more, prepared or running, is no second job.
    assert_eq!(uplink.prepare(2, &["/usr/bin/sleep", "77.21"]), Ok(()));
    assert_eq!(uplink.prepare(2, &["/usr/bin/sleep", "77.21"]), Err(Denial::Malformed));
    let start = ToExec::Start { fence: Fence(2), lease_until: u64::MAX };
    uplink.exec.send(start.clone());
    uplink.exec.send(start);
    assert_eq!(uplink.prepare(2, &["/usr/bin/sleep", "77.21"]), Err(Denial::Malformed));
    // A lease without end does not outlive the rule's ceiling, and a lease that is over is none.
    assert_eq!(uplink.prepare(3, &["/usr/bin/sleep", "77.22"]), Ok(()));
    uplink.exec.send(ToExec::Start { fence: Fence(3), lease_until: 1 });
    let (outcome, _) = uplink.ended(3);
    assert_eq!(outcome, Outcome::Interrupted { by: Interruption::LeaseLost });
    // More than there are slots for.
    let busy = (10..).map(|fence| uplink.prepare(fence, &["/usr/bin/sleep", "1"])).find(Result::is_err);
    assert_eq!(busy, Some(Err(Denial::Busy)));
    // While this one is served nobody else is, and what is not of the protocol ends the connection and its jobs.
    let second = Executor::connect(&socket(&fleet), Box::new(|_| {}));
    assert!(second.is_err());
    until("the job runs", || runs("77.21").then_some(()));
    drop(uplink);
    until("its jobs are gone", || (!runs("77.21")).then_some(()));
    for garbage in [vec![0xff; 100], vec![0; 190_000], vec![9], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let raw = raw_client(&fleet);
        send(&raw, &garbage);
        until("it is put out", || received(&raw).is_empty().then_some(()));
    }
    assert!(exec.is_running());
    let uplink = Hostile::new(&fleet);
    assert_eq!(uplink.prepare(1, &["/usr/bin/uname", "-a"]), Ok(()));
}

/// What there is for attempts: guards, directories, cgroups.
fn made(fleet: &Fleet, exec: &Proc) -> Vec<String> {
    let data = fleet.dir().join("exec");
    let names =
        |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = names(data.join("run")).chain(names(data.join("scratch"))).collect();
    let prefix = dunlin_agent::exec::prefix(&data);
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = left.pop() {
        for path in names(dir).filter(|path| path.is_dir() && !path.is_symlink()) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                found.push(path.clone());
            }
            left.push(path);
        }
    }
    let mut found: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
    found.extend(guards(exec).iter().map(|pid| format!("process {pid}")));
    found
}

/// Children of the executor.
fn guards(exec: &Proc) -> Vec<u32> {
    let pid = exec.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// The guard that waits for a start, when it has what its job will be in.
fn waiting_guard(exec: &Proc) -> u32 {
    let own = std::fs::read_link(format!("/proc/{}/ns/ipc", exec.pid())).unwrap();
    until("a guard waits with namespaces of its own", || {
        let guard = guards(exec).first().copied()?;
        let is_root = me() == "0";
        let apart = std::fs::read_link(format!("/proc/{guard}/ns/ipc")).is_ok_and(|ipc| ipc != own);
        (apart || !is_root).then_some(guard)
    })
}

#[test]
fn what_was_made_for_a_job_that_is_not_started_is_gone_with_it() {
    let (_dir, fleet) = fleet();
    let mut exec = start_executor(&fleet, &me());
    let uplink = Hostile::new(&fleet);
    let gone = |exec: &Proc| until("nothing of it is left", || made(&fleet, exec).is_empty().then_some(()));
    let prepare = |uplink: &Hostile, exec: &Proc| {
        assert_eq!(uplink.prepare(1, &["/usr/bin/sleep", "77.31"]), Ok(()));
        let guard = waiting_guard(exec);
        if uplink.policy.layers & layer::CGROUP != 0 {
            let is_there = |exec| made(&fleet, exec).iter().any(|path| path.starts_with("/sys"));
            until("its cgroup is there", || is_there(exec).then_some(()));
        }
        assert!(!runs("77.31"), "before its start nothing of a job runs");
        guard
    };
    // It is forgotten, at any moment, and granted again.
    for _ in 0..20 {
        assert_eq!(uplink.prepare(1, &["/usr/bin/sleep", "77.31"]), Ok(()));
        uplink.exec.send(ToExec::Forget { fence: Fence(1) });
    }
    gone(&exec);
    prepare(&uplink, &exec);
    uplink.exec.send(ToExec::Forget { fence: Fence(1) });
    gone(&exec);
    // Its guard is killed: that is no end of the job, which has not begun.
    let guard = prepare(&uplink, &exec);
    std::process::Command::new("kill").args(["-KILL", &guard.to_string()]).status().unwrap();
    uplink.exec.send(ToExec::Forget { fence: Fence(1) });
    gone(&exec);
    assert_eq!(uplink.prepare(1, &["/bin/sh", "-c", "echo one"]), Ok(()));
    let guard = waiting_guard(&exec);
    std::process::Command::new("kill").args(["-KILL", &guard.to_string()]).status().unwrap();
    until("it is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{guard}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    uplink.exec.send(ToExec::Start { fence: Fence(1), lease_until: u64::MAX });
    assert_eq!(uplink.ended(1), (Outcome::Ok, [b"one\n".to_vec(), vec![]]));
    gone(&exec);
    // The uplink ends.
    prepare(&uplink, &exec);
    drop(uplink);
    gone(&exec);
    assert!(exec.is_running());
    // The executor is killed: its guard goes with its cgroups, and the next start clears its directories.
    let uplink = Hostile::new(&fleet);
    let guard = prepare(&uplink, &exec);
    exec.kill();
    until("the guard is gone", || (!PathBuf::from(format!("/proc/{guard}")).exists()).then_some(()));
    let left = made(&fleet, &exec);
    assert!(!left.iter().any(|path| path.starts_with("/sys")), "{left:?}");
    drop(uplink);
    std::fs::remove_file(socket(&fleet)).unwrap();
    let mut exec = start_executor(&fleet, &me());
    let uplink = Hostile::new(&fleet);
    assert_eq!(made(&fleet, &exec), [""; 0]);
    // It is told to stop.
    prepare(&uplink, &exec);
    exec.signal("TERM");
    assert_eq!(exec.wait(), Some(0));
    assert_eq!(made(&fleet, &exec), [""; 0]);
}

#[test]
fn a_start_that_comes_late_finds_its_slot_and_nothing_made() {
    let (_dir, fleet) = fleet();
    let exec = start_executor(&fleet, &me());
    let uplink = Hostile::new(&fleet);
    assert_eq!(uplink.prepare(1, &["/bin/sh", "-c", "echo late"]), Ok(()));
    waiting_guard(&exec);
    until("what waited in vain is given back", || made(&fleet, &exec).is_empty().then_some(()));
    // It is prepared all the same.
    assert_eq!(uplink.prepare(1, &["/bin/sh", "-c", "echo late"]), Err(Denial::Malformed));
    uplink.exec.send(ToExec::Start { fence: Fence(1), lease_until: u64::MAX });
    assert_eq!(uplink.ended(1), (Outcome::Ok, [b"late\n".to_vec(), vec![]]));
    until("nothing of it is left", || made(&fleet, &exec).is_empty().then_some(()));
}

#[test]
fn somebody_else_is_not_let_in() {
    let (_dir, fleet) = fleet();
    if me() != "0" {
        return eprintln!("not root: there is nobody else to be, so this is not tested");
    }
    // The uplink's user is another one: only that one and root come in.
    let _exec = start_executor(&fleet, "65533");
    std::fs::set_permissions(socket(&fleet), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    for (uid, served) in [(65_533, true), (65_532, false)] {
        let path = socket(&fleet);
        let greeted = std::thread::spawn(move || {
            // SAFETY: the system call itself changes this thread alone, unlike libc's function.
            unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
            let (tell, said) = mpsc::channel();
            let exec = Executor::connect(&path, Box::new(move |m| drop(tell.send(m))));
            exec.is_ok_and(|_exec| matches!(said.recv_timeout(WAIT), Ok(Some(FromExec::Policy(_)))))
        });
        assert_eq!(greeted.join().unwrap(), served, "{uid}");
    }
}

#[test]
fn a_policy_is_read_again_on_sighup_and_a_bad_one_changes_nothing() {
    let (_dir, fleet) = fleet();
    let exec = start_executor(&fleet, &me());
    let uplink = Hostile::new(&fleet);
    let path = fleet.dir().join("policy.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{good}\n[[rule]]\nid = \"uname\"\nprogram = \"/bin/uname\"\n")).unwrap();
    exec.signal("HUP");
    let Some(FromExec::Policy(state)) = uplink.next() else { panic!("no policy") };
    assert!(state.error.as_ref().is_some_and(|e| e.contains("the id is used twice")), "{state:?}");
    assert_eq!(state.digest, uplink.policy.digest);
    assert_eq!(uplink.prepare(1, &["/usr/bin/uname", "-a"]), Ok(()));
    std::fs::write(&path, good.replace("[\"-a\"]", "[\"-r\"]")).unwrap();
    exec.signal("HUP");
    let Some(FromExec::Policy(state)) = uplink.next() else { panic!("no policy") };
    assert!(state.error.is_none() && state.digest != uplink.policy.digest, "{state:?}");
    assert_eq!(uplink.prepare(2, &["/usr/bin/uname", "-a"]), Err(Denial::Argument));
    assert_eq!(uplink.prepare(3, &["/usr/bin/uname", "-r"]), Ok(()));
}

#[test]
fn a_flood_of_output_costs_no_memory_and_its_ends_are_kept() {
    let (_dir, fleet) = fleet();
    let policy = fleet.dir().join("policy.toml");
    let text = std::fs::read_to_string(&policy).unwrap();
    std::fs::write(&policy, text.replace("output = \"1MiB\"", "output = \"8MiB\"")).unwrap();
    let exec = start_executor(&fleet, &me());
    let uplink = Hostile::new(&fleet);
    let before = peak_kib(&exec);
    let flood = "echo begin; head -c 512M /dev/zero; echo end";
    assert_eq!(uplink.prepare(1, &["/bin/sh", "-c", flood]), Ok(()));
    uplink.exec.send(ToExec::Start { fence: Fence(1), lease_until: u64::MAX });
    let (outcome, kept) = uplink.ended(1);
    assert_eq!(outcome, Outcome::Ok);
    let out = &kept[Stream::Stdout as usize];
    assert_eq!(out.len(), 8 << 20);
    assert!(out.starts_with(b"begin\n\0") && out.ends_with(b"\0end\n"));
    let grown = peak_kib(&exec) - before;
    eprintln!("512 MiB of output: the executor's peak RSS grew by {grown} KiB");
    assert!(grown < 8 << 10, "{grown} KiB");
}

/// The most memory that a process has had, in KiB (proc(5), VmHWM).
fn peak_kib(process: &Proc) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A connection that has got its greeting, and says what it likes.
fn raw_client(fleet: &Fleet) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    until("it is let in and greeted", || {
        // SAFETY: takes numbers only; the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)) };
        // SAFETY: all-zero is a valid `sockaddr_un`.
        let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        addr.sun_family = libc::AF_UNIX as _;
        for (to, from) in addr.sun_path.iter_mut().zip(socket(fleet).to_str().unwrap().bytes()) {
            *to = from as _;
        }
        let len = size_of_val(&addr) as libc::socklen_t;
        // SAFETY: `addr` lives through the call, and `len` is its size.
        let done = unsafe { libc::connect(fd.as_raw_fd(), (&raw const addr).cast(), len) };
        (done == 0 && !received(&fd).is_empty()).then_some(fd)
    })
}

fn send(fd: &std::os::fd::OwnedFd, bytes: &[u8]) {
    use std::os::fd::AsRawFd;
    // SAFETY: pointer and length are of a live slice.
    unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
}

/// The next message; empty at the end of the connection.
fn received(fd: &std::os::fd::OwnedFd) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut buffer = vec![0; 4096];
    // SAFETY: pointer and length are of a live buffer.
    let got = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    buffer.truncate(got.max(0) as usize);
    buffer
}
