//! What an upload stream carries: an attempt's output and its outcome.

use crate::ids::{Fence, TaskId};
use crate::job::{Report, Stream};
use serde::{Deserialize, Serialize};

/// Output and outcome of an attempt. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upload {
    /// A piece of what was kept of a stream.
    Chunk {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Position among the kept bytes (head, then tail; the cut is told by the report).
        offset: u64,
        /// The bytes, at most `limits::CHUNK_MAX`.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The end, after every chunk.
    Outcome {
        /// The task.
        task: TaskId,
        /// The attempt.
        fence: Fence,
        /// How it ended.
        report: Box<Report>,
    },
    /// What a job just wrote, to be seen and not kept: the chunks bring it again. Only within what `Watch` grants.
    Tail {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Position in what the job wrote; a gap was not sent.
        offset: u64,
        /// The bytes, at most `limits::CHUNK_MAX`.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
}
