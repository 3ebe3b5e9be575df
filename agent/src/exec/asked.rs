//! What is asked for, of each kind, against the policy; and what is opened for it.

use super::prepare::{self, Opened};
use super::ready::Ready;
use super::sandbox::{self, Plan};
use super::{FREE_BYTES_MIN, Machine, Work, secret, sys};
use crate::core::orchestrate::{Role, Sequence};
use crate::core::policy::{self, Confinement, Hook, HookKind, Policy, Request, Signed, Strictness, User};
use crate::core::trust::Verified;
use dunlin_wire::Tag;
use dunlin_wire::actuation::Declared;
use dunlin_wire::job::{Denial, Job as Asked, Shell, Wake};
use dunlin_wire::keys::Kind;
use serde_json::json;
use std::rc::Rc;

/// What was prepared and not started.
pub(super) struct Prepared {
    pub(super) work: Work,
    pub(super) shell: Shell,
    pub(super) opened: Opened,
    pub(super) rule: String,
    pub(super) timeout_ms: u64,
    pub(super) grace_ms: u64,
    pub(super) output: u64,
    pub(super) kill_on_overflow: bool,
    pub(super) file_size: Option<u64>,
    pub(super) nofile: Option<u64>,
    pub(super) slot: usize,
    pub(super) plan: Plan,
    pub(super) secrets: Vec<(String, String)>,
    /// What it is the first part of, and who signed that.
    pub(super) sequence: Option<(Sequence, Option<Rc<Verified>>)>,
    /// The hook that it calls.
    pub(super) hook: Option<String>,
    /// What was made for it already.
    pub(super) ready: Option<Ready>,
}

/// A denial, and the rule that it comes from.
pub(super) type Denied = (Denial, Option<String>);

/// Output of a hook's request that is kept, per stream, in bytes.
const HOOK_OUTPUT: u64 = 64 * 1024;
/// A hook whose token was refused so often in a row is not called again before the policy was read anew.
const TOKENS_DENIED_MAX: u32 = 3;
/// By this the process that calls a hook finds its token.
pub(crate) const HOOK_TOKEN: &str = "DUNLIN_HOOK_TOKEN";

/// Jobs at once: each has a user of its own where the policy names any.
pub(super) fn capacity(policy: &Policy) -> usize {
    let jobs = policy.ceilings.jobs as usize;
    if policy.slots.is_empty() { jobs } else { jobs.min(policy.slots.len()) }
}

/// What the policy offers beside plain rules, for the scheduler: `kind:orchestrator-run`, `hook:NAME`, `actuator:NAME`.
pub(super) fn kinds(policy: &Policy) -> Vec<Tag> {
    let orchestrator = policy.orchestrator.iter().map(|_| "kind:orchestrator-run".to_owned());
    let hooks = policy.hooks.iter().map(|hook| format!("hook:{}", hook.name));
    let driving = policy.rules.iter().filter(|rule| rule.unmet.is_none()).filter_map(|r| r.actuator.as_ref());
    let mut kinds: Vec<Tag> = orchestrator.chain(hooks).filter_map(|text| text.parse().ok()).collect();
    kinds.extend(driving.map(|actuator| actuator.target.clone()));
    kinds.dedup();
    kinds
}

/// What a verified signature says.
fn signed(job: &Verified) -> Signed<'_> {
    let payload = &job.payload;
    Signed { scope: &job.cert.scope, rules: &payload.rules, user: payload.user.as_deref() }
}

