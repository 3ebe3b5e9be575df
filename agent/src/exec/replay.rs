//! Which signed jobs were started here (LMDB, by heed): the executor's own, so that it holds whatever the uplink does.
//!
//! Its floor is the latest time at which a signed job was started. What expired before the floor is forgotten, and
//! nothing that expired before it is ever taken again, so that a clock that goes back brings nothing back. A job raises
//! the floor no further than its signed times reach.

use crate::core::trust::{self, Seen, Verified};
use dunlin_wire::Key;
use dunlin_wire::job::Denial;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};
use std::path::Path;

/// The map's bound, in bytes: room for `limits::REPLAYS_MAX` twice over.
const MAP_BYTES: usize = 4 << 20;
/// Version of every record's postcard body; the first byte of each value.
const RECORD: u8 = 1;
const FLOOR: &[u8] = b"floor";

type Table = Database<'static, Bytes, Bytes>;

/// The open table.
pub(super) struct Replays {
    env: Env<WithoutTls>,
    seen: Table,
    meta: Table,
    most: u64,
}

fn key(issuer: &Key, nonce: &[u8; 16]) -> [u8; 48] {
    let mut key = [0; 48];
    key[..32].copy_from_slice(&issuer.0);
    key[32..].copy_from_slice(nonce);
    key
}

fn decode(bytes: &[u8]) -> Result<Seen, Denial> {
    let seen = match bytes.split_first() {
        Some((&RECORD, body)) => postcard::from_bytes(body).ok(),
        _ => None,
    };
    seen.ok_or_else(|| {
        tracing::error!("the table of signed jobs is corrupt: none is taken; see README, Signed jobs");
        Denial::ReplayStoreFull
    })
}

/// A table that cannot be used is one that takes no more jobs.
fn unusable(error: heed::Error) -> Denial {
    tracing::error!(%error, "the table of signed jobs cannot be used: none is taken");
    Denial::ReplayStoreFull
}

