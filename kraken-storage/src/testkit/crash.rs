//! Work that may be cut off at any moment, what it has promised by then, and whether that holds.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use kraken_proto::rng::Rng;
use kraken_proto::{Digest, MetaInfo};

use crate::fs::FsStore;
use crate::queue::{DurableQueue, QueueError};
use crate::store::{BlobStatus, PieceStore as _, StoreError, UploadStore as _};

/// Something that must hold from now on, whatever happens. As text on one line it goes to whoever
/// keeps count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The blob of this seed is in the store, whole.
    Sealed(u64),
    /// The piece of a blob that is not whole is in the store: only a crash of the process may come,
    /// none of the machine.
    Piece(u64, u32),
    /// The blob is about to go: it may be there or not.
    Going(u64),
    /// A task of this number is in the queue.
    Queued(u64),
    /// The task is about to be done: it may be there or not.
    Doing(u64),
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sealed(blob) => write!(f, "sealed {blob}"),
            Self::Piece(blob, piece) => write!(f, "piece {blob} {piece}"),
            Self::Going(blob) => write!(f, "going {blob}"),
            Self::Queued(task) => write!(f, "queued {task}"),
            Self::Doing(task) => write!(f, "doing {task}"),
        }
    }
}

impl FromStr for Promise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no promise");
        let words: Vec<_> = text.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        let first = number(1).ok_or_else(wrong)?;
        Ok(match (words[0], number(2)) {
            ("sealed", None) => Self::Sealed(first),
            ("piece", Some(piece)) => {
                Self::Piece(first, u32::try_from(piece).map_err(|_| wrong())?)
            }
            ("going", None) => Self::Going(first),
            ("queued", None) => Self::Queued(first),
            ("doing", None) => Self::Doing(first),
            _ => return Err(wrong()),
        })
    }
}

/// The blob of a seed: up to 600 KiB, some without a byte.
pub fn blob_of(seed: u64) -> (Vec<u8>, MetaInfo) {
    let len = Rng::seeded(seed).below(600 << 10);
    super::blob(if len.is_multiple_of(17) { 0 } else { len }, seed)
}

/// Does `steps` pieces of work that `seed` chooses: pushes, downloads whole and in part, removals,
/// and tasks. Tells each promise when it is given.
///
/// # Errors
/// The store or the queue failed.
pub async fn work(
    store: &FsStore,
    queue: Option<&DurableQueue>,
    (seed, steps): (u64, usize),
    promise: impl Fn(Promise),
) -> Result<(), CrashError> {
    let mut rng = Rng::seeded(seed);
    let mut held = Vec::new();
    for step in 0..steps as u64 {
        let blob = seed << 20 | step;
        match rng.below(10) {
            0..4 => push(store, blob, &mut rng).await?,
            4..7 => {
                download(store, blob, &mut rng, &promise).await?;
                store.seal(blob_of(blob).1.digest()).await?;
            }
            7 => {
                part(store, blob, &mut rng, &promise).await?;
                continue;
            }
            8 if !held.is_empty() => {
                let gone: u64 = held.swap_remove(rng.below(held.len()));
                promise(Promise::Going(gone));
                store.remove(blob_of(gone).1.digest()).await?;
                continue;
            }
            _ => {
                if let Some(queue) = queue {
                    task(queue, blob, rng.below(3) == 0, &promise)?;
                }
                continue;
            }
        }
        promise(Promise::Sealed(blob));
        // All blobs without a byte are one, which is not to go while others are promised.
        if blob_of(blob).1.length() > 0 {
            held.push(blob);
        }
    }
    Ok(())
}

async fn push(store: &FsStore, blob: u64, rng: &mut Rng) -> Result<(), CrashError> {
    let (bytes, meta) = blob_of(blob);
    let upload = store.upload_start().await?;
    let mut at = 0;
    while at < bytes.len() {
        let len = (1 + rng.below(200 << 10)).min(bytes.len() - at);
        let part = bytes::Bytes::copy_from_slice(&bytes[at..at + len]);
        store.upload_append(&upload, at as u64, part).await?;
        at += len;
    }
    store.upload_commit(&upload, meta.digest()).await?;
    Ok(())
}

async fn download(
    store: &FsStore,
    blob: u64,
    rng: &mut Rng,
    promise: &impl Fn(Promise),
) -> Result<(), CrashError> {
    let (bytes, meta) = blob_of(blob);
    store.open(meta.clone()).await?;
    let mut pieces: Vec<_> = (0..meta.piece_count()).collect();
    rng.shuffle(&mut pieces);
    for piece in pieces {
        let data = super::piece(&bytes, &meta, piece);
        store.write(meta.digest(), piece, data).await?;
        promise(Promise::Piece(blob, piece));
    }
    Ok(())
}

/// A download that is never ended.
async fn part(
    store: &FsStore,
    blob: u64,
    rng: &mut Rng,
    promise: &impl Fn(Promise),
) -> Result<(), CrashError> {
    let (bytes, meta) = blob_of(blob);
    store.open(meta.clone()).await?;
    for piece in 0..meta.piece_count() {
        if rng.below(2) == 0 {
            let data = super::piece(&bytes, &meta, piece);
            store.write(meta.digest(), piece, data).await?;
            promise(Promise::Piece(blob, piece));
        }
    }
    Ok(())
}

fn task(
    queue: &DurableQueue,
    number: u64,
    done: bool,
    promise: &impl Fn(Promise),
) -> Result<(), CrashError> {
    let id = queue.push(KIND, &number.to_string(), b"", 0)?;
    promise(Promise::Queued(number));
    if done {
        promise(Promise::Doing(number));
        queue.done(id)?;
    }
    Ok(())
}

