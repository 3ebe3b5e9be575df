//! The control stream of a bare agent, which is in this process.

use anyhow::{Context, Result};
use dunlin_wire::frame::{self, Decoder};
use dunlin_wire::limits;
use dunlin_wire::message::{Numbered, ToAgent, ToHub};

/// A control stream.
pub(crate) struct Line {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    decoder: Decoder,
    seq: u64,
}

impl Line {
    pub(crate) async fn open(connection: &quinn::Connection) -> Result<Self> {
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { send, recv, decoder: Decoder::new(limits::FRAME_MAX), seq: 0 })
    }

    pub(crate) async fn say(&mut self, message: ToHub) -> Result<()> {
        self.seq += 1;
        let mut bytes = Vec::new();
        frame::push(&mut bytes, &Numbered { seq: self.seq, message }, limits::FRAME_MAX)?;
        Ok(self.send.write_all(&bytes).await?)
    }

    pub(crate) async fn hear(&mut self) -> Result<ToAgent> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(message);
            }
            let chunk = self.recv.read_chunk(64 * 1024, true).await?.context("the hub ended the stream")?;
            self.decoder.push(&chunk.bytes);
        }
    }
}
