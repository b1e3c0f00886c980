//! Backends over OpenDAL's services: one file or object for each blob, named by a [`Layout`].
//!
//! A namespace chooses the backend and nothing else, so blobs of all namespaces share one place.

mod objects;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
pub(super) mod services;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod transport;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::opendal::layers::{RetryLayer, TimeoutLayer};
use ::opendal::services::{Fs, Memory};
use ::opendal::{Error, ErrorKind, Operator, Writer};
use futures::{StreamExt, TryStreamExt};
use kraken_proto::{Digest, Namespace};

use super::{Backend, BackendError, ByteStream, Layout};

/// How much is read or written in one request: large enough that a request's latency does not
/// count, small enough that a few fit in memory.
const CHUNK: usize = 4 << 20;
/// How many chunks of one stream are under way at once; with [`CHUNK`] this bounds its memory.
const AHEAD: usize = 4;
/// Parts of one object, at most: S3 takes 10,000.
const PARTS: u64 = 9_000;
/// The answers of one request for names.
const PAGE: usize = 1000;
/// How long one request may take unless it is said, and one chunk.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A backend over one of OpenDAL's services. Clones share it.
///
/// ```
/// use futures::stream;
/// use kraken_proto::{Digest, Namespace};
/// use kraken_storage::{Backend as _, OpendalBackend};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let dir = tempfile::tempdir()?;
/// let storage = OpendalBackend::local_disk(dir.path())?;
/// let (namespace, blob) = (Namespace::default(), "a blob");
/// let digest = Digest::of(blob.as_bytes());
/// let bytes = stream::iter([Ok(blob.into())]);
/// storage.write(&namespace, digest, blob.len() as u64, Box::pin(bytes)).await?;
/// assert_eq!(storage.stat(&namespace, digest).await?, Some(6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct OpendalBackend {
    /// Made when it is first needed: a storage that is away must not keep an origin from starting.
    operator: Arc<OnceLock<Operator>>,
    place: Place,
    layout: Layout,
    timeout: Duration,
    /// Whether the place was seen to exist. What lies in a place that does not exist is "not found"
    /// just as a blob is.
    seen: Arc<AtomicBool>,
}

/// Where the blobs are.
#[derive(Debug, Clone)]
enum Place {
    Directory(PathBuf),
    Memory,
    #[cfg_attr(
        not(any(feature = "s3", feature = "gcs", feature = "azure")),
        expect(dead_code, reason = "no service is compiled in")
    )]
    Remote,
}

impl OpendalBackend {
    /// Keeps blobs as files under `dir`, which is made when it is missing. Several processes may
    /// share it. A write that a crash cuts short leaves a file under `dir`/`tmp`.
    ///
    /// A directory that cannot be made or reached is no error here, but of each call until it can.
    ///
    /// # Errors
    /// The path is no text.
    pub fn local_disk(dir: impl AsRef<Path>) -> Result<Self, BackendError> {
        let dir = dir.as_ref().to_path_buf();
        if dir.to_str().is_none() {
            let dir = dir.display();
            return Err(BackendError::Denied(format!(
                "directory {dir}: the path must be UTF-8"
            )));
        }
        let backend = Self::at(Place::Directory(dir), OnceLock::new());
        if let Err(error) = backend.operator() {
            tracing::error!(%error, "starting without the storage");
        }
        Ok(backend)
    }

    /// Keeps blobs in memory: for tests, and for what need not outlive the process.
    pub fn memory() -> Self {
        let operator = Operator::new(Memory::default()).expect("needs no configuration");
        Self::at(Place::Memory, OnceLock::from(guarded(operator, TIMEOUT)))
    }

    fn at(place: Place, operator: OnceLock<Operator>) -> Self {
        Self {
            operator: Arc::new(operator),
            place,
            layout: Layout::default(),
            timeout: TIMEOUT,
            seen: Arc::default(),
        }
    }