const KIND: &str = "crash";

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    /// Promises that hold.
    pub kept: u64,
    /// Promises that do not.
    pub lost: u64,
    /// Blobs that the store gives with other bytes than theirs, or with none.
    pub wrong: u64,
}

/// Opens what a crash has left in `dir` and looks whether the promises hold: then goes on with what
/// was not done.
///
/// # Errors
/// The store or the queue cannot be opened or read: nothing that may happen to them excuses that.
pub async fn check(dir: &Path, promises: &[Promise]) -> Result<Found, CrashError> {
    let store = FsStore::open(dir.join("store")).await?;
    let mut found = Found::default();
    let (sealed, pieces, tasks) = sorted(promises);
    for (blob, going) in &sealed {
        let (bytes, meta) = blob_of(*blob);
        match read(&store, meta.digest()).await {
            Ok(Some(read)) if read == bytes => found.kept += 1,
            Ok(None) if *going => {}
            Ok(None) => found.lost += 1,
            Ok(Some(_)) | Err(_) => found.wrong += 1,
        }
    }
    for digest in store.list().await? {
        match read(&store, digest).await {
            Ok(Some(bytes)) if Digest::of(&bytes) != digest => found.wrong += 1,
            Ok(_) => {}
            Err(_) => found.wrong += 1,
        }
    }
    // A crash damages nothing: what is set aside was believed sealed, and was not.
    found.wrong += std::fs::read_dir(dir.join("store/damaged"))?.count() as u64;
    for (blob, pieces) in pieces.iter().filter(|(blob, _)| !sealed.contains_key(blob)) {
        resume(&store, *blob, pieces, &mut found).await?;
    }
    if !tasks.is_empty() {
        let queue = DurableQueue::open(dir.join("queue.redb"))?;
        for (task, doing) in tasks {
            match queue.contains(KIND, &task.to_string())? {
                true => found.kept += 1,
                false if doing => {}
                false => found.lost += 1,
            }
        }
    }
    Ok(found)
}

type Sorted = (
    BTreeMap<u64, bool>,
    BTreeMap<u64, Vec<u32>>,
    BTreeMap<u64, bool>,
);

fn sorted(promises: &[Promise]) -> Sorted {
    let (mut sealed, mut pieces, mut tasks) = Sorted::default();
    for promise in promises {
        match *promise {
            Promise::Sealed(blob) => drop(sealed.insert(blob, false)),
            Promise::Going(blob) => drop(sealed.insert(blob, true)),
            Promise::Piece(blob, piece) => pieces.entry(blob).or_default().push(piece),
            Promise::Queued(task) => drop(tasks.insert(task, false)),
            Promise::Doing(task) => drop(tasks.insert(task, true)),
        }
    }
    (sealed, pieces, tasks)
}

/// The whole blob; none when it is not there.
async fn read(store: &FsStore, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
    let BlobStatus::Sealed { meta } = store.status(digest).await? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < meta.length() {
        let chunk = store.read(digest, bytes.len() as u64, 256 << 10).await?;
        if chunk.is_empty() {
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// Ends a download that was cut off.
async fn resume(
    store: &FsStore,
    blob: u64,
    pieces: &[u32],
    found: &mut Found,
) -> Result<(), CrashError> {
    let (bytes, meta) = blob_of(blob);
    let have = store.open(meta.clone()).await?;
    for piece in pieces {
        match have.has(*piece) {
            true => found.kept += 1,
            false => found.lost += 1,
        }
    }
    for piece in have.missing() {
        let data = super::piece(&bytes, &meta, piece);
        store.write(meta.digest(), piece, data).await?;
    }
    store.seal(meta.digest()).await?;
    match read(store, meta.digest()).await? {
        Some(read) if read == bytes => {}
        _ => found.wrong += 1,
    }
    Ok(())
}

/// Why work or a check could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrashError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The store's directory cannot be looked at.
    #[error("the store's directory: {0}")]
    Directory(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tape::{Survival, Tape, Writes};

    #[test]
    fn a_promise_is_a_line() {
        for promise in [
            Promise::Sealed(7),
            Promise::Piece(7, 3),
            Promise::Going(7),
            Promise::Queued(1),
            Promise::Doing(1),
        ] {
            assert_eq!(promise.to_string().parse(), Ok(promise));
        }
        for wrong in ["", "sealed", "sealed x", "piece 7", "kept 7"] {
            assert!(wrong.parse::<Promise>().is_err(), "{wrong}");
        }
    }

    /// Every call of some work is cut off in turn, with all, none and some of what was not synced.
    #[tokio::test]
    async fn a_loss_of_power_at_any_call_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let tape = Tape::start(&root);
        let store = FsStore::open(&root).await.unwrap();
        let promised = work(&store, None, (3, 8), |promise| {
            // Pieces are promised to survive a crash of the process only.
            if !matches!(promise, Promise::Piece(..)) {
                tape.promise(promise.to_string());
            }
        });
        promised.await.unwrap();
        drop(store);
        let recording = tape.stop();
        let mut kept = 0;
        for cut in (0..recording.cuts()).step_by(3) {
            let seed = cut as u64;
            for (names, writes) in [
                (true, Writes::None),
                (false, Writes::All),
                (true, Writes::Some(seed)),
            ] {
                let survival = Survival { names, writes };
                let after = tempfile::tempdir().unwrap();
                let place = after.path().join("store");
                recording.rebuild(cut, survival, (&root, &place)).unwrap();
                let promises: Vec<_> = recording
                    .promises(cut)
                    .map(|text| text.parse().unwrap())
                    .collect();
                let found = check(after.path(), &promises).await.unwrap();
                assert_eq!((found.lost, found.wrong), (0, 0), "cut {cut}, {survival:?}");
                kept += found.kept;
            }
        }
        assert!(kept > 100, "{kept}");
    }
}
