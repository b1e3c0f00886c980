//! Backends over OpenDAL's services: one file at `blobs/sha256/<2 hex>/<hex>/data` for each blob,
//! as the registry of the Docker project lays them out.
//!
//! A namespace chooses the backend and nothing else, so blobs of all namespaces share one place.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::opendal::layers::{RetryLayer, TimeoutLayer};
use ::opendal::services::{Fs, Memory};
use ::opendal::{Error, ErrorKind, Operator, Writer};
use futures::{StreamExt, TryStreamExt};
use kraken_proto::{Digest, Namespace};

use super::{Backend, BackendError, ByteStream};

/// How much is read or written in one request: large enough that a request's latency does not
/// count, small enough that a few fit in memory.
const CHUNK: usize = 4 << 20;
/// How many chunks of one stream are read ahead; with [`CHUNK`] this bounds a read's memory.
const AHEAD: usize = 4;

/// A backend over one of OpenDAL's services. Clones share it.
#[derive(Debug, Clone)]
pub struct OpendalBackend {
    /// Made when it is first needed: a storage that is away must not keep an origin from starting.
    operator: Arc<OnceLock<Operator>>,
    /// Where the files are, when they are on this host.
    local: Option<PathBuf>,
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
        let backend = Self {
            operator: Arc::default(),
            local: Some(dir),
        };
        if let Err(error) = backend.operator() {
            tracing::error!(%error, "starting without the storage");
        }
        Ok(backend)
    }

    /// Keeps blobs in memory, for tests.
    pub fn memory() -> Self {
        let operator = Operator::new(Memory::default()).expect("needs no configuration");
        Self {
            operator: Arc::new(OnceLock::from(guarded(operator))),
            local: None,
        }
    }

    fn operator(&self) -> Result<&Operator, BackendError> {
        if let (None, Some(dir)) = (self.operator.get(), &self.local) {
            let made = files(dir)?;
            // Whoever else made one at the same time made the same.
            let _ = self.operator.set(guarded(made));
        }
        Ok(self.operator.get().expect("set above, or when made"))
    }

    /// Nothing is found in a directory that is gone, and that says nothing of the blob.
    fn check_present(&self) -> Result<(), BackendError> {
        match &self.local {
            Some(dir) if !temporary(dir).is_dir() => Err(BackendError::Unavailable(format!(
                "the directory {} is not what it was: is it mounted?",
                dir.display()
            ))),
            _ => Ok(()),
        }
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
            writer.write(chunk).await.map_err(failed(digest))?;
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
        match self.operator()?.stat(&path(digest)).await {
            Ok(metadata) => Ok(Some(metadata.content_length())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_present()?;
                Ok(None)
            }
            Err(error) => Err(failed(digest)(error)),
        }
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        from: u64,
    ) -> Result<ByteStream, BackendError> {
        let length = self.stat(namespace, digest).await?;
        let length = length.ok_or(BackendError::NotFound(digest))?;
        if from >= length {
            return Ok(futures::stream::empty().boxed());
        }
        let path = path(digest);
        let reader = self.operator()?.reader_with(&path).chunk(CHUNK);
        let reader = reader.concurrent(AHEAD).await.map_err(failed(digest))?;
        let stream = reader.into_stream(from..length).await;
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
        let path = path(digest);
        // OpenDAL would make the directory anew, on whatever disk lies below.
        self.operator()?;
        self.check_present()?;
        let writer = self.operator()?.writer_with(&path).chunk(CHUNK);
        let mut writer = writer.await.map_err(failed(digest))?;
        if let Err(error) = self.copy_in(&mut writer, digest, length, bytes).await {
            if let Err(why) = writer.abort().await {
                tracing::warn!(%digest, %why, "an aborted write may have left a temporary file");
            }
            return Err(error);
        }
        writer.close().await.map_err(failed(digest))?;
        match self.local.clone() {
            Some(root) => sync_parents(root, path).await,
            None => Ok(()),
        }
    }

    async fn delete(&self, _: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.operator()?
            .delete(&path(digest))
            .await
            .map_err(failed(digest))
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

fn path(digest: Digest) -> String {
    let hex = digest.hex();
    format!("blobs/sha256/{}/{hex}/data", &hex[..2])
}

/// Timeouts inside, retries outside: each attempt has its own deadline, and a writer keeps its
/// state when one of its requests is made again.
fn guarded(operator: Operator) -> Operator {
    let timeout = TimeoutLayer::new()
        .with_timeout(Duration::from_secs(20))
        .with_io_timeout(Duration::from_secs(30));
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
        ErrorKind::PermissionDenied | ErrorKind::ConfigInvalid | ErrorKind::Unsupported => {
            BackendError::Denied(error.to_string())
        }
        ErrorKind::RateLimited => BackendError::Unavailable(error.to_string()),
        // Retried in vain, or worth another try: the trouble is not with the request.
        _ if error.is_temporary() || error.is_persistent() => {
            BackendError::Unavailable(error.to_string())
        }
        _ => BackendError::Other(error.to_string()),
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
