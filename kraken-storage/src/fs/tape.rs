//! A recording of what the store changes on disk, and the disks that a loss of power could leave.
//!
//! Recorded is every call that changes a file or a name, and every sync. A disk after a cut is made
//! from the calls before it: what was synced is there, and of the rest what the cut's
//! [`Survival`] says. Harsher than most file systems: a synced file's name is only there when its
//! directory was synced as well, and of unsynced writes any may be missing, in whole pages.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use kraken_proto::rng::Rng;

/// A file, whatever its name.
type FileId = usize;

#[derive(Debug, Clone)]
enum Call {
    Create {
        path: PathBuf,
        file: FileId,
    },
    Write {
        file: FileId,
        offset: u64,
        bytes: Vec<u8>,
        at: Option<SystemTime>,
    },
    SetLength {
        file: FileId,
        length: u64,
        at: Option<SystemTime>,
    },
    SyncFile {
        file: FileId,
    },
    SyncDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    /// Not of the store: what it had promised by then.
    Promise(String),
}

#[derive(Debug, Default)]
struct Reel {
    calls: Vec<Call>,
    /// What is recorded lies below it.
    root: PathBuf,
    /// Which file an inode of a device is now.
    files: HashMap<(u64, u64), FileId>,
    count: FileId,
}

static REEL: Mutex<Option<Reel>> = Mutex::new(None);

fn reel() -> MutexGuard<'static, Option<Reel>> {
    REEL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with(note: impl FnOnce(&mut Reel)) {
    if let Some(reel) = reel().as_mut() {
        note(reel);
    }
}

impl Reel {
    fn file(&mut self, file: &File) -> Option<FileId> {
        let metadata = file.metadata().ok()?;
        self.files.get(&(metadata.dev(), metadata.ino())).copied()
    }
}

fn changed(file: &File) -> Option<SystemTime> {
    file.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
}

pub(super) fn created(path: &Path, file: &File) {
    with(|reel| {
        let Ok(metadata) = file.metadata() else {
            return;
        };
        // Also a file elsewhere, which may have got the number of one that is gone.
        let inode = (metadata.dev(), metadata.ino());
        reel.files.remove(&inode);
        if !path.starts_with(&reel.root) {
            return;
        }
        let id = reel.count;
        reel.count += 1;
        reel.files.insert(inode, id);
        let path = path.to_path_buf();
        reel.calls.push(Call::Create { path, file: id });
    });
}

pub(super) fn written(file: &File, offset: u64, bytes: &[u8]) {
    with(|reel| {
        let at = changed(file);
        if let Some(file) = reel.file(file) {
            let bytes = bytes.to_vec();
            reel.calls.push(Call::Write {
                file,
                offset,
                bytes,
                at,
            });
        }
    });
}

pub(super) fn sized(file: &File, length: u64) {
    with(|reel| {
        let at = changed(file);
        if let Some(file) = reel.file(file) {
            reel.calls.push(Call::SetLength { file, length, at });
        }
    });
}

pub(super) fn synced(file: &File) {
    with(|reel| {
        if let Some(file) = reel.file(file) {
            reel.calls.push(Call::SyncFile { file });
        }
    });
}

pub(super) fn synced_dir(path: &Path) {
    let path = path.to_path_buf();
    with(|reel| {
        if path.starts_with(&reel.root) {
            reel.calls.push(Call::SyncDir { path });
        }
    });
}

pub(super) fn renamed(from: &Path, to: &Path) {
    let (from, to) = (from.to_path_buf(), to.to_path_buf());
    with(|reel| {
        if from.starts_with(&reel.root) {
            reel.calls.push(Call::Rename { from, to });
        }
    });
}

pub(super) fn removed(path: &Path) {
    let path = path.to_path_buf();
    with(|reel| {
        if path.starts_with(&reel.root) {
            reel.calls.push(Call::Remove { path });
        }
    });
}

/// Records what a store of this process changes, from when it is started until it is stopped. One at
/// a time; the store's files have to be made while it runs.
#[derive(Debug)]
pub struct Tape(());

impl Tape {
    /// Starts to record what happens below `root`.
    ///
    /// # Panics
    /// Another one runs.
    pub fn start(root: &Path) -> Self {
        let mut reel = reel();
        assert!(reel.is_none(), "one tape at a time");
        *reel = Some(Reel {
            root: root.to_path_buf(),
            ..Reel::default()
        });
        Self(())
    }

    /// Notes what was promised by now.
    pub fn promise(&self, text: impl Into<String>) {
        let text = text.into();
        with(|reel| reel.calls.push(Call::Promise(text)));
    }

    /// What was recorded.
    pub fn stop(self) -> Recording {
        let calls = reel().take().map(|reel| reel.calls);
        Recording {
            calls: calls.unwrap_or_default(),
        }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        *reel() = None;
    }
}

