//! What the executor says, on its way to the uplink. It never waits for a reader: live output is dropped when there is no
//! room, everything else is queued, which is bounded by the jobs there are.

use super::message::{FromExec, Said};
use super::output::Kept;
use super::socket;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The way to the uplink that is connected, if one is.
#[derive(Debug, Default)]
pub(super) struct Outbox(RefCell<Option<Client>>);

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Outbox {
    /// From now on this one is spoken to.
    pub(super) fn connect(&self, socket: OwnedFd) {
        *self.0.borrow_mut() = Some(Client { socket, waiting: VecDeque::new() });
    }

    /// It is gone.
    pub(super) fn disconnect(&self) {
        *self.0.borrow_mut() = None;
    }

    /// The connected one's socket, and whether something waits for room in it.
    pub(super) fn socket(&self) -> Option<(RawFd, bool)> {
        self.0.borrow().as_ref().map(|c| (c.socket.as_raw_fd(), !c.waiting.is_empty()))
    }

    /// Says it, if somebody listens.
    pub(super) fn tell(&self, message: FromExec) {
        self.say(Said { message, spooled: [None; 2] }, Vec::new());
    }

    /// Says that an attempt has ended, with what is kept of its output.
    pub(super) fn tell_ended(&self, mut message: FromExec, outputs: [Kept; 2]) {
        let (mut spooled, mut files) = ([None; 2], Vec::new());
        if let FromExec::Ended { kept, .. } = &mut message {
            for (at, output) in outputs.into_iter().enumerate() {
                match output {
                    Kept::Memory(bytes) => kept[at] = bytes,
                    Kept::Spool(file, layout) => {
                        spooled[at] = Some(layout);
                        files.push(file);
                    }
                }
            }
        }
        self.say(Said { message, spooled }, files);
    }

    fn say(&self, said: Said, files: Vec<OwnedFd>) {
        let mut client = self.0.borrow_mut();
        let Some(client) = client.as_mut() else { return };
        let live = matches!(said.message, FromExec::Output { .. });
        if live && !client.waiting.is_empty() {
            return;
        }
        let bytes = match postcard::to_stdvec(&said) {
            Ok(bytes) => bytes,
            Err(error) => return tracing::error!(%error, "a message does not encode"),
        };
        client.waiting.push_back((bytes, files));
        client.flush();
        if live {
            // What found no room is not kept for later; the outcome carries it.
            client.waiting.clear();
        }
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&self) {
        if let Some(client) = self.0.borrow_mut().as_mut() {
            client.flush();
        }
    }
}

impl Client {
    fn flush(&mut self) {
        while let Some((bytes, files)) = self.waiting.front() {
            match socket::send(self.socket.as_raw_fd(), bytes, files, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One that is gone is noticed by the end of its socket.
                Err(error) => tracing::debug!(%error, "the uplink did not take a message"),
                Ok(()) => {}
            }
            self.waiting.pop_front();
        }
    }
}
