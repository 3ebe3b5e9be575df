//! From the file as written to a policy that is in order, or to what is wrong with it.

use super::names::{is_forbidden_variable, is_launcher};
use super::raw::{RawMatcher, RawPolicy, RawRule};
use super::{
    Ceilings, Grade, Matcher, OnOutputLimit, PathKind, Policy, Root, Rule, Signing, TIMEOUT_MS, User,
};
use super::{actuation, confine, hooks};
use dunlin_wire::job::Denial;
use dunlin_wire::{limits, units};
use regex_lite::Regex;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with a policy: file, line, and the fix in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {message}")]
pub struct PolicyError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Where an error of the file being read belongs.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    /// An error at the first line that has `mark`.
    fn error(&self, mark: &str, message: String) -> PolicyError {
        let line = self.text.lines().position(|l| l.contains(mark)).map_or(1, |at| at + 1);
        PolicyError { file: self.file.to_owned(), line, message }
    }

    fn rule_error(&self, id: &str, message: &str) -> PolicyError {
        self.error(&format!("\"{id}\""), format!("rule `{id}`: {message}"))
    }
}

pub(super) fn compile(files: &[(String, String)]) -> Result<Policy, PolicyError> {
    let mut policy = Policy {
        ceilings: Ceilings::default(),
        roots: BTreeMap::new(),
        rules: Vec::new(),
        signing: Signing::Privileged,
        shell: false,
        slots: vec![],
        orchestrator: None,
        hooks: vec![],
    };
    let mut orchestrator = None;
    let mut raw_rules = Vec::new();
    for (at, (file, text)) in files.iter().enumerate() {
        let source = Source { file, text };
        let raw: RawPolicy = toml::from_str(text).map_err(|error| PolicyError {
            file: file.clone(),
            line: error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
            message: error.message().to_owned(),
        })?;
        if raw.schema != Some(1) {
            return Err(source.error("schema", "`schema = 1` is required".into()));
        }
        if raw.default.as_deref().is_some_and(|d| d != "deny") {
            return Err(source.error("default", "`default` must be \"deny\"".into()));
        }
        if at == 0 {
            policy.ceilings = ceilings(&raw, &source)?;
            policy.signing = signing_of(&raw, &source)?;
            policy.shell = raw.shell.enabled;
            policy.slots = slots(&raw, &source)?;
        }
        for (name, root) in &raw.root {
            let path = root.path.trim_end_matches('/').to_owned();
            let good =
                path.starts_with('/') && path.split('/').skip(1).all(|c| !matches!(c, "" | "." | ".."));
            if !good {
                let message = format!("root `{name}`: the path must be absolute, plain, and not `/`");
                return Err(source.error(&root.path, message));
            }
            let root = Root { path, symlinks: root.symlinks, cross_mount: root.cross_mount };
            if policy.roots.insert(name.clone(), root).is_some() {
                return Err(source.error(name, format!("root `{name}` is defined twice")));
            }
        }
        for raw in &raw.hook {
            let wrong = |message: String| source.error(&raw.name, format!("hook `{}`: {message}", raw.name));
            if policy.hooks.iter().any(|hook| hook.name == raw.name) {
                return Err(wrong("the name is used twice".into()));
            }
            policy.hooks.push(hooks::hook(raw).map_err(wrong)?);
        }
        if let (0, Some(raw)) = (at, raw.orchestrator) {
            orchestrator = Some((Source { file, text }, raw));
        }
        raw_rules.push((source, raw.rule));
    }
    let mut ids = BTreeSet::new();
    for (source, rules) in raw_rules {
        for raw in rules {
            if !ids.insert(raw.id.clone()) {
                return Err(source.rule_error(&raw.id, "the id is used twice"));
            }
            policy.rules.push(rule(raw, &policy, &source)?);
        }
    }
    if let Some((source, raw)) = orchestrator {
        let compiled = hooks::orchestrator(&raw, &policy);
        policy.orchestrator = Some(compiled.map_err(|message| source.error("[orchestrator]", message))?);
    }
    Ok(policy)
}