impl Machine {
    pub(super) fn prepare(&mut self, mut work: Work) -> Result<Prepared, Denied> {
        let most = self.policy.as_ref().map_or(0, capacity);
        let free = self.slots.find(most);
        let policy = self.policy.as_ref().ok_or((Denial::PolicyInvalid, None))?;
        if self.stopping {
            return Err((Denial::Draining, None));
        }
        let known = self.jobs.contains_key(&work.fence) || self.runs.contains_key(&work.fence);
        if known || self.prepared.contains_key(&work.fence) || work.job.check_shape().is_err() {
            return Err((Denial::Malformed, None));
        }
        let verified = self.verifier.verify(&work).map_err(|(denial, _)| (denial, None))?;
        let slot = |rule: &str| free.ok_or_else(|| (Denial::Busy, Some(rule.to_owned())));
        // Of a signed job what was signed, whatever else the hub said.
        let asked = match &verified {
            Some(job) => {
                work.timeout_ms = job.payload.timeout_ms;
                Asked::from(job.payload.work.clone())
            }
            None => work.job.clone(),
        };
        let by = verified.as_ref().map(signed);
        let prepared = match asked {
            Asked::OrchestratorRun(run) => {
                let own = policy.orchestrator.as_ref().ok_or((Denial::CapabilityMissing, None))?;
                let sequence = Sequence::new(&own.gate, &run.steps, &own.reviewer);
                self.check_run(policy, &sequence, work.timeout_ms, by)?;
                let part = sequence.next().cloned().ok_or((Denial::Malformed, None))?;
                let slot = slot("orchestrator")?;
                let first = self.part(work, part.role, part.shell, (None, verified.as_ref()), slot)?;
                Prepared { sequence: Some((sequence, verified.map(Rc::new))), ..first }
            }
            Asked::HookDispatch(asked) => {
                let slot = slot(&asked.hook)?;
                self.hook(policy, work, HookKind::Agent, (&asked.hook, &asked.payload), by, slot)?
            }
            Asked::Wake(Wake { hook, text }) => {
                let slot = slot(&hook)?;
                let payload = json!({"text": text}).to_string();
                self.hook(policy, work, HookKind::Wake, (&hook, &payload), by, slot)?
            }
            Asked::Shell(shell) => self.one(policy, work, shell, None, by, slot)?,
            Asked::Actuation(asked) => {
                self.one(policy, work, asked.shell, Some(&asked.declared), by, slot)?
            }
            Asked::Signed(_) => return Err((Denial::Malformed, None)),
        };
        let reserved: u64 = self.jobs.values().map(super::Job::output_max).sum();
        let waiting: u64 = self.prepared.values().map(|prepared| prepared.output * 2).sum();
        let needed = FREE_BYTES_MIN + reserved + waiting + prepared.output * 2;
        if sys::free_bytes(&self.config.data).is_ok_and(|free| free < needed) {
            return Err((Denial::DiskFull, Some(prepared.rule)));
        }
        self.slots.take(prepared.slot);
        Ok(prepared)
    }

    /// One program, under the rule that takes it.
    fn one(
        &self,
        policy: &Policy,
        work: Work,
        shell: Shell,
        declared: Option<&Declared>,
        signed: Option<Signed<'_>>,
        slot: impl Fn(&str) -> Result<usize, Denied>,
    ) -> Result<Prepared, Denied> {
        let (argv, cwd, env, timeout_ms) = (&shell.argv, shell.cwd.as_deref(), &shell.env, work.timeout_ms);
        let request = Request { argv, cwd, env, timeout_ms, declared, signed };
        let allowed = policy::decide(policy, request).map_err(|denial| (denial, None))?;
        let slot = slot(&allowed.rule.id)?;
        self.open(policy, work, shell.clone(), &allowed, slot)
    }

    /// Every part must be allowed before the first is started.
    fn check_run(
        &self,
        policy: &Policy,
        run: &Sequence,
        timeout_ms: Option<u64>,
        signed: Option<Signed<'_>>,
    ) -> Result<(), Denied> {
        if signed.is_some_and(|signed| !signed.scope.kinds.contains(&Kind::Run)) {
            return Err((Denial::KeyScope, None));
        }
        if timeout_ms.is_some_and(|ms| ms == 0 || ms > policy.ceilings.timeout_ms) {
            return Err((Denial::TimeoutOverCeiling, None));
        }
        for part in run.parts() {
            let allowed = allow(policy, part.role, &part.shell, signed).map_err(|denial| (denial, None))?;
            prepare::open(&allowed).map_err(|denial| (denial, Some(allowed.rule.id.clone())))?;
        }
        Ok(())
    }

    /// Opens one part of a run that somebody may have signed; it may take `left_ms` at most.
    pub(super) fn part(
        &self,
        work: Work,
        role: Role,
        shell: Shell,
        (left_ms, by): (Option<u64>, Option<&Verified>),
        slot: usize,
    ) -> Result<Prepared, Denied> {
        let policy = self.policy.as_ref().ok_or((Denial::PolicyInvalid, None))?;
        let mut allowed = allow(policy, role, &shell, by.map(signed)).map_err(|denial| (denial, None))?;
        if role != Role::Step {
            allowed.timeout_ms = allowed.timeout_ms.min(policy::STAGE_MS_MAX);
        }
        allowed.timeout_ms = left_ms.map_or(allowed.timeout_ms, |left| left.min(allowed.timeout_ms));
        self.open(policy, work, shell, &allowed, slot)
    }

