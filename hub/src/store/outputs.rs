//! Output of attempts: pieces without gaps, from offset 0.

use super::schema::{Table, key, number};
use super::{StoreError, View, Write};
use dunlin_wire::Fence;
use dunlin_wire::job::Stream;
use ring::digest::{Context, SHA256};
use std::ops::Bound;

fn piece_key(fence: Fence, stream: Stream, offset: u64) -> Vec<u8> {
    key(&[&fence.0.to_be_bytes(), &[stream as u8], &offset.to_be_bytes()])
}

/// Position of the offset in a key.
const OFFSET: usize = 9;

impl View<'_> {
    /// Bytes held of a stream, from its start without a gap.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`; as everywhere here.
    pub fn output_len(&self, fence: Fence, stream: Stream) -> Result<u64, StoreError> {
        let prefix = key(&[&fence.0.to_be_bytes(), &[stream as u8]]);
        match self.table(Table::Outputs).rev_prefix_iter(self.txn()?, &prefix)?.next() {
            Some(row) => {
                let (row_key, bytes) = row?;
                Ok(number(Table::Outputs, row_key, OFFSET)? + bytes.len() as u64)
            }
            None => Ok(0),
        }
    }

    /// At most about `limit` bytes of a stream from `offset`.
    pub fn output(
        &self,
        fence: Fence,
        stream: Stream,
        offset: u64,
        limit: usize,
    ) -> Result<Vec<u8>, StoreError> {
        let mut out = Vec::new();
        let table = self.table(Table::Outputs);
        // The piece that holds `offset` begins at or before it.
        let begin = match table.get_lower_than_or_equal_to(self.txn()?, &piece_key(fence, stream, offset))? {
            Some((row_key, _)) if row_key.starts_with(&piece_key(fence, stream, 0)[..OFFSET]) => {
                row_key.to_vec()
            }
            _ => return Ok(out),
        };
        let last = piece_key(fence, stream, u64::MAX);
        let range = (Bound::Included(begin.as_slice()), Bound::Included(last.as_slice()));
        for row in table.range(self.txn()?, &range)? {
            let (row_key, bytes) = row?;
            let at = number(Table::Outputs, row_key, OFFSET)?;
            let skip = offset.saturating_sub(at).min(bytes.len() as u64) as usize;
            let room = limit - out.len();
            out.extend(bytes[skip..].iter().take(room));
            if out.len() == limit {
                break;
            }
        }
        Ok(out)
    }

    /// The first eight bytes of the SHA-256 of what is held of a stream.
    pub fn output_digest(&self, fence: Fence, stream: Stream) -> Result<[u8; 8], StoreError> {
        let mut hash = Context::new(&SHA256);
        let prefix = key(&[&fence.0.to_be_bytes(), &[stream as u8]]);
        for row in self.table(Table::Outputs).prefix_iter(self.txn()?, &prefix)? {
            hash.update(row?.1);
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&hash.finish().as_ref()[..8]);
        Ok(digest)
    }
}

impl Write<'_> {
    /// Appends what is new of `bytes` at `offset`; what is held already is dropped. Returns the length held then: less
    /// than `offset` when there is a gap before it, and then nothing was written.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`; as everywhere here.
    pub fn append_output(
        &mut self,
        fence: Fence,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64, StoreError> {
        let held = self.view().output_len(fence, stream)?;
        let Some(known) = held.checked_sub(offset) else { return Ok(held) };
        let fresh = bytes.get(known as usize..).unwrap_or_default();
        if fresh.is_empty() {
            return Ok(held);
        }
        self.put_bytes(Table::Outputs, &piece_key(fence, stream, held), fresh)?;
        Ok(held + fresh.len() as u64)
    }

    /// Forgets the output of an attempt.
    pub fn remove_output(&mut self, fence: Fence) -> Result<(), StoreError> {
        let first = piece_key(fence, Stream::Stdout, 0);
        let last = piece_key(fence, Stream::Stderr, u64::MAX);
        self.delete_range(Table::Outputs, &first, &last)
    }
}
