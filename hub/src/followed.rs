//! Who follows an attempt's output: the boundary between the engine, which gives, and the API, which takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// What a follower of an attempt's stream is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More of it is stored.
    Stored,
    /// What the job just wrote, which is not stored.
    Live {
        /// Position in what it wrote.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// The engine's end of a follower, and what waits for it there.
#[derive(Debug, Clone)]
pub struct Followed {
    sink: mpsc::Sender<Piece>,
    waiting: Arc<AtomicU64>,
}

impl Followed {
    /// One that takes from the other end of `sink`, whose capacity bounds what may wait.
    pub fn new(sink: mpsc::Sender<Piece>) -> Self {
        Self { sink, waiting: Arc::default() }
    }

    /// Bytes that it has not taken yet.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Gives it a piece, or drops that when too much waits.
    pub fn offer(&self, piece: Piece) {
        let bytes = piece.bytes();
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if self.sink.try_send(piece).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// It took this one.
    pub fn took(&self, piece: &Piece) {
        self.waiting.fetch_sub(piece.bytes(), Ordering::Relaxed);
    }

    /// Whether nobody takes any more.
    pub fn is_gone(&self) -> bool {
        self.sink.is_closed()
    }
}

impl Piece {
    fn bytes(&self) -> u64 {
        match self {
            Piece::Stored => 0,
            Piece::Live { bytes, .. } => bytes.len() as u64,
        }
    }
}