fn ceilings(raw: &RawPolicy, source: &Source<'_>) -> Result<Ceilings, PolicyError> {
    let default = Ceilings::default();
    let ms = |field: &str, text: &Option<String>, default| match text {
        None => Ok(default),
        Some(text) => units::duration_ms(text).filter(|ms| *ms > 0).ok_or_else(|| {
            source.error(field, format!("ceilings.{field} must be like \"2m\", not \"{text}\""))
        }),
    };
    let output = match &raw.ceilings.output {
        None => default.output,
        Some(text) => units::bytes(text)
            .filter(|n| (1..=limits::OUTPUT_MAX).contains(n))
            .ok_or_else(|| source.error("output", "ceilings.output must be 1B to 64MiB".into()))?,
    };
    let jobs = raw.ceilings.jobs.unwrap_or(default.jobs);
    if jobs == 0 || jobs > limits::CONCURRENT_MAX {
        return Err(source.error("jobs", format!("ceilings.jobs must be 1 to {}", limits::CONCURRENT_MAX)));
    }
    let memory = match &raw.ceilings.memory {
        None => None,
        Some(text) => Some(units::bytes(text).filter(|n| *n >= confine::MEMORY_MIN).ok_or_else(|| {
            source.error("memory", format!("ceilings.memory must be like \"2GiB\", not \"{text}\""))
        })?),
    };
    if raw.ceilings.pids == Some(0) {
        return Err(source.error("pids", "ceilings.pids must be at least 1".into()));
    }
    Ok(Ceilings {
        memory,
        pids: raw.ceilings.pids.map(u64::from),
        timeout_ms: ms("timeout", &raw.ceilings.timeout, default.timeout_ms)?,
        grace_ms: ms("grace", &raw.ceilings.grace, default.grace_ms)?,
        output,
        jobs,
    })
}

fn slots(raw: &RawPolicy, source: &Source<'_>) -> Result<Vec<String>, PolicyError> {
    let users = &raw.slots.users;
    let again = users.iter().enumerate().find(|(at, user)| users[..*at].contains(user));
    let bad = again
        .map(|(_, user)| user)
        .or_else(|| users.iter().find(|u| matches!(u.as_str(), "" | "0" | "root")));
    match bad {
        Some(user) => Err(source.error(
            "users",
            format!("slots.users: `{user}`: each slot needs a user of its own, and none may be root"),
        )),
        None => Ok(users.clone()),
    }
}

fn signing_of(raw: &RawPolicy, source: &Source<'_>) -> Result<Signing, PolicyError> {
    match raw.signing.require.as_deref() {
        None | Some("privileged") => Ok(Signing::Privileged),
        Some("never") => Ok(Signing::Never),
        Some("always") => Ok(Signing::Always),
        Some(other) => {
            let message = format!("signing.require must be never, privileged or always, not \"{other}\"");
            Err(source.error("require", message))
        }
    }
}

