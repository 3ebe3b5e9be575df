//! What a job writes: its first and its last half of a limit, in bounded memory, whatever it writes in between.
//!
//! Little output stays in memory. More goes to a file without a name, whose room is reserved when it is made, and whose
//! last half is a ring; the reader gets the file itself.

use super::sys;
use dunlin_wire::job::StreamEnd;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of one stream that are kept in memory, and sent in a message.
const MEMORY: u64 = 64 * 1024;
/// Bytes that are read from a spool at a time.
const PIECE: usize = 64 * 1024;

/// Where the kept bytes are in a spool: the head from 0, then the ring, whose oldest byte is at `oldest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub head: u64,
    pub oldest: u64,
    pub tail: u64,
}

/// Kept bytes of a stream that has ended.
#[derive(Debug)]
pub(super) enum Kept {
    Memory(Vec<u8>),
    Spool(OwnedFd, Layout),
}

/// One stream's kept bytes.
#[derive(Debug)]
pub(super) struct Output {
    half: u64,
    total: u64,
    dir: PathBuf,
    store: Store,
    // The disk took no more: this much of the head is kept, and nothing behind it.
    cut: Option<u64>,
}

#[derive(Debug)]
enum Store {
    Memory { head: Vec<u8>, tail: VecDeque<u8> },
    Spool(File),
}

impl Output {
    /// Keeps at most `limit` bytes; a file for them is made in `dir`.
    pub(super) fn new(limit: u64, dir: &Path) -> Self {
        let store = Store::Memory { head: Vec::new(), tail: VecDeque::new() };
        Self { half: (limit / 2).max(1), total: 0, dir: dir.to_owned(), store, cut: None }
    }

    /// Takes what was written; returns how much of its beginning went into the head.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let offset = self.total;
        self.total += bytes.len() as u64;
        if self.cut.is_some() {
            return 0;
        }
        match self.keep(offset, bytes) {
            Ok(()) => self.half.saturating_sub(offset).min(bytes.len() as u64) as usize,
            Err(error) => {
                tracing::error!(%error, dir = %self.dir.display(), "output cannot be kept: the rest of it is dropped");
                self.cut = Some(offset.min(self.half));
                0
            }
        }
    }

    fn keep(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let limit = self.half * 2;
        if let Store::Memory { head, tail } = &mut self.store {
            if limit <= MEMORY || self.total <= MEMORY {
                let half = self.half as usize;
                let (first, rest) = bytes.split_at((half - head.len()).min(bytes.len()));
                head.extend_from_slice(first);
                let rest = &rest[rest.len().saturating_sub(half)..];
                let over = (tail.len() + rest.len()).saturating_sub(half);
                tail.drain(..over);
                tail.extend(rest);
                return Ok(());
            }
            let file = spool(&self.dir, limit)?;
            file.write_all_at(head, 0)?;
            file.write_all_at(tail.make_contiguous(), head.len() as u64)?;
            self.store = Store::Spool(file);
        }
        match &self.store {
            Store::Spool(file) => write(file, self.half, offset, bytes),
            Store::Memory { .. } => Ok(()),
        }
    }

    /// Bytes written in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn layout(&self) -> Layout {
        if let Some(head) = self.cut {
            return Layout { head, oldest: head, tail: 0 };
        }
        let behind = self.total.saturating_sub(self.half);
        let oldest = if behind > self.half { behind % self.half } else { 0 };
        Layout { head: self.total.min(self.half), oldest: self.half + oldest, tail: behind.min(self.half) }
    }

    /// Whether something had to be cut.
    pub(super) fn is_cut(&self) -> bool {
        let layout = self.layout();
        self.total > layout.head + layout.tail
    }

    /// The kept bytes, and the account of them.
    pub(super) fn finish(self) -> (StreamEnd, Kept) {
        let layout = self.layout();
        let kept = layout.head + layout.tail;
        let mut end = StreamEnd {
            end: self.total,
            truncated: self.total - kept,
            head: if self.total == kept { kept } else { layout.head },
            digest: [0; 8],
        };
        let mut hash = Context::new(&SHA256);
        let kept = match self.store {
            Store::Memory { head: mut bytes, tail } => {
                bytes.extend(tail);
                bytes.truncate(kept as usize);
                hash.update(&bytes);
                Kept::Memory(bytes)
            }
            Store::Spool(file) => {
                if let Err(error) = read_kept(&file, layout, |piece| hash.update(piece)) {
                    // What is sent will not match what was hashed, which is how the reader learns of it.
                    tracing::error!(%error, "output cannot be read back");
                }
                Kept::Spool(file.into(), layout)
            }
        };
        end.digest.copy_from_slice(&hash.finish().as_ref()[..8]);
        (end, kept)
    }
}