    fn open(
        &self,
        policy: &Policy,
        work: Work,
        shell: Shell,
        allowed: &policy::Allowed<'_>,
        slot: usize,
    ) -> Result<Prepared, Denied> {
        let rule = allowed.rule;
        let denied = |denial| (denial, Some(rule.id.clone()));
        let user = policy.slots.get(slot).map(String::as_str);
        Ok(Prepared {
            opened: prepare::open(allowed).map_err(denied)?,
            plan: sandbox::plan(&rule.confinement, self.kernel.layers, user).map_err(denied)?,
            secrets: secret::all(&rule.secret_env).map_err(denied)?,
            rule: rule.id.clone(),
            timeout_ms: allowed.timeout_ms,
            grace_ms: policy.ceilings.grace_ms,
            output: rule.output,
            kill_on_overflow: rule.on_output_limit == policy::OnOutputLimit::Kill,
            file_size: rule.file_size,
            nofile: rule.nofile,
            slot,
            shell,
            work,
            sequence: None,
            hook: None,
            ready: None,
        })
    }

    /// A hook's request is made by a process of our own program, under a guard and in the sandbox like any job: so the
    /// executor needs no network, and never waits.
    fn hook(
        &self,
        policy: &Policy,
        work: Work,
        kind: HookKind,
        (name, payload): (&str, &str),
        signed: Option<Signed<'_>>,
        slot: usize,
    ) -> Result<Prepared, Denied> {
        let found = policy.hooks.iter().find(|hook| hook.name == name && hook.kind == kind);
        let hook = found.ok_or((Denial::HookUnknown, None))?;
        let rule = format!("hook:{name}");
        let denied = |denial| (denial, Some(rule.clone()));
        policy::hook(policy, name, signed).map_err(denied)?;
        let body = hook.body(payload).map_err(denied)?;
        if self.denied_tokens.get(name).is_some_and(|times| *times >= TOKENS_DENIED_MAX) {
            return Err(denied(Denial::HookPaused));
        }
        let timeout_ms = work.timeout_ms.unwrap_or(hook.timeout_ms);
        if timeout_ms == 0 || timeout_ms > hook.timeout_ms {
            return Err(denied(Denial::TimeoutOverCeiling));
        }
        let token = secret::read(&hook.token).map_err(denied)?;
        let user = policy.slots.get(slot).map(String::as_str);
        let plan = sandbox::plan(&caller(), self.kernel.layers, user).map_err(denied)?;
        let order = order(hook, &body, work.task.as_str(), timeout_ms).to_string();
        let missing = |_| denied(Denial::CapabilityMissing);
        let opened = Opened {
            program: sys::open_path("/proc/self/exe", libc::O_RDONLY).map_err(missing)?,
            script: false,
            interpreted: Some(sys::memory_file(order.as_bytes()).map_err(missing)?),
            cwd: None,
        };
        Ok(Prepared {
            shell: Shell { argv: vec!["dunlin-agent".into(), "hook".into()], cwd: None, env: vec![] },
            opened,
            timeout_ms,
            grace_ms: 0,
            output: HOOK_OUTPUT,
            kill_on_overflow: false,
            file_size: None,
            nofile: None,
            slot,
            plan,
            secrets: vec![(HOOK_TOKEN.to_owned(), token)],
            sequence: None,
            hook: Some(name.to_owned()),
            ready: None,
            rule,
            work,
        })
    }
}

/// What the process that calls a hook is told, on descriptor 5.
fn order(hook: &Hook, body: &str, task: &str, timeout_ms: u64) -> serde_json::Value {
    json!({
        "host": hook.host,
        "port": hook.port,
        "path": hook.path,
        "body": body,
        "wake": hook.kind == HookKind::Wake,
        "key": task,
        "timeoutMs": timeout_ms,
    })
}

/// How it is shut in: it needs the board's own network, and nothing else.
fn caller() -> Confinement {
    Confinement {
        strictness: Strictness::Asked,
        user: User::Unsaid,
        groups: vec![],
        network: true,
        write: vec![],
        roots: vec![],
        devices: vec![],
        memory: None,
        pids: None,
        cpu: None,
    }
}

/// What allows a part of a run: of the gate and the reviewer the board's own word, of a step what allows any job.
fn allow<'a>(
    policy: &'a Policy,
    role: Role,
    shell: &Shell,
    signed: Option<Signed<'_>>,
) -> Result<policy::Allowed<'a>, Denial> {
    match role {
        Role::Gate | Role::Reviewer => policy::own(policy, &shell.argv),
        Role::Step => {
            let (argv, cwd, env) = (&shell.argv, shell.cwd.as_deref(), &shell.env);
            policy::decide(policy, Request { argv, cwd, env, signed, ..Request::default() })
        }
    }
}
