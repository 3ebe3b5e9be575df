//! `install-service`: writes a service's files, makes its users, enables and starts its units. Doing it again changes nothing.

use crate::service::Service;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the units are enabled.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";
/// There where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where a service's program may not lie: its unit hides these from it.
const HIDDEN: [&str; 5] = ["/home/", "/root/", "/tmp/", "/var/tmp/", "/run/user/"];

/// What `install-service` is told.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Take it away again; configuration, data and users stay.
    pub uninstall: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// An image's root directory: its files are written, and nothing of this machine is touched or started.
    pub root: Option<PathBuf>,
    /// Where the program is (in the image); without it, it is put to /usr/local/bin unless it lies there or below /usr.
    pub bin: Option<PathBuf>,
}

/// Why it was not done: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Only root may.
    #[error("only root installs services: sudo {0}")]
    NotRoot(String),
    /// There is no systemd to do it with.
    #[error(
        "systemd does not run here, so nothing would start the service: run `{0}` under the supervisor that is there, \
         or write an image with --root DIR"
    )]
    NoSystemd(&'static str),
    /// A service cannot run from there.
    #[error(
        "{0}: --bin must be an absolute path that services see: not below /home, /root or a tmp directory"
    )]
    Program(PathBuf),
    /// The file system said no.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// A program of systemd's did not do it.
    #[error("`{0}` failed: {1}")]
    Failed(String, String),
}

/// Does it, and says each step. Whether the service is started now.
///
/// # Errors
/// The first step that could not be done; what was done before it stays, and doing it again goes on there.
pub fn install(
    service: &Service,
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> Result<bool, InstallError> {
    let here = options.root.is_none();
    if here && !options.dry_run {
        let me = fs::metadata("/proc/self").map(|m| m.uid());
        if me.is_ok_and(|uid| uid != 0) {
            let args: Vec<String> = std::env::args().collect();
            return Err(InstallError::NotRoot(args.join(" ")));
        }
        if !Path::new(BOOTED).exists() {
            let run = if service.program == "dunlin-hub" {
                "dunlin-hub serve"
            } else {
                "dunlin-agent run --with-exec"
            };
            return Err(InstallError::NoSystemd(run));
        }
    }
    let mut doing = Doing { service, options, say, changed: false };
    match options.uninstall {
        true => doing.uninstall().map(|()| false),
        false => doing.install().map(|()| here && !options.dry_run),
    }
}

/// Runs a program of systemd's.
///
/// # Errors
/// `Failed`, with the last it said.
pub fn run(program: &str, args: &[&str]) -> Result<(), InstallError> {
    let line = || format!("{program} {}", args.join(" "));
    let done = Command::new(program).args(args).output();
    let done = done.map_err(|e| InstallError::Failed(line(), e.to_string()))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(InstallError::Failed(line(), String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}

struct Doing<'a> {
    service: &'a Service,
    options: &'a Options,
    say: &'a mut dyn FnMut(&str),
    changed: bool,
}

impl Doing<'_> {
    fn install(&mut self) -> Result<(), InstallError> {
        let program = self.program()?;
        for file in self.service.files {
            let text = file.text.replace(&self.service.program_path(), &program);
            match file.path.strip_prefix("/etc/").map(|path| format!("/usr/lib/{path}")) {
                Some(packaged) if self.at(&packaged).exists() => {
                    (self.say)(&format!("packaged   {packaged}"))
                }
                _ if file.kept && self.at(file.path).exists() => {
                    (self.say)(&format!("kept       {}", file.path))
                }
                _ => self.write(file.path, text.as_bytes(), 0o644)?,
            }
        }
        if self.options.root.is_some() {
            return self.service.units.iter().try_for_each(|unit| self.enable_in_image(unit));
        }
        let users = Path::new(self.service.users).file_name().and_then(|name| name.to_str());
        self.run("systemd-sysusers", &[users.unwrap_or_default()])?;
        self.run("systemctl", &["daemon-reload"])?;
        // What changed is started anew; of what did not, nothing is disturbed.
        let verb = if self.changed { "restart" } else { "start" };
        for unit in self.service.units {
            self.run("systemctl", &["enable", "--quiet", unit])?;
        }
        self.service.units.iter().try_for_each(|unit| self.run("systemctl", &[verb, unit]))
    }

    fn uninstall(&mut self) -> Result<(), InstallError> {
        for unit in self.service.units.iter().rev() {
            let there = self.at(&format!("/etc/systemd/system/{unit}")).exists();
            if there && self.options.root.is_none() {
                self.run("systemctl", &["disable", "--now", "--quiet", unit])?;
            }
            self.remove(&format!("{WANTS}/{unit}"))?;
        }
        for file in self.service.files {
            match file.kept {
                true => (self.say)(&format!("kept       {}", file.path)),
                false => self.remove(file.path)?,
            }
        }
        if self.options.root.is_none() {
            self.run("systemctl", &["daemon-reload"])?;
        }
        let data = self.service.data.join(" ");
        (self.say)(&format!("kept       {data}, the users, and the program"));
        Ok(())
    }

    /// Where the program is, put there if need be.
    fn program(&mut self) -> Result<String, InstallError> {
        let usual = self.service.program_path();
        if let Some(bin) = &self.options.bin {
            let seen = bin.is_absolute() && HIDDEN.iter().all(|dir| !bin.starts_with(dir));
            let text = bin.to_str().filter(|text| seen && !text.contains(char::is_whitespace));
            return text.map(str::to_owned).ok_or_else(|| InstallError::Program(bin.clone()));
        }
        if self.options.root.is_some() {
            // An image may be of another architecture than this program.
            if !self.at(&usual).exists() {
                (self.say)(&format!("missing    {usual}: put the image's own there"));
            }
            return Ok(usual);
        }
        let own = std::env::current_exe().map_err(|e| InstallError::Io(usual.clone().into(), e))?;
        if own.starts_with("/usr") || own.starts_with("/opt") {
            return Ok(own.display().to_string());
        }
        let bytes = fs::read(&own).map_err(|e| InstallError::Io(own, e))?;
        self.write(&usual, &bytes, 0o755)?;
        Ok(usual)
    }

    /// A path of the machine, in the image if there is one.
    fn at(&self, path: &str) -> PathBuf {
        match &self.options.root {
            None => path.into(),
            Some(root) => root.join(path.trim_start_matches('/')),
        }
    }

    /// Writes a file whole or not at all, when it is not there as it should be.
    fn write(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
        let to = self.at(path);
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            (self.say)(&format!("unchanged  {path}"));
            return Ok(());
        }
        self.changed = true;
        (self.say)(&format!("write      {path}"));
        if self.options.dry_run {
            return Ok(());
        }
        write_whole(&to, bytes, mode).map_err(|e| InstallError::Io(to, e))
    }

    fn remove(&mut self, path: &str) -> Result<(), InstallError> {
        let at = self.at(path);
        if at.symlink_metadata().is_err() {
            return Ok(());
        }
        (self.say)(&format!("remove     {path}"));
        match self.options.dry_run {
            true => Ok(()),
            false => fs::remove_file(&at).map_err(|e| InstallError::Io(at, e)),
        }
    }

    fn enable_in_image(&mut self, unit: &str) -> Result<(), InstallError> {
        let link = self.at(&format!("{WANTS}/{unit}"));
        if link.symlink_metadata().is_ok() {
            (self.say)(&format!("unchanged  {WANTS}/{unit}"));
            return Ok(());
        }
        (self.say)(&format!("link       {WANTS}/{unit}"));
        if self.options.dry_run {
            return Ok(());
        }
        let made = fs::create_dir_all(self.at(WANTS)).and_then(|()| symlink(format!("../{unit}"), &link));
        made.map_err(|e| InstallError::Io(link, e))
    }

    fn run(&mut self, program: &str, args: &[&str]) -> Result<(), InstallError> {
        (self.say)(&format!("run        {program} {}", args.join(" ")));
        if self.options.dry_run { Ok(()) } else { run(program, args) }
    }
}

