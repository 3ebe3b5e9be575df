//! TLS sessions of agents, and where their connections were, in an LMDB environment of its own, so that 0-RTT and fast
//! notice survive a restart of the hub.
//!
//! It is written without syncing, because rustls asks for it under the endpoint's lock: the kernel keeps it over the
//! death of the process. What a power cut may have torn is thrown away, which costs a round trip per agent, once.

use super::StoreError;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use rustls::server::StoresServerSessions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Sessions at most; the oldest go first. Four for each of 10,000 agents.
const SESSIONS_MAX: u64 = 40_000;
/// How long a session may be resumed, in seconds: the longest that TLS 1.3 allows a server to say is 7 days; a day does.
const LIFE_S: u64 = 24 * 3600;
/// The map's bound, in bytes.
const MAP_BYTES: usize = 128 << 20;

type Table = Database<'static, Bytes, Bytes>;

struct State {
    next: u64,
    first: u64,
}

/// The open environment.
pub struct Sessions {
    env: Env<WithoutTls>,
    // Session id -> number, value.
    values: Table,
    // Number -> when it was made (s), session id.
    order: Table,
    // Address -> connection id.
    peers: Table,
    meta: Table,
    state: Mutex<State>,
    marker: PathBuf,
    now_s: fn() -> u64,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    /// Opens the environment in `dir`, or makes it. It begins empty when the machine went down under it, and when
    /// `epoch` (what both sides must remember alike) is another than before. `now_s` counts seconds, on over restarts.
    ///
    /// # Errors
    /// The file system's, the engine's.
    pub fn open(dir: &Path, epoch: &[u8], boot: &str, now_s: fn() -> u64) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: dir.to_owned(), source };
        let marker = dir.join("open");
        if std::fs::read_to_string(&marker).is_ok_and(|was| was != boot) {
            tracing::warn!(dir = %dir.display(), "the machine went down under the sessions: they begin empty");
            std::fs::remove_dir_all(dir).map_err(io)?;
        }
        std::fs::create_dir_all(dir).map_err(io)?;
        std::fs::write(&marker, boot).map_err(io)?;
        let mut builder = EnvOpenOptions::new().read_txn_without_tls();
        builder.map_size(MAP_BYTES).max_dbs(4);
        // SAFETY: the store's lock keeps every other hub out of the data directory.
        let env = unsafe { builder.flags(EnvFlags::NO_SYNC).open(dir) }?;
        let txn = env.write_txn()?;
        let tables = env
            .create_databases_and_commit(txn, |opener, txn| {
                let mut table = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name));
                let (values, order) = (table("values")?, table("order")?);
                Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit([
                    values,
                    order,
                    table("peers")?,
                    table("meta")?,
                ]))
            })?
            .unwrap_commit();
        let [values, order, peers, meta] = tables;
        let state = Mutex::new(State { next: 0, first: 0 });
        let sessions = Self { env, values, order, peers, meta, state, marker, now_s };
        sessions.begin(epoch)?;
        Ok(sessions)
    }

    fn begin(&self, epoch: &[u8]) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        if self.meta.get(&txn, b"epoch")? != Some(epoch) {
            self.values.clear(&mut txn)?;
            self.order.clear(&mut txn)?;
            self.meta.put(&mut txn, b"epoch", epoch)?;
        }
        let number = |row: Option<(&[u8], &[u8])>| {
            row.and_then(|(key, _)| key.try_into().ok()).map(u64::from_be_bytes)
        };
        let first = number(self.order.first(&txn)?);
        let next = number(self.order.last(&txn)?).map_or(0, |last| last + 1);
        txn.commit()?;
        *self.lock() = State { next, first: first.unwrap_or(next) };
        Ok(())
    }

    /// Where agents were connected, and by which connection id of ours.
    ///
    /// # Errors
    /// The engine's.
    pub fn peers(&self) -> Result<Vec<(SocketAddr, Vec<u8>)>, StoreError> {
        let txn = self.env.read_txn()?;
        let mut found = Vec::new();
        for row in self.peers.iter(&txn)? {
            let (addr, cid) = row?;
            let addr = std::str::from_utf8(addr).ok().and_then(|text| text.parse().ok());
            found.extend(addr.map(|addr| (addr, cid.to_vec())));
        }
        Ok(found)
    }

    /// Replaces what [`Sessions::peers`] will answer.
    ///
    /// # Errors
    /// The engine's.
    pub fn put_peers(&self, peers: &[(SocketAddr, Vec<u8>)]) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        self.peers.clear(&mut txn)?;
        for (addr, cid) in peers {
            self.peers.put(&mut txn, addr.to_string().as_bytes(), cid)?;
        }
        Ok(txn.commit()?)
    }

    /// Everything is on the disk, and nothing follows: the next start may trust it whatever happens to the machine.
    ///
    /// # Errors
    /// The engine's, the file system's.
    pub fn close(&self) -> Result<(), StoreError> {
        self.env.force_sync()?;
        std::fs::remove_file(&self.marker)
            .map_err(|source| StoreError::Io { path: self.marker.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn try_put(&self, id: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut state = self.lock();
        let mut txn = self.env.write_txn()?;
        let now = (self.now_s)();
        let number = state.next;
        self.values.put(&mut txn, id, &[&number.to_be_bytes(), value].concat())?;
        self.order.put(&mut txn, &number.to_be_bytes(), &[&now.to_be_bytes(), id].concat())?;
        let mut first = state.first;
        // At most two go for each that comes: the table shrinks, and no put takes long.
        for _ in 0..2 {
            let Some(row) = self.order.get(&txn, &first.to_be_bytes())?.map(<[u8]>::to_vec) else {
                first = (first + 1).min(number);
                continue;
            };
            let made = row.first_chunk().map_or(0, |at| u64::from_be_bytes(*at));
            if number - first < SESSIONS_MAX && made + LIFE_S > now {
                break;
            }
            self.remove(&mut txn, first, row.get(8..).unwrap_or_default())?;
            first += 1;
        }
        txn.commit()?;
        *state = State { next: number + 1, first };
        Ok(())
    }

    fn remove(&self, txn: &mut heed::RwTxn<'_>, number: u64, id: &[u8]) -> Result<(), StoreError> {
        self.order.delete(txn, &number.to_be_bytes())?;
        self.values.delete(txn, id)?;
        Ok(())
    }

    fn try_take(&self, id: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut txn = self.env.write_txn()?;
        let Some(row) = self.values.get(&txn, id)?.map(<[u8]>::to_vec) else { return Ok(None) };
        let Some((number, value)) = row.split_first_chunk() else { return Ok(None) };
        let number = u64::from_be_bytes(*number);
        let made = self.order.get(&txn, &number.to_be_bytes())?.and_then(|row| row.first_chunk());
        let made = made.map_or(0, |at| u64::from_be_bytes(*at));
        self.remove(&mut txn, number, id)?;
        txn.commit()?;
        Ok((made + LIFE_S > (self.now_s)()).then(|| value.to_vec()))
    }
}

/// A session that cannot be kept or found costs a round trip, never a connection.
impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.try_put(&key, &value)
            .inspect_err(|error| tracing::warn!(%error, "a session was not kept"))
            .is_ok()
    }

    // Only TLS 1.2 would read without taking.
    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let taken = self.try_take(key);
        taken.inspect_err(|error| tracing::warn!(%error, "a session was not found")).unwrap_or_default()
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, epoch: &str, boot: &str) -> Sessions {
        Sessions::open(dir, epoch.as_bytes(), boot, || 100).unwrap()
    }

    #[test]
    fn a_session_is_taken_once_and_survives_the_process_but_not_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let key = |n: u8| vec![n; 32];
        let sessions = open(dir.path(), "e", "boot1");
        (1..=4).for_each(|n| assert!(sessions.put(key(n), vec![n, 1])));
        assert_eq!(sessions.take(&key(1)), Some(vec![1, 1]));
        assert_eq!(sessions.take(&key(1)), None);
        drop(sessions);
        let sessions = open(dir.path(), "e", "boot1");
        assert_eq!((sessions.take(&key(2)), sessions.take(&key(9))), (Some(vec![2, 1]), None));
        drop(sessions);
        assert_eq!(
            open(dir.path(), "e", "boot2").take(&key(3)),
            None,
            "nobody closed it before the machine went"
        );
        let sessions = open(dir.path(), "e", "boot2");
        sessions.put(key(5), vec![5]);
        sessions.put(key(6), vec![6]);
        sessions.close().unwrap();
        drop(sessions);
        let sessions = open(dir.path(), "e", "boot3");
        assert_eq!(sessions.take(&key(5)), Some(vec![5]));
        drop(sessions);
        assert_eq!(open(dir.path(), "other", "boot3").take(&key(6)), None, "the epoch is another");
    }

    #[test]
    fn old_sessions_end_and_make_room() {
        use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
        static NOW: AtomicU64 = AtomicU64::new(0);
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(dir.path(), b"e", "b", || NOW.load(Relaxed)).unwrap();
        (0..5u8).for_each(|n| assert!(sessions.put(vec![n], vec![n])));
        NOW.store(LIFE_S, Relaxed);
        assert_eq!(sessions.take(&[4]), None, "it is a day old");
        (10..14u8).for_each(|n| assert!(sessions.put(vec![n], vec![n])));
        let txn = sessions.env.read_txn().unwrap();
        assert_eq!(sessions.order.len(&txn).unwrap(), 4);
        assert_eq!(sessions.values.len(&txn).unwrap(), 4);
    }

    #[test]
    fn peers_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = open(dir.path(), "e", "b");
        let peer = |n: u8| (SocketAddr::from(([10, 0, 0, n], 5000)), vec![n; 8]);
        sessions.put_peers(&[peer(1), peer(2)]).unwrap();
        sessions.put_peers(&[peer(2), peer(3)]).unwrap();
        drop(sessions);
        assert_eq!(open(dir.path(), "e", "b").peers().unwrap(), [peer(2), peer(3)]);
    }
}