fn rule(raw: RawRule, policy: &Policy, source: &Source<'_>) -> Result<Rule, PolicyError> {
    let id = raw.id.clone();
    let err = |message: &str| source.rule_error(&id, message);
    let program = match (&raw.program, &raw.interpreter, &raw.script) {
        (Some(program), None, None) => program.clone(),
        (None, Some(interpreter), Some(_)) => interpreter.clone(),
        _ => return Err(err("needs either `program`, or `interpreter` and `script`")),
    };
    if !program.starts_with('/') {
        return Err(err("the program must be an absolute path"));
    }
    if is_launcher(&program) && !raw.launcher && !raw.shell && raw.script.is_none() {
        return Err(err("this program runs other programs; say `launcher = true` if that is meant"));
    }
    let sha256 = raw.sha256.iter().map(|text| {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| err("sha256 must be 64 hexadecimal digits"))
    });
    let sha256 = sha256.collect::<Result<Vec<[u8; 32]>, _>>()?;
    for name in &raw.cwd {
        if !policy.roots.contains_key(name) {
            return Err(err(&format!("cwd names root `{name}`, which is not defined")));
        }
    }
    if let Some(name) = raw.env.keys().chain(raw.secret_env.keys()).find(|n| is_forbidden_variable(n)) {
        return Err(err(&format!("variable `{name}` can never be allowed")));
    }
    let timeout = |field: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match units::duration_ms(text) {
            Some(ms) if ms > 0 && ms <= policy.ceilings.timeout_ms => Ok(Some(ms)),
            Some(ms) if ms > 0 => Err(err(&format!("{field} is over ceilings.timeout"))),
            _ => Err(err(&format!("{field} must be like \"10s\""))),
        },
    };
    let timeout_ms = timeout("timeout", &raw.timeout)?;
    let timeout_ms_max = timeout("timeout_max", &raw.timeout_max)?;
    let output = match &raw.output {
        None => policy.ceilings.output,
        Some(text) => match units::bytes(text) {
            Some(n) if (1..=policy.ceilings.output).contains(&n) => n,
            _ => return Err(err("output must be like \"1MiB\", and not over ceilings.output")),
        },
    };
    let on_output_limit = match raw.on_output_limit.as_deref() {
        None | Some("truncate") => OnOutputLimit::Truncate,
        Some("kill") => OnOutputLimit::Kill,
        Some(_) => return Err(err("on_output_limit must be truncate or kill")),
    };
    let file_size = match &raw.limits.file_size {
        None => None,
        Some(text) => Some(units::bytes(text).ok_or_else(|| err("limits.file_size must be like \"2GiB\""))?),
    };
    if raw.shell && (!raw.args.is_empty() || raw.rest.is_some() || raw.script.is_some()) {
        return Err(err(
            "shell = true takes one free line behind `-c`, so it can have no args, rest or script",
        ));
    }
    if raw.shell && raw.actuator.is_some() {
        return Err(err("a free line can move anything, so shell = true can have no actuator"));
    }
    if let Some(script) = raw.script.as_ref().filter(|s| !s.starts_with('/')) {
        return Err(err(&format!("script `{script}` must be an absolute path")));
    }
    let secret_env = raw.secret_env.iter().map(|(variable, from)| {
        let name = from.strip_prefix("credential:").filter(|name| is_credential(name));
        let name =
            name.ok_or_else(|| err(&format!("secret_env.{variable} must be like \"credential:NAME\"")))?;
        match raw.env.contains_key(variable) {
            true => Err(err(&format!("`{variable}` is in env and in secret_env"))),
            false => Ok((variable.clone(), name.to_owned())),
        }
    });
    let secret_env = secret_env.collect::<Result<_, _>>()?;
    let actuator = raw.actuator.as_ref().map(actuation::compile).transpose().map_err(|m| err(&m))?;
    let unmet = unmet(&raw);
    let mut confinement = confine::compile(&raw, policy).map_err(|m| err(&m))?;
    let matcher = |raw| matcher(raw, policy).map_err(|m| err(&m));
    let args = raw.script.clone().map(|script| Ok(Matcher::Literal(script))).into_iter();
    let args = args.chain(raw.args.into_iter().map(matcher)).collect::<Result<Vec<_>, _>>()?;
    let rest = raw.rest.map(|r| Ok((matcher(r.each)?, r.min, r.max))).transpose()?;
    let named = args.iter().chain(rest.iter().map(|(m, _, _)| m)).filter_map(|m| match m {
        Matcher::Path(root, _) => Some(root),
        _ => None,
    });
    let named = named.chain(&raw.cwd).filter_map(|name| policy.roots.get(name));
    confinement.roots = named.map(|root| root.path.clone()).collect();
    // A rule that names its timeout and no more means just that.
    let ceiling = timeout_ms_max.or(timeout_ms).unwrap_or(policy.ceilings.timeout_ms);
    let privileged =
        confinement.user == User::Root || raw.launcher || raw.shell || raw.detach || actuator.is_some();
    Ok(Rule {
        program,
        sha256,
        grade: Grade { privileged, shell: raw.shell },
        script: raw.script,
        args,
        rest,
        cwd: raw.cwd,
        env: raw.env.into_iter().map(|(k, m)| Ok((k, matcher(m)?))).collect::<Result<_, _>>()?,
        secret_env,
        confinement,
        unmet,
        file_size,
        nofile: raw.limits.nofile,
        timeout_ms: timeout_ms.unwrap_or(TIMEOUT_MS).min(ceiling),
        timeout_ms_max: ceiling.max(timeout_ms.unwrap_or(0)),
        timeout_ms_cap: u64::MAX,
        output,
        on_output_limit,
        unicode: raw.unicode,
        launcher: raw.launcher || raw.shell,
        actuator,
        id: raw.id,
    })
}

