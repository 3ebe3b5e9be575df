//! What the core says on the control stream, from its turns to packets.

use crate::clock;
use dunlin_wire::company::{Company, SOON_MS};
use dunlin_wire::message::{Numbered, ToHub};
use dunlin_wire::{frame, limits};
use quinn::SendStream;
use std::time::Duration;
use tokio::sync::mpsc;

/// Leaves out what was said for the connection before: all that comes before this one's Hello.
pub(super) fn from_hello(frames: &mut Vec<Numbered>, said_hello: &mut bool) {
    if !*said_hello {
        let hello = frames.iter().position(|frame| matches!(frame.message, ToHub::Hello(_)));
        frames.drain(..hello.unwrap_or(frames.len()));
        *said_hello = hello.is_some();
    }
}

/// Writes turn after turn, until the stream cannot be written or `waiting` is over; what waits for company goes out first.
pub(super) async fn write(mut send: SendStream, mut waiting: mpsc::Receiver<Vec<Numbered>>) {
    let (mut company, mut over) = (Company::default(), false);
    while !over {
        let due = company.poll_timeout();
        let wait = Duration::from_millis(due.map_or(0, |at| at.saturating_sub(clock::boot_ms())));
        tokio::select! {
            frames = waiting.recv() => match frames {
                Some(frames) => company.handle(frames, clock::boot_ms(), wait_ms),
                None => over = true,
            },
            () = tokio::time::sleep(wait), if due.is_some() => {}
        }
        let frames = company.poll(if over { u64::MAX } else { clock::boot_ms() });
        let mut bytes = Vec::new();
        for frame in &frames {
            if let Err(error) = frame::push(&mut bytes, frame, limits::FRAME_MAX) {
                tracing::error!(%error, "a message does not fit a frame");
            }
        }
        if !bytes.is_empty() && send.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// A job that is over at once says all it has to say in one packet.
fn wait_ms(frame: &Numbered) -> u64 {
    match frame.message {
        ToHub::Accepted { .. } | ToHub::Started { .. } => SOON_MS,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::message::{Hello, Profile, Role};
    use dunlin_wire::{FleetId, version};

    fn hello() -> ToHub {
        ToHub::Hello(Box::new(Hello {
            generation: version::GENERATION,
            fleet: FleetId([1; 16]),
            node: "board".parse().unwrap(),
            role: Role::Worker,
            boot_id: [1; 16],
            connection: 1,
            version: String::new(),
            capabilities: vec![],
            slots: 1,
            profile: Profile::Wan,
            policy: [0; 8],
        }))
    }

    #[test]
    fn what_was_said_for_the_connection_before_is_left_out() {
        let frames = |messages: Vec<ToHub>| -> Vec<Numbered> {
            messages.into_iter().map(|message| Numbered { seq: 1, message }).collect()
        };
        let mut said_hello = false;
        let mut stale = frames(vec![ToHub::Leaving]);
        from_hello(&mut stale, &mut said_hello);
        assert_eq!((stale, said_hello), (vec![], false));
        let mut first = frames(vec![ToHub::Leaving, hello(), ToHub::Claim { ids: vec![] }]);
        from_hello(&mut first, &mut said_hello);
        assert_eq!((first, said_hello), (frames(vec![hello(), ToHub::Claim { ids: vec![] }]), true));
        let mut later = frames(vec![ToHub::Leaving]);
        from_hello(&mut later, &mut said_hello);
        assert_eq!(later.len(), 1);
    }
}
