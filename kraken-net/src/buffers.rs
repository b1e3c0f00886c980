//! Buffers for pieces that arrive, used again.
//!
//! A buffer of some MiB that is fresh costs a page fault for every 4 KiB, one that grows as the
//! bytes come is copied again and again, and one that does not begin with a page is copied to a file
//! three times slower on some processors.
//!
//! Always true: a pool keeps at most [`KEPT`] bytes that nobody uses, and none while nobody uses
//! one of its buffers. Room that no byte has reached takes no memory: peers that announce much and
//! send nothing hold addresses only.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// What a pool keeps at most for the next pieces, in bytes: eight pieces of 4 MiB.
const KEPT: usize = 32 << 20;

/// Shorter pieces are not worth it.
const LEAST: usize = 64 << 10;

const PAGE: usize = 4096;

/// Buffers of one transport. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that were given back, the latest last.
    free: VecDeque<Vec<u8>>,
    /// Bytes that they take.
    kept: usize,
    /// Buffers in use.
    lent: usize,
}

impl Buffers {
    /// An empty buffer with room for `len` bytes.
    pub(crate) fn lend(&self, len: usize) -> PieceBuffer {
        if len < LEAST {
            return PieceBuffer {
                bytes: Vec::with_capacity(len),
                from: 0,
                home: None,
            };
        }
        let mut bytes = self.lock().lend(room(len));
        let from = bytes.as_ptr().align_offset(PAGE);
        bytes.resize(from, 0);
        PieceBuffer {
            bytes,
            from,
            home: Some(self.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Few sizes, so that a buffer fits the next piece as well.
fn room(len: usize) -> usize {
    len.next_power_of_two() + PAGE
}

impl State {
    fn lend(&mut self, room: usize) -> Vec<u8> {
        self.lent += 1;
        // The latest first: it may still be in the processor's cache.
        let fits = self.free.iter().rposition(|it| it.capacity() == room);
        match fits.and_then(|index| self.free.remove(index)) {
            Some(bytes) => {
                self.kept -= bytes.capacity();
                bytes
            }
            None => Vec::with_capacity(room),
        }
    }

    fn take_back(&mut self, mut bytes: Vec<u8>) {
        self.lent -= 1;
        if self.lent == 0 {
            self.free = VecDeque::new();
            self.kept = 0;
            return;
        }
        bytes.clear();
        self.kept += bytes.capacity();
        self.free.push_back(bytes);
        while self.kept > KEPT {
            let oldest = self.free.pop_front();
            self.kept -= oldest.map_or(self.kept, |it| it.capacity());
        }
    }
}

/// Room for a piece, which begins with a page. Given back when it, or what [`PieceBuffer::freeze`]
/// makes of it, is dropped.
#[derive(Debug)]
pub(crate) struct PieceBuffer {
    bytes: Vec<u8>,
    /// Where the first page begins.
    from: usize,
    home: Option<Buffers>,
}

impl PieceBuffer {
    /// Bytes that are there.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// To append to. Whoever appends more than the buffer was lent for makes it slower, and not
    /// wrong.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The bytes, to be shared.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PieceBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

impl Drop for PieceBuffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.lock().take_back(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 4 << 20;

    fn filled(buffers: &Buffers, len: usize) -> Bytes {
        let mut buffer = buffers.lend(len);
        let until = buffer.from + len;
        buffer.tail().resize(until, 7);
        assert_eq!(buffer.len(), len);
        buffer.freeze()
    }

    #[test]
    fn buffers_begin_with_a_page_and_are_used_again() {
        let buffers = Buffers::default();
        let _in_use = filled(&buffers, PIECE);
        let first = filled(&buffers, PIECE);
        let address = first.as_ptr();
        assert_eq!(address.align_offset(PAGE), 0);
        let part = first.slice(10..20);
        drop(first);
        assert_ne!(filled(&buffers, PIECE).as_ptr(), address, "a part is held");
        drop(part);
        let again = filled(&buffers, PIECE - 1);
        assert_eq!((again.as_ptr(), again.len()), (address, PIECE - 1));
        assert!(buffers.lend(PIECE).as_ref().is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_and_nothing_is_kept_when_all_is_quiet() {
        let buffers = Buffers::default();
        let mut in_use: Vec<_> = (0..64).map(|_| filled(&buffers, PIECE)).collect();
        assert_eq!(buffers.lock().kept, 0);
        in_use.truncate(1);
        let kept = buffers.lock().kept;
        assert!((KEPT - 2 * PIECE..=KEPT).contains(&kept), "{kept}");
        drop(in_use);
        let state = buffers.lock();
        assert_eq!((state.kept, state.lent, state.free.len()), (0, 0, 0));
    }

    #[test]
    fn short_pieces_have_no_part_in_it() {
        let buffers = Buffers::default();
        assert_eq!(filled(&buffers, 100).len(), 100);
        assert_eq!(buffers.lock().lent, 0);
    }
}
