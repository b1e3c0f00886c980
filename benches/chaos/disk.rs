//! Somebody else who keeps the disk busy.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};

use crate::Outcome;

/// Writes and syncs until it is dropped.
pub(crate) struct Hog {
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is written before each sync.
const STEP: usize = 4 << 20;
/// The file is written over from here on.
const MOST: u64 = 256 << 20;

impl Hog {
    pub(crate) fn start(dir: &Path) -> Outcome<Self> {
        let mut file = tempfile::tempfile_in(dir)?;
        let goes_on = Arc::new(AtomicBool::new(true));
        let until = goes_on.clone();
        let thread = spawn(move || {
            let step = vec![1; STEP];
            // The disk may be full, which is a fault, too.
            while until.load(Ordering::Relaxed) && write(&mut file, &step).is_ok() {}
        });
        Ok(Self {
            goes_on,
            thread: Some(thread),
        })
    }
}

fn write(file: &mut File, step: &[u8]) -> std::io::Result<()> {
    file.write_all(step)?;
    file.sync_data()?;
    if file.stream_position()? >= MOST {
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(())
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
