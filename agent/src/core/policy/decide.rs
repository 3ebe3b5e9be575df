//! Whether a job may run, on its words alone. In the order of EXEC.md: shape and sizes, program, arguments, env,
//! timeout, then cwd and path operands as text; what the paths lead to is looked at on the opened things.

use super::{
    ARG_BYTES_MAX, ARGV_MAX, Actuator, Matcher, PathKind, Policy, Root, Rule, Signing, User, actuation,
};
use dunlin_wire::actuation::Declared;
use dunlin_wire::job::Denial;
use dunlin_wire::keys::{Kind, Scope};

/// What is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Working directory.
    pub cwd: Option<&'a str>,
    /// Variables.
    pub env: &'a [(String, String)],
    /// Timeout, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// What is declared of it, when it moves something.
    pub declared: Option<&'a Declared>,
    /// Who signed it, when somebody did.
    pub signed: Option<Signed<'a>>,
}

/// What a signature that was verified says.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// How far the signer's key reaches.
    pub scope: &'a Scope,
    /// Rules that the signer meant; empty: any.
    pub rules: &'a [String],
    /// Whom the signer wants it to run as.
    pub user: Option<&'a str>,
}

/// A path of the request, to be opened beneath its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand<'a> {
    /// The root.
    pub root: &'a Root,
    /// The path from there; empty for the root itself.
    pub path: String,
    /// What it must be.
    pub kind: PathKind,
}

/// What allows it.
#[derive(Debug, Clone)]
pub struct Allowed<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The timeout in force, in milliseconds.
    pub timeout_ms: u64,
    /// Path operands among the arguments.
    pub operands: Vec<Operand<'a>>,
    /// The working directory, in each root it may be in.
    pub cwd: Vec<Operand<'a>>,
}

/// Which rule allows `request`, or why none does.
///
/// # Errors
/// The closed reason.
pub fn decide<'a>(policy: &'a Policy, request: Request<'_>) -> Result<Allowed<'a>, Denial> {
    let allowed = allowed(policy, request)?;
    actuation::decide(allowed.rule, request.declared)?;
    signature(policy, allowed.rule, request.signed)?;
    met(allowed)
}

/// Which rule allows what the board's own file names: nobody has to sign that.
///
/// # Errors
/// The closed reason.
pub fn own<'a>(policy: &'a Policy, argv: &[String]) -> Result<Allowed<'a>, Denial> {
    let allowed = allowed(policy, Request { argv, ..Request::default() })?;
    actuation::decide(allowed.rule, None)?;
    met(allowed)
}

/// What a rule asks for and this version has not, on any board, is denied last.
fn met(allowed: Allowed<'_>) -> Result<Allowed<'_>, Denial> {
    allowed.rule.unmet.map_or(Ok(allowed), Err)
}

fn allowed<'a>(policy: &'a Policy, request: Request<'_>) -> Result<Allowed<'a>, Denial> {
    shape(request)?;
    let program = &request.argv[0];
    if !program.starts_with('/') {
        return Err(Denial::NotAbsolute);
    }
    let mut why = Denial::NotAllowlisted;
    let meant = |id: &String| request.signed.is_none_or(|s| s.rules.is_empty() || s.rules.contains(id));
    for rule in policy.rules.iter().filter(|rule| rule.program == *program && meant(&rule.id)) {
        match arguments(policy, rule, &request.argv[1..]) {
            Ok(operands) => return rest(policy, rule, operands, request),
            Err(denial) if why == Denial::NotAllowlisted => why = denial,
            Err(_) => {}
        }
    }
    Err(why)
}

fn shape(request: Request<'_>) -> Result<(), Denial> {
    if request.argv.is_empty() || request.timeout_ms == Some(0) {
        return Err(Denial::Malformed);
    }
    let env: usize = request.env.iter().map(|(k, v)| k.len() + v.len()).sum();
    let argv: usize = request.argv.iter().map(String::len).sum();
    if argv > dunlin_wire::limits::JOB_BYTES_MAX
        || request.argv.len() > ARGV_MAX
        || request.argv.iter().any(|a| a.len() > ARG_BYTES_MAX)
    {
        return Err(Denial::ArgumentLength);
    }
    if env > dunlin_wire::limits::JOB_BYTES_MAX || request.env.len() > dunlin_wire::limits::ENV_MAX {
        return Err(Denial::Malformed);
    }
    Ok(())
}

fn rest<'a>(
    policy: &'a Policy,
    rule: &'a Rule,
    operands: Vec<Operand<'a>>,
    request: Request<'_>,
) -> Result<Allowed<'a>, Denial> {
    for (name, value) in request.env {
        let allowed = rule.env.get(name).ok_or(Denial::Env)?;
        text(value, rule.unicode).map_err(|_| Denial::Env)?;
        element(policy, allowed, value).map_err(|_| Denial::Env)?;
    }
    let mut names: Vec<&String> = request.env.iter().map(|(name, _)| name).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Denial::Env);
    }
    let timeout_ms = request.timeout_ms.unwrap_or(rule.timeout_ms);
    if timeout_ms > rule.timeout_ms_max {
        return Err(Denial::TimeoutOverCeiling);
    }
    let cwd = match request.cwd {
        None => Vec::new(),
        Some(cwd) => {
            let roots = rule.cwd.iter().filter_map(|name| policy.roots.get(name));
            let found: Vec<_> = roots.filter_map(|root| beneath(root, cwd, PathKind::Dir)).collect();
            if found.is_empty() {
                return Err(Denial::Cwd);
            }
            found
        }
    };
    Ok(Allowed { rule, timeout_ms: timeout_ms.min(rule.timeout_ms_cap), operands, cwd })
}

