//! One binary that is `dunlin-hub`, `dunlin-agent` or `dunlin`, by the name it is called with. It runs the same `main`
//! functions as the shipped binaries; with it, one `cargo` command builds all that the demo and the tests start.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The names.
pub const NAMES: [&str; 3] = ["dunlin-hub", "dunlin-agent", "dunlin"];

/// Runs the program that argv[0] names, if it names one.
pub fn dispatch() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    match Path::new(&name).file_name()?.to_str()? {
        "dunlin-hub" => Some(dunlin_hub::daemon::main()),
        "dunlin-agent" => Some(dunlin_agent::commands::main()),
        "dunlin" => Some(dunlin_hub::cli::main()),
        _ => None,
    }
}

/// Makes the three names for `binary` in `dir`.
///
/// # Errors
/// The file system's.
pub fn install(binary: &Path, dir: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    for name in NAMES {
        std::os::unix::fs::symlink(binary, dir.join(name))?;
    }
    Ok(dir.to_owned())
}
