//! Buffers that reads go into.
//!
//! Each begins at a page. The allocator puts large blocks 16 bytes behind one, and the kernel's copy
//! to such a place takes three times as long on some processors. A buffer is used again when the
//! last handle on its bytes is gone: it is zeroed once and not for each read. Only reads of a few
//! bytes have memory of their own, as they would hold much more of the pool than they need.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Buffers that nobody uses, up to [`Pool::IDLE`] bytes. Clones are the same pool.
///
/// It bounds what it keeps, not what is in use: that is for those who read to bound, as only they
/// know who has to wait.
#[derive(Clone, Default)]
pub(super) struct Pool {
    idle: Arc<Mutex<Idle>>,
}

#[derive(Default)]
struct Idle {
    /// The last used at the back.
    blocks: VecDeque<Block>,
    bytes: usize,
}

/// Memory of a size that is a power of two, so that it fits many lengths, and the slack to begin at
/// a page.
#[derive(Default)]
struct Block {
    memory: Vec<u8>,
    size: usize,
}

/// What an alignment is about: the pages of every system that we run on, or a divisor of them.
const PAGE: usize = 4096;

impl Pool {
    /// Bytes in idle buffers: a piece of the largest size, or the frames of some twenty
    /// connections.
    pub(super) const IDLE: usize = 16 << 20;
    /// Bytes in the smallest buffer; less than half of it is not worth one.
    const LEAST: usize = 64 << 10;

    /// A buffer of `len` bytes, whose content is of no meaning.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let size = if len < Self::LEAST / 2 {
            return Buffer::own(len);
        } else {
            len.max(Self::LEAST).next_power_of_two()
        };
        let block = self.lock().take(size).unwrap_or_else(|| Block {
            // Memory that comes from the system is zero already, and not touched here.
            memory: vec![0; size + PAGE - 1],
            size,
        });
        let start = block.memory.as_ptr().align_offset(PAGE);
        Buffer {
            // An offset that cannot be had, which the standard library reserves the right to, only
            // makes it slower.
            start: if start < PAGE { start } else { 0 },
            len,
            block,
            pool: Some(self.clone()),
        }
    }

    fn give_back(&self, block: Block) {
        if block.size <= Self::IDLE {
            // A statement of its own: freed without the lock.
            let gone = self.lock().give_back(block);
            drop(gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        // The sum and the list move in steps that cannot fail.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.lock().bytes;
        f.debug_struct("Pool").field("idle", &bytes).finish()
    }
}

impl Idle {
    /// The one last used, as it is the most likely to be in the processor's cache.
    fn take(&mut self, size: usize) -> Option<Block> {
        let at = self.blocks.iter().rposition(|block| block.size == size)?;
        self.bytes -= size;
        self.blocks.remove(at)
    }

    /// Keeps a block, and gives those that are too many: the ones longest idle, of whatever size.
    fn give_back(&mut self, block: Block) -> Vec<Block> {
        let mut gone = Vec::new();
        self.bytes += block.size;
        self.blocks.push_back(block);
        while self.bytes > Pool::IDLE {
            let Some(oldest) = self.blocks.pop_front() else {
                break;
            };
            self.bytes -= oldest.size;
            gone.push(oldest);
        }
        gone
    }
}

/// Bytes to read into. They go back to the pool when they are dropped.
pub(super) struct Buffer {
    start: usize,
    len: usize,
    block: Block,
    pool: Option<Pool>,
}

impl Buffer {
    fn own(len: usize) -> Self {
        let memory = vec![0; len];
        let block = Block { memory, size: 0 };
        Self {
            start: 0,
            len,
            block,
            pool: None,
        }
    }

    /// The bytes, to be read into.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.block.memory[self.start..self.start + self.len]
    }

    /// The bytes, to be shared; one small allocation.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.block.memory[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.block));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(pool: &Pool) -> (usize, usize) {
        let idle = pool.lock();
        let sum: usize = idle.blocks.iter().map(|block| block.size).sum();
        assert_eq!(sum, idle.bytes);
        (idle.blocks.len(), sum)
    }

    #[test]
    fn buffers_begin_at_a_page_and_have_their_length() {
        let pool = Pool::default();
        for len in [32_768, 65_535, 65_536, 65_537, 3 << 20, 17 << 20] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.bytes_mut().len(), len);
            assert_eq!(buffer.as_ref().as_ptr() as usize % PAGE, 0, "{len}");
        }
        for len in [0, 1, 32_767] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.bytes_mut().len(), len);
            let held = buffer.block.memory.capacity();
            assert_eq!(held, len, "a few bytes hold no more than they need");
        }
        assert!(idle(&pool).0 > 0);
    }

    #[test]
    fn a_buffer_goes_back_with_the_last_handle_on_its_bytes() {
        let pool = Pool::default();
        let mut buffer = pool.take(100_000);
        buffer.bytes_mut().fill(7);
        let place = buffer.as_ref().as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(99_000..);
        drop(bytes);
        assert_eq!(idle(&pool), (0, 0));
        assert_eq!(part, [7; 1000].as_slice());
        drop(part);
        assert_eq!(idle(&pool), (1, 128 << 10));
        let again = pool.take(128 << 10);
        assert_eq!(again.as_ref().as_ptr(), place);
        assert_eq!(idle(&pool), (0, 0));
        assert_ne!(pool.take(256 << 10).as_ref().as_ptr(), place);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_longest_idle_go_first() {
        let pool = Pool::default();
        let many: Vec<_> = (0..100).map(|_| pool.take(256 << 10)).collect();
        drop(many);
        assert_eq!(idle(&pool), (64, Pool::IDLE));
        drop(pool.take(4 << 20));
        assert_eq!(idle(&pool), (49, Pool::IDLE));
        drop(pool.take(64 << 20));
        assert_eq!(idle(&pool), (49, Pool::IDLE), "too large to be kept");
    }

    #[test]
    fn bytes_outlive_the_pool() {
        let pool = Pool::default();
        let bytes = pool.take(1 << 20).freeze();
        drop(pool);
        assert_eq!(bytes.len(), 1 << 20);
    }
}