    /// Names blobs by another layout.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    fn operator(&self) -> Result<&Operator, BackendError> {
        if let (None, Place::Directory(dir)) = (self.operator.get(), &self.place) {
            let made = files(dir)?;
            // Whoever else made one at the same time made the same.
            let _ = self.operator.set(unhurried(made, self.timeout));
        }
        Ok(self.operator.get().expect("set above, or when made"))
    }

    /// Nothing is found in a directory or a bucket that is gone, and that says nothing of the blob.
    async fn check_present(&self) -> Result<(), BackendError> {
        match &self.place {
            Place::Memory => Ok(()),
            Place::Directory(dir) if temporary(dir).is_dir() => Ok(()),
            Place::Directory(dir) => Err(BackendError::Unavailable(format!(
                "the directory {} is not what it was: is it mounted?",
                dir.display()
            ))),
            Place::Remote if self.seen.load(Ordering::Relaxed) => Ok(()),
            Place::Remote => self.look().await,
        }
    }

    /// Asks for the place itself.
    async fn look(&self) -> Result<(), BackendError> {
        let names = self.operator()?.lister_with("/").limit(1).await;
        let mut names = names.map_err(|error| unreachable(&error))?;
        match names.try_next().await {
            Ok(_) => {}
            // Who may not list, learns of a missing object by a refusal as well.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(unreachable(&error)),
        }
        self.seen.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Parts of one blob that are written at once.
    fn writes_at_once(&self) -> usize {
        match self.place {
            Place::Directory(_) | Place::Memory => 1,
            Place::Remote => AHEAD,
        }
    }

    /// Lists where names come in their order, from any on.
    async fn list_sorted(
        &self,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        let names = self.operator()?.lister_with(self.layout.prefix());
        let mut names = names.recursive(true).limit(PAGE.min(most.max(1)));
        if let Some(after) = after {
            names = names.start_after(&self.layout.path(after));
        }
        let mut names = names.await.map_err(|error| unreachable(&error))?;
        let mut found = Vec::new();
        while found.len() < most {
            let name = names.try_next().await;
            let Some(name) = name.map_err(|error| unreachable(&error))? else {
                break;
            };
            let digest = self.layout.digest(name.path());
            found.extend(digest.filter(|digest| after.is_none_or(|after| *digest > after)));
        }
        Ok(found)
    }

    /// Lists directory by directory, where names come in any order: holds one directory's names.
    async fn list_by_shard(
        &self,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        let path = after.map(|after| self.layout.path(after));
        let mut found = Vec::new();
        for shard in self.layout.shards() {
            let is_over = |path: &String| shard < *path && !path.starts_with(&shard);
            if path.as_ref().is_some_and(is_over) {
                continue;
            }
            let names = self.operator()?.lister_with(&shard).recursive(true);
            let names = names.await.map_err(|error| unreachable(&error))?;
            let digests = names.try_filter_map(async |name| Ok(self.layout.digest(name.path())));
            let digests: Result<Vec<_>, _> = digests.try_collect().await;
            let mut digests = match digests {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(|error| unreachable(&error))?,
            };
            digests.retain(|digest| after.is_none_or(|after| *digest > after));
            digests.sort_unstable();
            found.extend(digests);
            if found.len() >= most {
                found.truncate(most);
                break;
            }
        }
        Ok(found)
    }

    async fn copy_in(
        &self,
        writer: &mut Writer,
        digest: Digest,
        length: u64,
        mut bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let mut found = 0;
        while let Some(chunk) = bytes.try_next().await? {
            found += chunk.len() as u64;
            if found > length {
                break;
            }
            let written = writer.write(chunk).await;
            written.map_err(|error| unreachable(&error))?;
        }
        if found == length {
            return Ok(());
        }
        Err(BackendError::Length {
            digest,
            expected: length,
            found,
        })
    }
}

impl Backend for OpendalBackend {
    async fn stat(&self, _: &Namespace, digest: Digest) -> Result<Option<u64>, BackendError> {
        match self.operator()?.stat(&self.layout.path(digest)).await {
            Ok(metadata) => Ok(Some(metadata.content_length())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_present().await?;
                Ok(None)
            }
            Err(error) => Err(failed(digest)(error)),
        }
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let length = self.stat(namespace, digest).await?;
        let length = length.ok_or(BackendError::NotFound(digest))?;
        let range = range.start..range.end.min(length);
        if range.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        let path = self.layout.path(digest);
        let reader = self.operator()?.reader_with(&path).chunk(CHUNK);
        let reader = reader.concurrent(AHEAD).await.map_err(failed(digest))?;
        let stream = reader.into_stream(range).await;
        let stream = stream.map_err(failed(digest))?;
        Ok(stream
            .map_ok(|buffer| buffer.to_bytes())
            .map_err(failed(digest))
            .boxed())
    }

