//! What becomes of the calls by which redb reads and writes its file.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// What can be made of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// All calls succeeded.
    Well,
    /// A write found no room.
    Full,
    /// The disk failed.
    Broken,
}

/// The worst that a file's calls came to, and why.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<(State, String)>>);

impl Health {
    pub(super) fn state(&self) -> State {
        self.known().as_ref().map_or(State::Well, |it| it.0)
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.known().as_ref().map(|it| it.1.clone())
    }

    fn known(&self) -> MutexGuard<'_, Option<(State, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, state: State, error: &io::Error) {
        let mut known = self.known();
        if known.as_ref().is_none_or(|it| it.0 == State::Full) {
            *known = Some((state, error.to_string()));
        }
    }
}

/// A file whose calls are watched.
#[derive(Debug)]
pub(super) struct Watched {
    file: Box<dyn StorageBackend>,
    health: Arc<Health>,
}

impl Watched {
    pub(super) fn new(file: Box<dyn StorageBackend>, health: Arc<Health>) -> Self {
        Self { file, health }
    }

    fn noted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|error| self.health.heard(State::Broken, error))
    }

    /// The same of a call that may find no room.
    fn noted_growth<T>(&self, done: io::Result<T>) -> io::Result<T> {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        done.inspect_err(|error| {
            let state = match error.kind() {
                StorageFull | QuotaExceeded | FileTooLarge => State::Full,
                _ => State::Broken,
            };
            self.health.heard(state, error);
        })
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.noted(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.noted(self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.noted_growth(self.file.set_len(len))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted_growth(self.file.write(offset, data))
    }

    // No room here is no better than any other failure: what was written is lost, and the kernel may hide that.
    fn sync_data(&self) -> io::Result<()> {
        self.noted(self.file.sync_data())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
