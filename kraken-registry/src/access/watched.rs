//! Files that are read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::AccessError;

/// How often it is looked whether a file has changed.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of a file, at most.
const LONGEST: u64 = 16 << 20;

/// What some files say. What makes no sense changes nothing.
pub(super) struct Watched<T> {
    files: Vec<PathBuf>,
    read: fn(&[PathBuf]) -> Result<T, AccessError>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    changed: Vec<Option<(SystemTime, u64)>>,
    looked: Instant,
}

impl<T> Watched<T> {
    /// Reads the files.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn open(
        files: Vec<PathBuf>,
        read: fn(&[PathBuf]) -> Result<T, AccessError>,
    ) -> Result<Self, AccessError> {
        // Before they are read: a change in between is seen the next time.
        let changed = changed(&files);
        let value = Arc::new(read(&files)?);
        let looked = Instant::now();
        let state = State {
            value,
            changed,
            looked,
        };
        Ok(Self {
            files,
            read,
            state: Mutex::new(state),
        })
    }

    /// What they say now.
    pub(super) fn now(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() > LOOK {
            state.looked = Instant::now();
            let changed = changed(&self.files);
            if changed != state.changed {
                match (self.read)(&self.files) {
                    Ok(value) => {
                        state.value = Arc::new(value);
                        state.changed = changed;
                        tracing::info!(files = ?self.files, "read again");
                    }
                    Err(error) => tracing::error!(%error, "all stays as it was"),
                }
            }
        }
        state.value.clone()
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn changed(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let one = |file: &PathBuf| {
        let about = std::fs::metadata(file).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    files.iter().map(one).collect()
}

/// A file's text.
pub(super) fn text(file: &Path) -> Result<String, AccessError> {
    let read = || {
        if std::fs::metadata(file)?.len() > LONGEST {
            return Err(std::io::Error::other("it is longer than 16 MiB"));
        }
        std::fs::read_to_string(file)
    };
    read().map_err(|source| AccessError::Read {
        file: file.to_path_buf(),
        source,
    })
}
