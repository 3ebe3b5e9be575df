//! The newest events, kept in memory: who follows them reads no store, so nobody has to wait for it.

use crate::event::EventRecord;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Events kept. Who is further behind reads them from the store.
const EVENTS_MAX: usize = 512;

/// An event and its id.
pub type Numbered = (u64, Arc<EventRecord>);

/// The newest events. Only what is acknowledged comes here.
#[derive(Debug)]
pub struct Feed {
    recent: Mutex<VecDeque<Numbered>>,
    newest: watch::Sender<u64>,
}

impl Feed {
    /// After the event with this id.
    pub fn new(newest: u64) -> Self {
        Self { recent: Mutex::default(), newest: watch::Sender::new(newest) }
    }

    /// Takes events, oldest first, and tells that they are there.
    pub fn push(&self, events: Vec<(u64, EventRecord)>) {
        let Some(newest) = events.last().map(|(id, _)| *id) else { return };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(events.into_iter().map(|(id, event)| (id, Arc::new(event))));
        let surplus = recent.len().saturating_sub(EVENTS_MAX);
        recent.drain(..surplus);
        // Under the lock: nobody is given an event that is newer than the newest.
        self.newest.send_replace(newest);
    }

    /// The newest event's id, and when it is another.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// At most `limit` events after `id`, oldest first; `None` when some of them are not here any more.
    pub fn after(&self, id: u64, limit: usize) -> Option<Vec<Numbered>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let first = recent.front().map_or(*self.newest.borrow() + 1, |(first, _)| *first);
        (id + 1 >= first).then(|| recent.iter().filter(|(at, _)| *at > id).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64) -> (u64, EventRecord) {
        let kind = "task.done".to_owned();
        (id, EventRecord { at_ms: id, kind, task: None, node: None, attempt: None, detail: None })
    }

    #[test]
    fn what_is_here_is_told_and_what_is_not_is_asked_of_the_store() {
        let feed = Feed::new(7);
        let ids =
            |id, limit| feed.after(id, limit).map(|all| all.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        assert_eq!(ids(7, 10), Some(vec![]));
        assert_eq!(ids(6, 10), None, "it was before this process");
        feed.push(vec![event(8), event(9)]);
        assert_eq!((ids(7, 10), ids(8, 10), ids(9, 10)), (Some(vec![8, 9]), Some(vec![9]), Some(vec![])));
        assert_eq!((ids(7, 1), *feed.newest().borrow()), (Some(vec![8]), 9));
        feed.push((10..10 + EVENTS_MAX as u64).map(event).collect());
        assert_eq!(ids(8, 10), None);
        assert_eq!(ids(9, 2), Some(vec![10, 11]));
    }
}