impl Replays {
    /// Opens the table in `dir`, or makes it. `most` jobs are remembered.
    ///
    /// # Errors
    /// In words, with the path.
    pub(super) fn open(dir: &Path, most: usize) -> Result<Self, String> {
        let say = |e: &dyn std::fmt::Display| format!("{}: {e}", dir.display());
        std::fs::create_dir_all(dir).map_err(|e| say(&e))?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_BYTES).max_dbs(2).max_readers(4);
        // SAFETY: the executor is the only process that opens it: the agent's lock keeps every other one away.
        let env = unsafe { options.open(dir) }.map_err(|e| say(&e))?;
        let txn = env.write_txn().map_err(|e| say(&e))?;
        let tables = env.create_databases_and_commit(txn, |opener, txn| {
            let seen = opener.create_database::<Bytes, Bytes>(txn, Some("seen"))?;
            let meta = opener.create_database::<Bytes, Bytes>(txn, Some("meta"))?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((seen, meta)))
        });
        let (seen, meta) = tables.map_err(|e| say(&e))?.unwrap_commit();
        Ok(Self { env, seen, meta, most: most as u64 })
    }

    /// The latest time at which a signed job was started, in milliseconds since the epoch; 0 before the first.
    pub(super) fn floor_ms(&self) -> Result<u64, Denial> {
        self.floor(&self.env.read_txn().map_err(unusable)?)
    }

    fn floor(&self, txn: &RoTxn<'_, WithoutTls>) -> Result<u64, Denial> {
        match self.meta.get(txn, FLOOR).map_err(unusable)? {
            None => Ok(0),
            Some(bytes) => bytes.try_into().map(u64::from_be_bytes).map_err(|_| Denial::ReplayStoreFull),
        }
    }

    fn look(&self, txn: &RoTxn<'_, WithoutTls>, job: &Verified) -> Result<Option<Seen>, Denial> {
        let key = key(&job.payload.issuer, &job.payload.nonce);
        self.seen.get(txn, &key).map_err(unusable)?.map(decode).transpose()
    }

    /// Whether this attempt could start now. Changes nothing.
    ///
    /// # Errors
    /// `Replayed`, `ReplayStoreFull`.
    pub(super) fn check(&self, job: &Verified, attempt: u32, now_ms: u64) -> Result<(), Denial> {
        let txn = self.env.read_txn().map_err(unusable)?;
        let seen = self.look(&txn, job)?;
        trust::attempt(seen, job, attempt)?;
        let full = self.seen.len(&txn).map_err(unusable)? >= self.most;
        if seen.is_none() && full && self.over(&txn, now_ms)?.is_empty() {
            return Err(Denial::ReplayStoreFull);
        }
        Ok(())
    }

    /// This attempt starts: that is on the disk when this returns.
    ///
    /// # Errors
    /// `Replayed`, `ReplayStoreFull`; nothing was changed then.
    pub(super) fn start(&self, job: &Verified, attempt: u32, now_ms: u64) -> Result<(), Denial> {
        let mut txn = self.env.write_txn().map_err(unusable)?;
        let seen = self.look(&txn, job)?;
        let now = trust::attempt(seen, job, attempt)?;
        let floor = self.floor(&txn)?.max(now_ms);
        self.meta.put(&mut txn, FLOOR, &floor.to_be_bytes()).map_err(unusable)?;
        if seen.is_none() && self.seen.len(&txn).map_err(unusable)? >= self.most {
            self.forget(&mut txn, floor)?;
            if self.seen.len(&txn).map_err(unusable)? >= self.most {
                return Err(Denial::ReplayStoreFull);
            }
        }
        let value = postcard::to_extend(&now, vec![RECORD]).map_err(|_| Denial::ReplayStoreFull)?;
        let key = key(&job.payload.issuer, &job.payload.nonce);
        self.seen.put(&mut txn, &key, &value).map_err(unusable)?;
        txn.commit().map_err(unusable)
    }

    fn forget(&self, txn: &mut RwTxn<'_>, floor_ms: u64) -> Result<(), Denial> {
        for key in self.over(txn, floor_ms)? {
            self.seen.delete(txn, &key).map_err(unusable)?;
        }
        Ok(())
    }

    /// Keys of jobs that expired before `floor_ms`.
    fn over(&self, txn: &RoTxn<'_, WithoutTls>, floor_ms: u64) -> Result<Vec<Vec<u8>>, Denial> {
        let mut over = Vec::new();
        for row in self.seen.iter(txn).map_err(unusable)? {
            let (key, value) = row.map_err(unusable)?;
            if decode(value)?.expires_ms < floor_ms {
                over.push(key.to_vec());
            }
        }
        Ok(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::FleetId;
    use dunlin_wire::envelope::{Audience, Payload, VERSION, Work};
    use dunlin_wire::job::{Delivery, Shell};
    use dunlin_wire::keys::{Cert, Scope};

    fn job(nonce: u8, expires_ms: u64) -> Verified {
        let (issuer, fleet) = (Key([2; 32]), FleetId([1; 16]));
        let payload = Payload {
            version: VERSION,
            work: Work::Shell(Shell { argv: vec!["/x".into()], cwd: None, env: vec![] }),
            rules: vec![],
            task: "t".parse().unwrap(),
            fleet,
            audience: Audience::Nodes(vec![]),
            timeout_ms: None,
            user: None,
            delivery: Delivery::AtLeastOnce,
            attempts_max: 2,
            not_before_ms: 0,
            expires_ms,
            nonce: [nonce; 16],
            issuer,
            reason: String::new(),
        };
        let scope = Scope::default();
        let cert = Cert { key: issuer, name: String::new(), fleet, scope, not_after_ms: 0 };
        Verified { payload, cert, digest: [nonce; 32] }
    }

    #[test]
    fn a_started_job_is_remembered_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Replays::open(dir.path(), 2).unwrap();
        assert_eq!(open().start(&job(1, 100), 1, 10), Ok(()));
        let table = open();
        assert_eq!(table.check(&job(1, 100), 1, 10), Err(Denial::Replayed));
        assert_eq!(table.start(&job(1, 100), 1, 10), Err(Denial::Replayed));
        assert_eq!(table.start(&job(1, 100), 2, 10), Ok(()));
        assert_eq!(table.floor_ms(), Ok(10));
    }

    #[test]
    fn a_full_table_forgets_only_what_has_expired() {
        let dir = tempfile::tempdir().unwrap();
        let table = Replays::open(dir.path(), 2).unwrap();
        assert_eq!(table.start(&job(1, 100), 1, 10), Ok(()));
        assert_eq!(table.start(&job(2, 50), 1, 20), Ok(()));
        assert_eq!(table.check(&job(3, 100), 1, 50), Err(Denial::ReplayStoreFull));
        assert_eq!(table.start(&job(3, 100), 1, 50), Err(Denial::ReplayStoreFull));
        assert_eq!(table.floor_ms(), Ok(20), "a refusal changes nothing");
        // A retry needs no room.
        assert_eq!(table.check(&job(1, 100), 2, 50), Ok(()));
        assert_eq!(table.check(&job(3, 100), 1, 51), Ok(()));
        assert_eq!(table.start(&job(3, 100), 1, 51), Ok(()));
        // The clock went back: what was forgotten is below the floor, where nothing is taken.
        assert_eq!(table.check(&job(2, 50), 1, 20), Err(Denial::ReplayStoreFull));
        assert_eq!(table.floor_ms(), Ok(51));
    }
}