/// Hands the kept bytes of a spool to `take`, in order, in pieces.
///
/// # Errors
/// The file system's; `UnexpectedEof` when the file is shorter than `layout` says.
pub(super) fn read_kept(file: &File, layout: Layout, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    // What was written over the ring's beginning comes last.
    let newest = layout.oldest.saturating_sub(layout.head).min(layout.tail);
    let spans = [(0, layout.head), (layout.oldest, layout.tail - newest), (layout.head, newest)];
    let mut buffer = vec![0; PIECE];
    for (mut at, mut left) in spans {
        while left > 0 {
            let piece = &mut buffer[..left.min(PIECE as u64) as usize];
            file.read_exact_at(piece, at)?;
            take(piece);
            at += piece.len() as u64;
            left -= piece.len() as u64;
        }
    }
    Ok(())
}

/// A file without a name in `dir`, with room for so many bytes where the file system can promise that.
fn spool(dir: &Path, bytes: u64) -> io::Result<File> {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL;
    let file = File::from(sys::open_path(&dir.to_string_lossy(), flags)?);
    sys::reserve(&file, bytes)?;
    Ok(file)
}

/// Writes what is at `offset` of the stream: below `half` where it belongs, behind that into the ring.
fn write(file: &File, half: u64, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let (at, room) = if offset < half {
            (offset, half - offset)
        } else {
            let in_ring = (offset - half) % half;
            (half + in_ring, half - in_ring)
        };
        let (now, later) = bytes.split_at(bytes.len().min(room as usize));
        file.write_all_at(now, at)?;
        (offset, bytes) = (offset + now.len() as u64, later);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(kept: Kept) -> Vec<u8> {
        match kept {
            Kept::Memory(bytes) => bytes,
            Kept::Spool(file, layout) => {
                let mut bytes = Vec::new();
                read_kept(&file.into(), layout, |piece| bytes.extend_from_slice(piece)).unwrap();
                bytes
            }
        }
    }

    #[test]
    fn head_and_tail_survive_any_chunking_in_memory_and_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
        for (len, limit) in [
            (1000, 2000),
            (1000, 1000),
            (1000, 100),
            (1000, 2),
            (65_536, 80_000),
            (65_537, 80_000),
            (80_000, 80_000),
            (80_001, 80_000),
            (119_999, 80_000),
            (120_000, 80_000),
            (400_000, 80_000),
            (400_000, 66_002),
            (200_000, 400_000),
            (200_000, 399_998),
        ] {
            let bytes = &all[..len];
            let half = limit / 2;
            let want =
                if len <= limit { bytes.to_vec() } else { [&bytes[..half], &bytes[len - half..]].concat() };
            for size in [977, 4096, 65_536] {
                let what = format!("{len} bytes, limit {limit}, by {size}");
                let mut out = Output::new(limit as u64, dir.path());
                let live: usize = bytes.chunks(size).map(|c| out.push(c)).sum();
                assert_eq!(out.is_cut(), len > limit, "{what}");
                let (end, kept) = out.finish();
                assert_eq!(live, half.min(len), "{what}");
                assert_eq!((end.end, end.truncated), (len as u64, (len - want.len()) as u64), "{what}");
                assert!(bytes_of(kept) == want, "{what}");
                let digest = ring::digest::digest(&SHA256, &want);
                assert_eq!(end.digest, digest.as_ref()[..8], "{what}");
            }
        }
    }

    #[test]
    fn without_a_disk_the_beginning_stays() {
        let mut out = Output::new(1 << 20, Path::new("/nowhere"));
        let live: usize = (0..4).map(|n| out.push(&[n; 50_000])).sum();
        let (end, kept) = out.finish();
        // What was said live is all there.
        assert_eq!((live, end.end, end.head, end.truncated), (50_000, 200_000, 50_000, 150_000));
        assert_eq!(bytes_of(kept), [0; 50_000]);
    }
}
