//! The policy's files, and what of the policy this board can do.

use super::kernel::Kernel;
use super::{POLICY_BYTES_MAX, prepare, sandbox, secret};
use crate::core::policy::{self, Policy, Request};
use dunlin_wire::job::Denial;
use dunlin_wire::overlay::Overlay;
use std::path::Path;

/// Reads a policy and the files in `policy.d` beside it: theirs alone may they be, root's or ours.
///
/// # Errors
/// One line that names the file, the rule and the fix.
pub fn load(path: &Path) -> Result<(Policy, [u8; 8]), String> {
    let mut paths = vec![path.to_owned()];
    if let Some(dir) = path.parent().map(|d| d.join("policy.d")) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut more: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
        more.sort();
        paths.extend(more);
    }
    let mut files = Vec::new();
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for path in paths {
        let text = read_trusted(&path)?;
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
        files.push((path.display().to_string(), text));
    }
    let policy = Policy::parse(&files).map_err(|e| e.to_string())?;
    let mut digest = [0; 8];
    digest.copy_from_slice(&hash.finish().as_ref()[..8]);
    Ok((policy, digest))
}

pub(super) fn read_trusted(path: &Path) -> Result<String, String> {
    use std::os::unix::fs::MetadataExt;
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|e| format!("{name}: {e}"))?;
    let meta = file.metadata().map_err(|e| format!("{name}: {e}"))?;
    // SAFETY: geteuid cannot fail and touches no memory.
    let me = unsafe { libc::geteuid() };
    if meta.uid() != 0 && meta.uid() != me {
        return Err(format!("{name}: belongs to user {}; it must be root's (chown root)", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("{name}: others may write to it (chmod go-w)"));
    }
    if meta.len() > POLICY_BYTES_MAX {
        return Err(format!("{name}: over {POLICY_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))
}

/// Which rule allows `request` on a board with this kernel, the files looked at too; nothing is run.
///
/// # Errors
/// The closed reason.
pub fn decide(policy: &Policy, kernel: &Kernel, request: Request<'_>) -> Result<String, Denial> {
    let allowed = policy::decide(policy, request)?;
    prepare::open(&allowed)?;
    let user = policy.slots.first().map(String::as_str);
    sandbox::plan(&allowed.rule.confinement, kernel.layers, user)?;
    secret::all(&allowed.rule.secret_env)?;
    Ok(allowed.rule.id.clone())
}

/// What stands in the way of the policy's rules on this board: programs that are missing or not to be trusted, and
/// protections that cannot be had.
pub fn lint(policy: &Policy, kernel: &Kernel) -> Vec<String> {
    let mut found = Vec::new();
    let user = policy.slots.first().map(String::as_str);
    for rule in &policy.rules {
        let mut add = |what: &str, denial| found.push(format!("rule `{}`: {what}: {denial}", rule.id));
        if let Err(denial) = prepare::program(rule) {
            add(&rule.program, denial);
        }
        if let (Some(script), Err(denial)) = (&rule.script, prepare::script_of(rule)) {
            add(script, denial);
        }
        if let Err(denial) = sandbox::plan(&rule.confinement, kernel.layers, user) {
            add("not on this board (dunlin-agent doctor says what it offers)", denial);
        }
    }
    found
}

/// Where an overlay is kept.
const OVERLAY: &str = "overlay";

/// The overlay in force when the executor ended; one that cannot be read leaves nothing, until the hub sends another.
pub(super) fn kept_overlay(dir: &Path) -> Overlay {
    match std::fs::read(dir.join(OVERLAY)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Overlay::default(),
        Ok(bytes) => postcard::from_bytes(&bytes).unwrap_or_else(|_| Overlay::nothing()),
        Err(_) => Overlay::nothing(),
    }
}

/// Keeps it for the next start.
pub(super) fn keep_overlay(dir: &Path, overlay: &Overlay) -> std::io::Result<()> {
    let bytes = postcard::to_stdvec(overlay).map_err(std::io::Error::other)?;
    super::verify::write_whole(dir, OVERLAY, &bytes)
}