    async fn write(
        &self,
        _: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let path = self.layout.path(digest);
        // OpenDAL would make the directory anew, on whatever disk lies below.
        self.operator()?;
        self.check_present().await?;
        let writer = self.operator()?.writer_with(&path).chunk(chunk(length));
        let mut writer = writer
            .concurrent(self.writes_at_once())
            .await
            .map_err(failed(digest))?;
        if let Err(error) = self.copy_in(&mut writer, digest, length, bytes).await {
            abandon(&mut writer, digest).await;
            return Err(error);
        }
        if let Err(error) = writer.close().await {
            abandon(&mut writer, digest).await;
            return Err(unreachable(&error));
        }
        match self.place.clone() {
            Place::Directory(root) => sync_parents(root, path).await,
            _ => Ok(()),
        }
    }

    async fn delete(&self, _: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.operator()?
            .delete(&self.layout.path(digest))
            .await
            .map_err(failed(digest))
    }

    async fn list(
        &self,
        _: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        let capability = self.operator()?.info().capability();
        let found = if capability.list_with_start_after {
            self.list_sorted(after, most).await?
        } else {
            self.list_by_shard(after, most).await?
        };
        if found.is_empty() {
            self.check_present().await?;
        }
        Ok(found)
    }

    async fn ready(&self) -> Result<(), BackendError> {
        match &self.place {
            // Listing may be refused to one who may read: a question about a blob says it.
            Place::Remote => {
                self.look().await?;
                let asked = self.stat(&Namespace::default(), Digest::of(b"")).await;
                asked.map(drop)
            }
            _ => {
                self.operator()?;
                self.check_present().await
            }
        }
    }
}

/// Files under `dir`.
fn files(dir: &Path) -> Result<Operator, BackendError> {
    let away = |why: &dyn std::fmt::Display| {
        BackendError::Unavailable(format!("directory {}: {why}", dir.display()))
    };
    let temp = temporary(dir);
    std::fs::create_dir_all(&temp).map_err(|error| away(&error))?;
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_string)
            .ok_or_else(|| away(&"no text"))
    };
    let service = Fs::default()
        .root(&text(dir)?)
        .atomic_write_dir(&text(&temp)?);
    Operator::new(service).map_err(|error| away(&error))
}

fn temporary(dir: &Path) -> PathBuf {
    dir.join("tmp")
}

/// Bytes in one part of an object of `length` bytes.
fn chunk(length: u64) -> usize {
    let least = length.div_ceil(PARTS).next_multiple_of(1 << 20);
    usize::try_from(least).unwrap_or(usize::MAX).max(CHUNK)
}

async fn abandon(writer: &mut Writer, digest: Digest) {
    if let Err(why) = writer.abort().await {
        let why = told(&why);
        tracing::warn!(%digest, why, "an aborted write may have left a temporary file");
    }
}

/// For files: a write that timed out may have reached the disk in part, so that none is made again
/// but the whole blob's, and a sync of all of a large blob takes its time.
fn unhurried(operator: Operator, timeout: Duration) -> Operator {
    const SYNC: Duration = Duration::from_secs(3600);
    let timeout = TimeoutLayer::new()
        .with_timeout(timeout)
        .with_io_timeout(SYNC);
    operator.layer(timeout)
}

/// Timeouts inside, retries outside: each attempt has its own deadline, and a writer keeps its
/// state when one of its requests is made again.
fn guarded(operator: Operator, timeout: Duration) -> Operator {
    let timeout = TimeoutLayer::new()
        .with_timeout(timeout)
        .with_io_timeout(timeout);
    // Short and few: whoever calls has a queue or another origin to fall back on.
    let retry = RetryLayer::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_max_times(3)
        .with_jitter();
    operator.layer(timeout).layer(retry)
}

/// OpenDAL syncs the file and not the directories, so a loss of power could take its name away.
async fn sync_parents(root: PathBuf, path: String) -> Result<(), BackendError> {
    let sync = move || {
        let depth = Path::new(&path).components().count();
        let mut dir = root.join(path);
        for _ in 0..depth {
            dir.pop();
            File::open(&dir)?.sync_all()?;
        }
        Ok(())
    };
    let joined = tokio::task::spawn_blocking(sync).await;
    let result: std::io::Result<()> = joined.unwrap_or_else(|error| Err(error.into()));
    result.map_err(|error| BackendError::Other(format!("cannot sync a directory: {error}")))
}

fn failed(digest: Digest) -> impl Fn(Error) -> BackendError {
    move |error| match error.kind() {
        ErrorKind::NotFound => BackendError::NotFound(digest),
        _ => unreachable(&error),
    }
}

