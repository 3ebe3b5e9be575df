//! Signed jobs at the executor: the trust file, the key set in force, and the table of what was started.

use super::replay::Replays;
use super::{Work, read_trusted};
use crate::clock;
use crate::core::trust::{self, Board, Clock, Offer, Trust, Verified};
use dunlin_wire::job::{Denial, Job};
use dunlin_wire::keys::KeySet;
use dunlin_wire::{Key, Tag, limits};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What it takes to verify signed jobs.
#[derive(Debug, Clone)]
pub struct Signing {
    /// The trust file; without it no signature is trusted.
    pub trust: PathBuf,
    /// The board's tags, as its configuration has them.
    pub tags: Vec<Tag>,
    /// Who this board is, where the trust file does not pin it.
    pub board: Option<Board>,
}

impl Signing {
    /// No signature is trusted.
    pub fn none() -> Self {
        Self { trust: PathBuf::from("/nonexistent"), tags: vec![], board: None }
    }
}

/// Reads the trust file at `path`: root's or ours, and nobody else's to write. `None` when there is none.
///
/// # Errors
/// One line that names the file, the rule and the fix.
pub fn load_trust(path: &Path) -> Result<Option<Trust>, String> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_trusted(path)?;
    Trust::parse(&text).map(Some).map_err(|e| format!("{}: {e}", path.display()))
}

pub(super) struct Verifier {
    signing: Signing,
    board: Option<Board>,
    trust: Option<Trust>,
    keys: Option<KeySet>,
    replays: Option<Replays>,
    dir: PathBuf,
}

impl Verifier {
    /// What is on disk. `dir` is the executor's own directory.
    pub(super) fn open(signing: Signing, dir: &Path) -> Self {
        let mut verifier =
            Self { signing, board: None, trust: None, keys: None, replays: None, dir: dir.to_owned() };
        verifier.load();
        verifier
    }

    /// Reads the trust file again. One that is wrong at start trusts nobody; at a reload the one in force stays.
    pub(super) fn load(&mut self) {
        match load_trust(&self.signing.trust) {
            Ok(Some(trust)) => {
                self.board = trust.board(self.signing.board.as_ref(), &self.signing.tags);
                if self.board.is_none() {
                    let file = self.signing.trust.display();
                    tracing::error!(%file, "it must say `fleet` and `node`: else no signed job is for this board");
                }
                self.trust = Some(trust);
            }
            Ok(None) => self.trust = None,
            Err(error) => tracing::error!(%error, "the trust file is not in force"),
        }
        let Some(trust) = &self.trust else { return };
        if self.replays.is_none() {
            let opened = Replays::open(&self.dir.join("seen"), limits::REPLAYS_MAX);
            let say = |error: &String| tracing::error!(%error, "no signed job is taken");
            self.replays = opened.inspect_err(say).ok();
        }
        // A set that a root of before signed is none of this one's.
        self.keys = std::fs::read(self.dir.join("keys")).ok().and_then(|b| KeySet::open(&b, &trust.roots));
    }

    /// Version of the key set in force, 0 for none; `None` when nobody is trusted here.
    pub(super) fn version(&self) -> Option<u64> {
        self.trust.as_ref().map(|_| self.keys.as_ref().map_or(0, |set| set.version))
    }

    /// Takes a newer key set: it is on the disk, and in force, when this returns.
    ///
    /// # Errors
    /// Why the one in force stays.
    pub(super) fn renew(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let trust = self.trust.as_ref().ok_or("there is no trust file, so nobody is trusted")?;
        let set = trust::renew(bytes, trust, self.keys.as_ref())?;
        write_whole(&self.dir, "keys", bytes).map_err(|e| format!("{}: {e}", self.dir.display()))?;
        let version = set.version;
        self.keys = Some(set);
        Ok(version)
    }

    /// A signed job that may be asked for now; `None` for one that is not signed.
    pub(super) fn verify(&self, work: &Work) -> Result<Option<Verified>, (Denial, Option<Key>)> {
        let Job::Signed(bytes) = &work.job else { return Ok(None) };
        let trust = self.trust.as_ref().ok_or((Denial::KeyUnknown, None))?;
        let board = self.board.as_ref().ok_or((Denial::Audience, None))?;
        let replays = self.replays.as_ref().ok_or((Denial::ReplayStoreFull, None))?;
        let offer = Offer { bytes, task: &work.task, attempt: work.attempt };
        let floor_ms = replays.floor_ms().map_err(|denial| (denial, None))?.max(clock::SOURCE_MS);
        let clock = Clock { now_ms: clock::wall_ms(), floor_ms };
        let job = trust::verify(offer, trust, self.keys.as_ref(), board, clock)?;
        match replays.check(&job, work.attempt, clock.now_ms) {
            Ok(()) => Ok(Some(job)),
            Err(denial) => Err((denial, Some(job.payload.issuer))),
        }
    }

    /// The attempt starts, if it still may: who asks could have waited since it was prepared.
    pub(super) fn start(&self, work: &Work) -> Result<(), Denial> {
        let Some(job) = self.verify(work).map_err(|(denial, _)| denial)? else { return Ok(()) };
        let replays = self.replays.as_ref().ok_or(Denial::ReplayStoreFull)?;
        replays.start(&job, work.attempt, clock::wall_ms())
    }
}

/// Writes a file of the executor's own, whole or not at all.
pub(super) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::create_dir_all(dir)?;
    let new = dir.join(format!("{name}.new"));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(name))?;
    std::fs::File::open(dir)?.sync_all()
}