fn write_whole(to: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let new = to.with_extension("dunlin-new");
    let mut file = fs::File::create(&new)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, to)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
mod tests {
    use super::*;
    use crate::{AGENT, HUB, policy};

    fn steps(service: &Service, options: &Options) -> Vec<String> {
        let mut said = Vec::new();
        assert!(!install(service, options, &mut |step| said.push(step.to_owned())).unwrap());
        said
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => found.extend(files(&entry.path())),
                false => found.push(entry.path().display().to_string()),
            }
        }
        found
    }

    #[test]
    fn an_image_gets_each_file_once_and_keeps_what_is_its_owner_s() {
        for (service, kept) in [(AGENT, 1), (HUB, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let bin = Some(format!("/usr/bin/{}", service.program).into());
            let image = Options { root: Some(dir.path().into()), bin, ..Options::default() };
            let dry = Options { dry_run: true, ..image.clone() };
            assert!(!steps(&service, &dry).is_empty());
            assert_eq!(files(dir.path()), Vec::<String>::new());
            let first = steps(&service, &image);
            assert_eq!(first.iter().filter(|s| s.starts_with("write")).count(), service.files.len());
            for unit in service.units {
                // Through the link by which the unit is enabled.
                let text = fs::read_to_string(dir.path().join(&WANTS[1..]).join(unit)).unwrap();
                assert!(text.contains(&format!("ExecStart=/usr/bin/{} ", service.program)), "{text}");
                assert!(!text.contains("/usr/local"), "{text}");
            }
            let again = steps(&service, &image);
            assert!(again.iter().all(|s| s.starts_with("unchanged") || s.starts_with("kept")), "{again:?}");
            if kept > 0 {
                let policy = dir.path().join("etc/dunlin/policy.toml");
                fs::write(&policy, "mine").unwrap();
                steps(&service, &image);
                assert_eq!(fs::read_to_string(&policy).unwrap(), "mine");
            }
            steps(&service, &Options { uninstall: true, ..image.clone() });
            assert_eq!(files(dir.path()).len(), kept);
            steps(&service, &Options { uninstall: true, ..image });
        }
    }

    #[test]
    fn a_program_that_services_do_not_see_is_refused() {
        for bin in ["/home/me/dunlin-agent", "/tmp/x", "bin/x", "/opt/a b"] {
            let options = Options { dry_run: true, bin: Some(bin.into()), ..Options::default() };
            let refused = install(&AGENT, &options, &mut |_| ());
            assert!(matches!(refused, Err(InstallError::Program(_))), "{bin}");
        }
    }

    #[test]
    fn a_policy_without_users_has_no_slots() {
        let with = policy("/opt/dunlin-agent", true);
        assert!(with.contains("program = \"/opt/dunlin-agent\"") && with.contains("\nusers = ["));
        assert!(!policy("/x", false).contains("\nusers = ["));
    }
}
