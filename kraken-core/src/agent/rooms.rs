//! Room for pieces, in memory or in work, shared fairly among blobs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kraken_proto::Digest;
use kraken_proto::limits::budget::Budget;
use tokio::sync::oneshot;

/// So much room, of which one blob may take half. Clones are the same rooms.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    budget: Arc<Mutex<Budget<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    size: u64,
    granted: oneshot::Sender<Room>,
}

/// A piece's room; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    rooms: Rooms,
    digest: Digest,
    size: u64,
}

impl Rooms {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            budget: Arc::new(Mutex::new(Budget::new(size))),
        }
    }

    /// Waits for room. Whoever stops waiting gets none.
    pub(crate) async fn acquire(&self, digest: Digest, size: u64) -> Room {
        let (granted, room) = oneshot::channel();
        self.lock().push(digest, size, Waiter { size, granted });
        self.hand_out();
        room.await.expect("those who wait are answered or gone")
    }

    fn hand_out(&self) {
        loop {
            // A statement of its own: the lock is free before the room changes hands.
            let next = self.lock().pop();
            let Some((digest, Waiter { size, granted })) = next else {
                return;
            };
            let room = Room {
                rooms: self.clone(),
                digest,
                size,
            };
            if let Err(room) = granted.send(room) {
                // Its drop hands out again: to none of the many who may be gone as well.
                self.lock().remove(|waiter| waiter.granted.is_closed());
                drop(room);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Budget<Waiter>> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms.lock().release(self.digest, self.size);
        self.rooms.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn blob(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    #[test]
    fn room_is_given_back_and_passed_on() {
        let rooms = Rooms::new(10);
        let first = rooms.acquire(blob(1), 5).now_or_never().unwrap();
        let mut second = Box::pin(rooms.acquire(blob(1), 5));
        assert!(second.as_mut().now_or_never().is_none());
        let other = rooms.acquire(blob(2), 5).now_or_never();
        assert!(other.is_some(), "half is left for others");
        drop((first, other));
        assert!(second.now_or_never().is_some());
        assert_eq!(rooms.lock().held(), 0);
    }

    #[test]
    fn those_who_stop_waiting_take_nothing_along() {
        let rooms = Rooms::new(10);
        let room = rooms.acquire(blob(1), 5).now_or_never().unwrap();
        for _ in 0..100_000 {
            assert!(rooms.acquire(blob(1), 5).now_or_never().is_none());
        }
        drop(room);
        assert_eq!(rooms.lock().held(), 0);
        assert!(rooms.acquire(blob(1), 5).now_or_never().is_some());
    }
}