/// What is on the disk of the calls that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survival {
    /// Whether changes of names are there.
    pub names: bool,
    /// Which writes are there.
    pub writes: Writes,
}

/// Which of the unsynced writes are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// All of them.
    All,
    /// None of them.
    None,
    /// Any, as the seed chooses, in whole pages.
    Some(u64),
}

/// Calls, in their order.
#[derive(Debug)]
pub struct Recording {
    calls: Vec<Call>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    synced: Vec<u8>,
    unsynced: Vec<Call>,
    changed: Option<SystemTime>,
}

impl Recording {
    /// How many cuts there are: before each call, and behind the last.
    pub fn cuts(&self) -> usize {
        self.calls.len() + 1
    }

    /// What was promised before a cut.
    pub fn promises(&self, cut: usize) -> impl Iterator<Item = &str> {
        self.calls[..cut].iter().filter_map(|call| match call {
            Call::Promise(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Makes a disk as a cut could leave it: the files below `root` then, in `dir`.
    ///
    /// # Errors
    /// `dir` cannot be written.
    pub fn rebuild(
        &self,
        cut: usize,
        survival: Survival,
        (root, dir): (&Path, &Path),
    ) -> io::Result<()> {
        let (mut files, mut names, mut synced_names) = (
            HashMap::<FileId, Content>::new(),
            BTreeMap::new(),
            BTreeMap::new(),
        );
        for call in &self.calls[..cut] {
            match call {
                Call::Create { path, file } => {
                    names.insert(path.clone(), *file);
                    files.insert(*file, Content::default());
                }
                Call::Write { file, at, .. } | Call::SetLength { file, at, .. } => {
                    let content = files.entry(*file).or_default();
                    content.changed = at.or(content.changed);
                    content.unsynced.push(call.clone());
                }
                Call::SyncFile { file } => files.entry(*file).or_default().sync(),
                Call::SyncDir { path } => {
                    let within = |name: &PathBuf| name.parent() == Some(path);
                    synced_names.retain(|name, _| !within(name));
                    let there = names.iter().filter(|(name, _)| within(name));
                    synced_names.extend(there.map(|(name, file)| (name.clone(), *file)));
                }
                Call::Rename { from, to } => {
                    if let Some(file) = names.remove(from) {
                        names.insert(to.clone(), file);
                    }
                }
                Call::Remove { path } => drop(names.remove(path)),
                Call::Promise(_) => {}
            }
        }
        let names = if survival.names { names } else { synced_names };
        for (name, file) in names {
            let Ok(below) = name.strip_prefix(root) else {
                continue;
            };
            let path = dir.join(below);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let content = files.get(&file).cloned().unwrap_or_default();
            let changed = content.changed;
            fs::write(&path, content.survived(survival.writes, file))?;
            // The time of the last write, also where its bytes are lost: a store that trusts times is
            // not to be helped.
            if let Some(at) = changed {
                let file = File::options().write(true).open(&path)?;
                file.set_times(FileTimes::new().set_modified(at))?;
            }
        }
        Ok(())
    }
}

impl Content {
    fn sync(&mut self) {
        for call in std::mem::take(&mut self.unsynced) {
            apply(&mut self.synced, &call, |_| true);
        }
    }

    fn survived(mut self, writes: Writes, file: FileId) -> Vec<u8> {
        let mut rng = match writes {
            Writes::All => {
                self.sync();
                return self.synced;
            }
            Writes::None => return self.synced,
            Writes::Some(seed) => Rng::seeded(seed ^ (file as u64) << 20),
        };
        for call in &self.unsynced {
            apply(&mut self.synced, call, |_| rng.below(2) == 0);
        }
        self.synced
    }
}

/// Makes a change, of a write the pages that `keep` chooses.
fn apply(bytes: &mut Vec<u8>, call: &Call, mut keep: impl FnMut(u64) -> bool) {
    const PAGE: usize = 4096;
    match call {
        Call::SetLength { length, .. } => {
            bytes.resize(usize::try_from(*length).expect("it was in memory"), 0);
        }
        Call::Write {
            offset, bytes: new, ..
        } => {
            let mut at = usize::try_from(*offset).expect("it was in memory");
            let mut new = new.as_slice();
            while !new.is_empty() {
                let (page, rest) = new.split_at(new.len().min(PAGE - at % PAGE));
                if keep(at as u64) {
                    if bytes.len() < at + page.len() {
                        bytes.resize(at + page.len(), 0);
                    }
                    bytes[at..at + page.len()].copy_from_slice(page);
                }
                at += page.len();
                new = rest;
            }
        }
        _ => {}
    }
}
