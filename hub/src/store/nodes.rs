//! Nodes, their keys, invites and API tokens.

use super::schema::Table;
use super::{StoreError, View, Write};
use crate::core::node::{Invite, Node};
use dunlin_wire::{Key, NodeName};
use serde::{Deserialize, Serialize};

/// An API token. Only its hash is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its name, shown as the actor in the audit.
    pub name: String,
    /// SHA-256 of its text.
    pub hash: [u8; 32],
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: u64,
}

impl View<'_> {
    /// A node by its name.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`; as everywhere here.
    pub fn node(&self, name: &NodeName) -> Result<Option<Node>, StoreError> {
        self.get(Table::Nodes, name.as_str().as_bytes())
    }

    /// The name that a key was enrolled under, also when the node was revoked since.
    pub fn node_of_key(&self, key: &Key) -> Result<Option<NodeName>, StoreError> {
        self.get(Table::Keys, &key.0)
    }

    /// Every node, by name.
    pub fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.all(Table::Nodes)
    }

    /// An invite by its public id.
    pub fn invite(&self, id: &[u8; 16]) -> Result<Option<Invite>, StoreError> {
        self.get(Table::Invites, id)
    }

    /// Every token.
    pub fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        self.all(Table::Tokens)
    }

    fn all<T: serde::de::DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, StoreError> {
        self.table(table).iter(self.txn()?)?.map(|row| super::schema::decode(table, row?.1)).collect()
    }
}

impl Write<'_> {
    /// Writes a node and the index of its key.
    ///
    /// # Errors
    /// The engine's; as everywhere here.
    pub fn put_node(&mut self, node: &Node) -> Result<(), StoreError> {
        self.put(Table::Keys, &node.key.0, &node.spec.name)?;
        self.put(Table::Nodes, node.spec.name.as_str().as_bytes(), node)
    }

    /// Writes an invite.
    pub fn put_invite(&mut self, id: &[u8; 16], invite: &Invite) -> Result<(), StoreError> {
        self.put(Table::Invites, id, invite)
    }

    /// Writes a token.
    pub fn put_token(&mut self, token: &Token) -> Result<(), StoreError> {
        self.put(Table::Tokens, token.name.as_bytes(), token)
    }
}