/// Whether the rule needs a signature that is not there, or more than the signer's key may do.
fn signature(policy: &Policy, rule: &Rule, signed: Option<Signed<'_>>) -> Result<(), Denial> {
    let (grade, user) = (rule.grade, rule.confinement.user.as_str());
    if grade.shell && !policy.shell {
        return Err(Denial::ShellDisabled);
    }
    let Some(signed) = signed else {
        return match policy.signing {
            _ if grade.shell => Err(Denial::ShellUnsigned),
            Signing::Always => Err(Denial::SignatureMissing),
            Signing::Privileged if grade.privileged => Err(Denial::SignatureMissing),
            _ if rule.actuator.as_ref().is_some_and(Actuator::needs_signature) => {
                Err(Denial::SignatureMissing)
            }
            Signing::Privileged | Signing::Never => Ok(()),
        };
    };
    if signed.user.is_some_and(|wanted| wanted != user) {
        return Err(Denial::User);
    }
    let kind = match &rule.actuator {
        _ if grade.shell => Kind::Line,
        Some(_) => Kind::Actuation,
        None => Kind::Shell,
    };
    if signed.scope.covers(kind, &rule.id, user) { Ok(()) } else { Err(Denial::KeyScope) }
}

/// Whether a request to the hook of this name needs a signature that is not there, or more than the signer's key may do.
///
/// # Errors
/// The closed reason.
pub fn hook(policy: &Policy, name: &str, signed: Option<Signed<'_>>) -> Result<(), Denial> {
    let (rule, user) = (format!("hook:{name}"), User::Slot.as_str());
    match signed {
        None if policy.signing == Signing::Always => Err(Denial::SignatureMissing),
        None => Ok(()),
        Some(signed) if !signed.rules.is_empty() && !signed.rules.contains(&rule) => {
            Err(Denial::NotAllowlisted)
        }
        Some(signed) if signed.user.is_some_and(|wanted| wanted != user) => Err(Denial::User),
        Some(signed) if signed.scope.covers(Kind::Hook, &rule, user) => Ok(()),
        Some(_) => Err(Denial::KeyScope),
    }
}

/// A free line behind `-c`. It may have several lines, and nothing that hides what it is.
fn line(args: &[String], unicode: bool) -> Result<(), Denial> {
    match args {
        [option, line] if option == "-c" => text(&line.replace(['\n', '\t'], " "), unicode),
        _ => Err(Denial::Argument),
    }
}

fn arguments<'a>(policy: &'a Policy, rule: &'a Rule, args: &[String]) -> Result<Vec<Operand<'a>>, Denial> {
    if rule.grade.shell {
        return line(args, rule.unicode).map(|()| Vec::new());
    }
    for arg in args {
        text(arg, rule.unicode)?;
    }
    if args.len() < rule.args.len() {
        return Err(Denial::Argument);
    }
    let (fixed, behind) = args.split_at(rule.args.len());
    let mut operands = Vec::new();
    for (matcher, arg) in rule.args.iter().zip(fixed) {
        operands.extend(element(policy, matcher, arg)?);
    }
    let (min, max) = rule.rest.as_ref().map_or((0, 0), |(_, min, max)| (*min, *max));
    if behind.len() < min || behind.len() > max {
        return Err(Denial::Argument);
    }
    if let Some((each, _, _)) = &rule.rest {
        for arg in behind {
            operands.extend(element(policy, each, arg)?);
        }
    }
    Ok(operands)
}

/// Characters that no rule takes, whatever its matchers say.
fn text(arg: &str, unicode: bool) -> Result<(), Denial> {
    for c in arg.chars() {
        match c {
            '\0' => return Err(Denial::ArgumentNul),
            c if c.is_control() => return Err(Denial::ArgumentControl),
            // Zero-width, bidirectional, separators, tags: what is read is not what is there.
            '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}' => {
                return Err(Denial::ArgumentCharset);
            }
            c if !c.is_ascii() && !unicode => return Err(Denial::ArgumentCharset),
            _ => {}
        }
    }
    Ok(())
}

fn element<'a>(policy: &'a Policy, matcher: &Matcher, arg: &str) -> Result<Option<Operand<'a>>, Denial> {
    let hit = match matcher {
        Matcher::Literal(text) => arg == text,
        Matcher::OneOf(choices) => choices.iter().any(|c| c == arg),
        Matcher::Int(_, _, false) if arg.starts_with('-') => return Err(Denial::ArgumentOption),
        Matcher::Int(low, high, _) => {
            arg.parse::<i64>().is_ok_and(|n| n.to_string() == arg && (*low..=*high).contains(&n))
        }
        Matcher::Re(_, false) if arg.starts_with('-') => return Err(Denial::ArgumentOption),
        Matcher::Re(re, _) => re.is_match(arg),
        Matcher::Path(root, kind) => {
            let root = policy.roots.get(root).ok_or(Denial::ArgumentPath)?;
            return beneath(root, arg, *kind).map(Some).ok_or(Denial::ArgumentPath);
        }
    };
    if hit { Ok(None) } else { Err(Denial::Argument) }
}

/// `path` as a way down from `root`; `None` when it is not a plain one.
fn beneath<'a>(root: &'a Root, path: &str, kind: PathKind) -> Option<Operand<'a>> {
    let rest = path.strip_prefix(root.path.as_str())?;
    let operand = |path: &str| Operand { root, path: path.to_owned(), kind };
    if rest.is_empty() {
        return Some(operand(""));
    }
    let rest = rest.strip_prefix('/')?;
    rest.split('/').all(|c| !matches!(c, "" | "." | "..")).then(|| operand(rest))
}
