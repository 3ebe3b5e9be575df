//! The data directory: who we are and whom we trust, written whole or not at all.

use dunlin_wire::message::{Profile, Role};
use dunlin_wire::{FleetId, Key, NodeName};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What is wrong with the data directory.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The device was never enrolled.
    #[error("{0}: this device is not enrolled; run `dunlin-agent join TICKET` first")]
    NotEnrolled(PathBuf),
    /// A file does not read back.
    #[error("{path}: {why}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another agent runs on this directory.
    #[error("{0}: in use by another dunlin-agent; stop it, or choose another --data")]
    Locked(PathBuf),
}

/// What `join` learned, kept in `enrolment.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Where the hub listens, tried in order.
    pub hubs: Vec<String>,
    /// The hub's pinned key, in hexadecimal.
    pub hub_key: String,
    /// The fleet, in hexadecimal.
    pub fleet: String,
    /// This node's name.
    pub node: String,
    /// Slots that the operator allows.
    pub slots: u32,
    /// Timing profile: lan, wan or metered.
    pub profile: String,
    /// Role: worker or viewer.
    pub role: String,
}

/// An enrolment whose values were checked.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Where the hub listens.
    pub hubs: Vec<String>,
    /// The hub's pinned key.
    pub hub: Key,
    /// The fleet.
    pub fleet: FleetId,
    /// This node's name.
    pub node: NodeName,
    /// Slots that the operator allows.
    pub slots: u32,
    /// Timing profile.
    pub profile: Profile,
    /// Role.
    pub role: Role,
}

/// The data directory.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// The directory at `dir`; nothing is made yet.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the directory and takes its lock for as long as the file lives.
    ///
    /// # Errors
    /// `Locked` when another agent has it.
    pub fn lock(&self) -> Result<File, FilesError> {
        let io = |source| FilesError::Io { path: self.dir.clone(), source };
        std::fs::create_dir_all(&self.dir).map_err(io)?;
        let file = File::create(self.path("lock")).map_err(io)?;
        // SAFETY: flock only needs a valid descriptor, which `file` is.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(FilesError::Locked(self.dir.clone()));
        }
        Ok(file)
    }

    /// Writes a file that only its owner can read, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
        let path = self.path(name);
        write_whole(&self.dir, &path, bytes).map_err(|source| FilesError::Io { path, source })
    }

    /// Writes a file that may be lost in a power cut, but is never seen half written.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_lossy(&self, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
        let path = self.path(name);
        let new = path.with_extension("new");
        let done = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &path));
        done.map_err(|source| FilesError::Io { path, source })
    }

    /// Reads the device key, as PKCS#8, or makes it.
    ///
    /// # Errors
    /// `Bad` when the file is not a key: it is not replaced, the hub knows this device by it.
    pub fn key(&self) -> Result<Vec<u8>, FilesError> {
        let path = self.path("identity.key");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let why = "no random numbers from the system".to_owned();
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                    .map_err(|_| FilesError::Bad { path: path.clone(), why })?;
                self.write("identity.key", made.as_ref())?;
                made.as_ref().to_vec()
            }
            Err(source) => return Err(FilesError::Io { path, source }),
        };
        match Ed25519KeyPair::from_pkcs8(&bytes) {
            Ok(_) => Ok(bytes),
            Err(_) => Err(FilesError::Bad { path, why: "not an Ed25519 key in PKCS#8".into() }),
        }
    }

    /// Reads `enrolment.toml`.
    ///
    /// # Errors
    /// `NotEnrolled`, or what is wrong with it.
    pub fn enrolment(&self) -> Result<Enrolled, FilesError> {
        let path = self.path("enrolment.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(FilesError::NotEnrolled(path)),
            Err(source) => return Err(FilesError::Io { path, source }),
        };
        let bad = |why: String| FilesError::Bad { path: path.clone(), why };
        let raw: Enrolment = toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?;
        let profile =
            Profile::parse(&raw.profile).ok_or_else(|| bad(format!("no profile `{}`", raw.profile)))?;
        let role = [Role::Worker, Role::Viewer].into_iter().find(|r| r.as_str() == raw.role);
        Ok(Enrolled {
            hub: Key(hex(&raw.hub_key).ok_or_else(|| bad("hub_key is not a key".into()))?),
            fleet: FleetId(hex(&raw.fleet).ok_or_else(|| bad("fleet is not a fleet id".into()))?),
            node: raw.node.parse().map_err(|e| bad(format!("node: {e}")))?,
            slots: raw.slots,
            profile,
            role: role.ok_or_else(|| bad(format!("no role `{}`", raw.role)))?,
            hubs: raw.hubs,
        })
    }
}

/// The public key of a device key in PKCS#8.
///
/// # Errors
/// When it is not one; [`Files::key`] has checked that.
pub fn public(pkcs8: &[u8]) -> Result<Key, ring::error::KeyRejected> {
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8)?;
    let mut key = [0; 32];
    key.copy_from_slice(pair.public_key().as_ref());
    Ok(Key(key))
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let new = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}
