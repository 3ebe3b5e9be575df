//! Frames: a varint length (postcard's own varint, LEB128) and that many bytes of postcard.
//!
//! Push bytes in, take messages out. Nothing is allocated for a frame whose length is over the limit. Bytes behind a
//! decoded message are ignored: that is how fields appended by a newer peer are tolerated.

use serde::{Serialize, de::DeserializeOwned};

/// Why a stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over the limit.
    #[error("frame is over the limit of {limit} bytes")]
    TooLarge {
        /// The limit that holds, in bytes.
        limit: usize,
    },
    /// The bytes are not a message of this protocol.
    #[error("frame does not decode")]
    Garbage,
}

/// Appends `message` to `out` as one frame.
///
/// # Errors
/// `TooLarge` when the encoded message is over `limit` bytes; `out` is then as it was.
pub fn push<T: Serialize>(out: &mut Vec<u8>, message: &T, limit: usize) -> Result<(), FrameError> {
    let body = postcard::to_stdvec(message).map_err(|_| FrameError::Garbage)?;
    if body.len() > limit {
        return Err(FrameError::TooLarge { limit });
    }
    let mut len = body.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(&body);
    Ok(())
}

/// Collects bytes of one stream and cuts messages out of them.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    limit: usize,
}

impl Decoder {
    /// A decoder that refuses frames over `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, limit }
    }

    /// Adds what the stream delivered.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, `None` when more bytes are needed.
    ///
    /// # Errors
    /// The stream cannot go on after an error.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is fallible and generic, so it cannot be an Iterator"
    )]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((len, head)) = self.length()? else { return Ok(None) };
        let body = self.start + head;
        if self.buffer.len() - body < len {
            return Ok(None);
        }
        let (message, _appended) =
            postcard::take_from_bytes(&self.buffer[body..body + len]).map_err(|_| FrameError::Garbage)?;
        self.start = body + len;
        if self.start == self.buffer.len() {
            // Freed: there is one for each stream, and most wait most of the time.
            self.buffer = Vec::new();
            self.start = 0;
        }
        Ok(Some(message))
    }

    fn length(&self) -> Result<Option<(usize, usize)>, FrameError> {
        let mut len = 0usize;
        for (i, byte) in self.buffer[self.start..].iter().enumerate() {
            if i == 4 {
                return Err(FrameError::TooLarge { limit: self.limit });
            }
            len |= usize::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                if len > self.limit {
                    return Err(FrameError::TooLarge { limit: self.limit });
                }
                return Ok(Some((len, i + 1)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn oversize_is_refused_from_its_length_alone() {
        let mut decoder = Decoder::new(100);
        decoder.push(&[0xff, 0xff, 0x7f]);
        assert_eq!(decoder.next::<u8>(), Err(FrameError::TooLarge { limit: 100 }));
        assert_eq!(push(&mut Vec::new(), &vec![0u8; 101], 100), Err(FrameError::TooLarge { limit: 100 }));
    }

    #[test]
    fn appended_fields_are_tolerated() {
        let mut bytes = Vec::new();
        push(&mut bytes, &(1u8, 2u8, 3u8), 100).unwrap();
        push(&mut bytes, &(9u8, 8u8), 100).unwrap();
        let mut decoder = Decoder::new(100);
        decoder.push(&bytes);
        assert_eq!(decoder.next::<(u8, u8)>(), Ok(Some((1, 2))));
        assert_eq!(decoder.next::<(u8, u8)>(), Ok(Some((9, 8))));
        assert_eq!(decoder.next::<(u8, u8)>(), Ok(None));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(texts in prop::collection::vec(".{0,300}", 0..8), cut in 1usize..64) {
            let mut bytes = Vec::new();
            for text in &texts {
                push(&mut bytes, text, 4096).unwrap();
            }
            let mut decoder = Decoder::new(4096);
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(text) = decoder.next::<String>().unwrap() {
                    seen.push(text);
                }
            }
            prop_assert_eq!(seen, texts);
        }
    }
}
