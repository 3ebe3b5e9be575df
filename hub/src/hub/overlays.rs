//! Overlays on their way to boards: each narrows what a board's own policy allows. A node's own goes before the fleet's.

use super::{Hub, Turn};
use crate::event::{Answer, ApiRefusal, ConnId};
use crate::store::StoreError;
use dunlin_wire::NodeName;
use dunlin_wire::message::ToAgent;
use dunlin_wire::overlay::Overlay;

/// The store's names for the number of the newest, and for the fleet's.
const NEWEST: &str = "overlay_version";
const FLEET: &str = "overlay";

fn place(name: &NodeName) -> String {
    format!("overlay:{name}")
}

/// The one meant for a node.
fn meant(name: &NodeName, turn: &Turn<'_>) -> Result<Option<Overlay>, StoreError> {
    let own = turn.write.view().meta::<Overlay>(&place(name))?;
    if own.is_some() { Ok(own) } else { turn.write.view().meta(FLEET) }
}

impl Hub {
    /// A board says which one it has in force. It is sent the one that is meant for it.
    pub(super) fn handle_overlay(
        &mut self,
        conn: ConnId,
        name: &NodeName,
        version: u64,
        turn: &mut Turn<'_>,
    ) -> Result<(), StoreError> {
        let Some(session) = self.session_at(conn, name) else { return Ok(()) };
        let news = session.overlay.replace(version) != Some(version);
        // One that a board does not take is not sent again and again.
        if let Some(overlay) = meant(name, turn)?.filter(|overlay| news && overlay.version != version) {
            turn.send(conn, ToAgent::Overlay(Box::new(overlay)));
        }
        Ok(())
    }

    /// Stores one, for a node or for all that have none of their own, and sends it to those that are there.
    pub(super) fn push_overlay(
        &mut self,
        node: Option<NodeName>,
        mut overlay: Overlay,
        turn: &mut Turn<'_>,
    ) -> Result<Result<Answer, ApiRefusal>, StoreError> {
        if let Some(name) = node.as_ref().filter(|name| !self.members.contains_key(name)) {
            return Ok(Err(ApiRefusal::UnknownNode(name.clone())));
        }
        overlay.version = turn.write.view().meta::<u64>(NEWEST)?.unwrap_or(0) + 1;
        turn.write.put_meta(NEWEST, &overlay.version)?;
        turn.write.put_meta(&node.as_ref().map_or(FLEET.to_owned(), place), &overlay)?;
        turn.event("policy.pushed", |e| {
            e.node = node;
            e.detail = Some(format!("version {}", overlay.version));
        })?;
        let mut sent = 0;
        for (name, member) in &self.members {
            let Some(session) = &member.session else { continue };
            if meant(name, turn)?.is_some_and(|meant| meant.version == overlay.version) {
                turn.send(session.conn, ToAgent::Overlay(Box::new(overlay.clone())));
                sent += 1;
            }
        }
        Ok(Ok(Answer::Overlay { version: overlay.version, sent }))
    }
}