/// An error without its context: a URL in it may carry a signature.
fn told(error: &Error) -> String {
    let mut text = format!("{}: {}", error.kind(), error.message());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What an error says of the place.
fn unreachable(error: &Error) -> BackendError {
    match error.kind() {
        ErrorKind::NotFound => BackendError::Denied(told(error)),
        ErrorKind::PermissionDenied | ErrorKind::ConfigInvalid | ErrorKind::Unsupported => {
            BackendError::Denied(told(error))
        }
        ErrorKind::RateLimited => BackendError::Unavailable(told(error)),
        // Retried in vain, or worth another try: the trouble is not with the request.
        _ if error.is_temporary() || error.is_persistent() => {
            BackendError::Unavailable(told(error))
        }
        _ => BackendError::Other(told(error)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn once(bytes: &'static [u8]) -> ByteStream {
        futures::stream::iter([Ok(Bytes::from_static(bytes))]).boxed()
    }

    #[test]
    fn errors_keep_their_meaning() {
        let digest = Digest::of(b"x");
        let map = |error| failed(digest)(error);
        let new = |kind| Error::new(kind, "why");
        assert!(
            matches!(map(new(ErrorKind::NotFound)), BackendError::NotFound(it) if it == digest)
        );
        assert!(!map(new(ErrorKind::PermissionDenied)).is_retryable());
        assert!(matches!(
            map(new(ErrorKind::RateLimited)),
            BackendError::Unavailable(_)
        ));
        assert!(matches!(
            map(new(ErrorKind::Unexpected)),
            BackendError::Other(_)
        ));
        for error in [
            new(ErrorKind::Unexpected).set_temporary(),
            new(ErrorKind::Unexpected).set_persistent(),
        ] {
            assert!(matches!(map(error), BackendError::Unavailable(_)));
        }
    }

    #[tokio::test]
    async fn local_disk_is_sharded_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let backend = OpendalBackend::local_disk(dir.path()).unwrap();
        let (digest, namespace) = (Digest::of(b"abc"), Namespace::default());
        let wrong = backend.write(&namespace, digest, 4, once(b"abc")).await;
        assert!(matches!(wrong, Err(BackendError::Length { found: 3, .. })));
        backend
            .write(&namespace, digest, 3, once(b"abc"))
            .await
            .unwrap();
        let hex = digest.hex();
        let file = format!("blobs/sha256/{}/{hex}/data", &hex[..2]);
        assert_eq!(std::fs::read(dir.path().join(file)).unwrap(), b"abc");
        let left = std::fs::read_dir(dir.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn a_directory_that_is_away_is_an_outage_and_not_a_missing_blob() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("mount");
        std::fs::write(&root, b"not a directory").unwrap();
        let backend = OpendalBackend::local_disk(&root).unwrap();
        let (digest, namespace) = (Digest::of(b"abc"), Namespace::default());
        let away = backend.stat(&namespace, digest).await;
        assert!(
            matches!(away, Err(BackendError::Unavailable(_))),
            "{away:?}"
        );
        std::fs::remove_file(&root).unwrap();
        assert_eq!(backend.stat(&namespace, digest).await.unwrap(), None);
        backend
            .write(&namespace, digest, 3, once(b"abc"))
            .await
            .unwrap();

        std::fs::rename(&root, dir.path().join("away")).unwrap();
        let away = backend.stat(&namespace, digest).await;
        assert!(
            matches!(away, Err(BackendError::Unavailable(_))),
            "{away:?}"
        );
        let away = backend.write(&namespace, digest, 3, once(b"abc")).await;
        assert!(
            matches!(away, Err(BackendError::Unavailable(_))),
            "{away:?}"
        );
        std::fs::rename(dir.path().join("away"), &root).unwrap();
        assert_eq!(backend.stat(&namespace, digest).await.unwrap(), Some(3));
    }

    #[cfg(feature = "testkit")]
    #[tokio::test]
    async fn conforms() {
        use crate::testkit;

        testkit::backend_conforms(async || OpendalBackend::memory()).await;
        let dir = tempfile::tempdir().unwrap();
        let next = std::cell::Cell::new(0);
        testkit::backend_conforms(async || {
            next.set(next.get() + 1);
            OpendalBackend::local_disk(dir.path().join(next.get().to_string())).unwrap()
        })
        .await;
    }
}