/// Whether a credential can have this name: a file's, without a way to other directories.
pub(super) fn is_credential(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain)
}

/// What the rule asks for and this version does not have, on any board. It is denied, never run with less than the file
/// says.
fn unmet(raw: &RawRule) -> Option<Denial> {
    raw.detach.then_some(Denial::CapabilityMissing)
}

fn matcher(raw: RawMatcher, policy: &Policy) -> Result<Matcher, String> {
    let table = match raw {
        RawMatcher::Literal(text) => return Ok(Matcher::Literal(text)),
        RawMatcher::Table(table) => table,
    };
    match (table.re, table.int, table.one_of, table.path) {
        (Some(re), None, None, None) => {
            // Alone first: one with an unbalanced bracket could leave the anchors that are put around it.
            let whole = Regex::new(&re).and_then(|_| Regex::new(&format!(r"\A(?:{re})\z")));
            whole.map(|re| Matcher::Re(re, table.dash)).map_err(|e| format!("re `{re}`: {e}"))
        }
        (None, Some([low, high]), None, None) if low <= high => Ok(Matcher::Int(low, high, table.dash)),
        (None, Some(_), None, None) => Err("int needs its lower bound first".into()),
        (None, None, Some(choices), None) if !choices.is_empty() => Ok(Matcher::OneOf(choices)),
        (None, None, None, Some(path)) => {
            if !policy.roots.contains_key(&path.root) {
                return Err(format!("path names root `{}`, which is not defined", path.root));
            }
            match path.kind.as_str() {
                "file" => Ok(Matcher::Path(path.root, PathKind::File)),
                "dir" => Ok(Matcher::Path(path.root, PathKind::Dir)),
                other => Err(format!("path.kind must be file or dir, not `{other}`")),
            }
        }
        _ => Err("a matcher is a text, or has exactly one of re, int, one_of, path".into()),
    }
}

/// What is legal and still looks like a mistake.
pub fn lint(policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    if !policy.slots.is_empty() && policy.slots.len() < policy.ceilings.jobs as usize {
        let (users, jobs) = (policy.slots.len(), policy.ceilings.jobs);
        found
            .push(format!("slots.users has {users} users: so many jobs at once, not ceilings.jobs = {jobs}"));
    }
    if policy.slots.is_empty() {
        let what = "no [slots] users: jobs run as the executor's own user, which is root under systemd";
        found.push(format!("{what}; name one user for each job at once"));
    }
    for rule in &policy.rules {
        let matchers = rule.args.iter().chain(rule.rest.iter().map(|(m, _, _)| m)).chain(rule.env.values());
        for m in matchers {
            if let Matcher::Re(re, _) = m
                && re.as_str().contains(".*")
            {
                found.push(format!("rule `{}`: `.*` takes anything, slashes and blanks too", rule.id));
            }
        }
        if is_launcher(&rule.program) && rule.script.is_none() {
            found.push(format!("rule `{}`: {} runs other programs", rule.id, rule.program));
        }
        if rule.grade.shell && !policy.shell {
            found.push(format!("rule `{}`: shell = true needs [shell] enabled = true", rule.id));
        }
        if let Some(reason) = rule.unmet {
            found.push(format!("rule `{}`: this version denies it ({reason})", rule.id));
        }
    }
    found
}
