//! `policy check` and `policy test`: the same code that decides on the board.

use crate::core::policy::{self, Request};
use crate::exec::{self, Kernel};
use dunlin_wire::job::Denial;
use dunlin_wire::units;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn check(path: &Path) -> ExitCode {
    let (policy, digest) = match exec::load(path) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(1);
        }
    };
    let kernel = Kernel::probe(path);
    for finding in policy::lint(&policy).into_iter().chain(exec::lint(&policy, &kernel)) {
        println!("warning: {finding}");
    }
    let digest = data_encoding::HEXLOWER.encode(&digest);
    println!("{}: {} rules in order, policy {digest}", path.display(), policy.rules.len());
    ExitCode::SUCCESS
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    #[serde(default)]
    argv: Vec<String>,
    shell: Option<String>,
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    timeout: Option<String>,
    expect: String,
    #[serde(default)]
    why: String,
}

pub(super) fn test(path: &Path, cases: &str) -> ExitCode {
    let failures = match decide_all(path, cases) {
        Ok((all, failures)) => {
            failures.iter().for_each(|f| println!("{f}"));
            println!("{} cases, {} as expected", all, all - failures.len());
            failures.len()
        }
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    };
    ExitCode::from(u8::from(failures > 0))
}

/// Decides every case of the file `cases` under the policy at `path`: how many there were, and a line for each that
/// came out otherwise than it says.
///
/// # Errors
/// When either file is not in order.
pub fn decide_all(path: &Path, cases: &str) -> Result<(usize, Vec<String>), String> {
    let (policy, _) = exec::load(path)?;
    let kernel = Kernel::probe(path);
    let text = std::fs::read_to_string(cases).map_err(|e| format!("{cases}: {e}"))?;
    let cases: Cases = toml::from_str(&text).map_err(|e| format!("{cases}: {e}"))?;
    let mut failures = Vec::new();
    for case in &cases.case {
        let timeout_ms = match &case.timeout {
            None => None,
            Some(text) => {
                Some(units::duration_ms(text).ok_or_else(|| format!("case {}: timeout `{text}`", case.id))?)
            }
        };
        let env: Vec<_> = case.env.clone().into_iter().collect();
        let request = Request {
            argv: &case.argv,
            cwd: case.cwd.as_deref(),
            env: &env,
            timeout_ms,
            ..Request::default()
        };
        let got = match (&case.shell, exec::decide(&policy, &kernel, request)) {
            (Some(_), _) => format!("deny:{}", Denial::ShellDisabled),
            (None, Ok(rule)) => format!("allow:{rule}"),
            (None, Err(denial)) => format!("deny:{denial}"),
        };
        if got != case.expect {
            failures.push(format!("{}: expected {}, got {got} ({})", case.id, case.expect, case.why));
        }
    }
    Ok((cases.case.len(), failures))
}
