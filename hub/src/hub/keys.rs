//! Key sets on their way to boards. A set is stored and handed on; whether a root signed it only a board can tell.

use super::{Hub, Session, Turn};
use crate::event::{Answer, ApiRefusal, ConnId};
use crate::store::StoreError;
use dunlin_wire::NodeName;
use dunlin_wire::keys::KeySet;
use dunlin_wire::message::ToAgent;

/// The store's name for the newest set.
const META: &str = "key_set";

impl Hub {
    /// A board says which set it has. It is sent the hub's when that is newer.
    pub(super) fn handle_keys(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        version: u64,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(session) = self.session_at(conn, name) else { return Ok(()) };
        session.keys = Some(version);
        if let Some(bytes) = turn.write.view().meta::<Vec<u8>>(META)?
            && KeySet::peek(&bytes).is_some_and(|set| set.version > version)
        {
            turn.send(conn, ToAgent::Keys(bytes));
        }
        Ok(())
    }

    /// Stores a newer set and sends it to every board that trusts signatures.
    pub(super) fn push_keys(
        &mut self,
        bytes: Vec<u8>,
        turn: &mut Turn<'_>,
    ) -> Result<Result<Answer, ApiRefusal>, StoreError> {
        let Some(set) = KeySet::peek(&bytes) else { return Ok(Err(ApiRefusal::NoKeySet)) };
        let held = turn.write.view().meta::<Vec<u8>>(META)?;
        if held.as_ref() != Some(&bytes) {
            let version = held.and_then(|held| KeySet::peek(&held)).map_or(0, |held| held.version);
            if set.version <= version {
                return Ok(Err(ApiRefusal::OldKeySet { version: set.version, held: version }));
            }
            turn.write.put_meta(META, &bytes)?;
            turn.event("keys.pushed", |e| e.detail = Some(format!("version {}", set.version)))?;
        }
        let behind = |session: &&Session| session.keys.is_some_and(|version| version < set.version);
        let mut sent = 0;
        for session in self.members.values().filter_map(|m| m.session.as_ref()).filter(behind) {
            turn.send(session.conn, ToAgent::Keys(bytes.clone()));
            sent += 1;
        }
        Ok(Ok(Answer::Keys { version: set.version, sent }))
    }
}
