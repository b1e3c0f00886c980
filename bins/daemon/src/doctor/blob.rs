//! A blob for tests that every origin can make itself: pulling it takes the way of every pull, from the
//! tracker to the last piece, and needs no rights.
//!
//! Its bytes follow from a text and a length, so that each process knows its digest. Origins find it as
//! if it were in the storage behind them, where it never is; like any other blob it is kept as long as
//! there is room.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use futures::{StreamExt as _, stream};
use kraken_core::storage::backend::{ByteStream, NoopBackend};
use kraken_core::storage::{Backend, BackendError};
use kraken_core::{Agent, Digest, Namespace, OpenError};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::Finding;

/// The namespace of the test blob.
pub const NAMESPACE: &str = "kraken/doctor";
/// Its length in bytes: sixteen pieces.
pub const LENGTH: u64 = 4 << 20;
/// What its bytes follow from.
const TEXT: &[u8] = b"kraken doctor 1";
/// How long a pull may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that are made at once.
const CHUNK: usize = 1 << 20;

/// The test blob, as any process knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
}

/// The test blob.
pub fn test_blob() -> TestBlob {
    static DIGEST: OnceLock<Digest> = OnceLock::new();
    let digest = *DIGEST.get_or_init(|| Digest::of(&bytes(0..LENGTH)));
    TestBlob {
        digest,
        length: LENGTH,
    }
}

/// The bytes of the test blob in a range.
fn bytes(range: Range<u64>) -> Vec<u8> {
    const STEP: u64 = 32;
    let blocks = range.start / STEP..range.end.div_ceil(STEP);
    let skip = usize::try_from(range.start % STEP).expect("less than a block");
    let len = usize::try_from(range.end - range.start).expect("no longer than the blob");
    let block = |number: u64| *Digest::of(&[TEXT, &number.to_be_bytes()].concat()).as_bytes();
    blocks.flat_map(block).skip(skip).take(len).collect()
}

/// A backend in which the test blob is found as well.
#[derive(Debug)]
pub(crate) struct WithTestBlob<B>(pub(crate) B);

fn is_test(namespace: &Namespace, digest: Digest) -> bool {
    namespace.as_str() == NAMESPACE && digest == test_blob().digest
}

impl<B: Backend> Backend for WithTestBlob<B> {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        match is_test(namespace, digest) {
            true => Ok(Some(LENGTH)),
            false => self.0.stat(namespace, digest).await,
        }
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        if !is_test(namespace, digest) {
            return self.0.read(namespace, digest, range).await;
        }
        let end = range.end.min(LENGTH);
        let chunks = (range.start.min(end)..end).step_by(CHUNK);
        let chunk = move |from: u64| bytes(from..end.min(from + CHUNK as u64)).into();
        Ok(stream::iter(chunks.map(move |from| Ok(chunk(from)))).boxed())
    }

    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        match is_test(namespace, digest) {
            true => NoopBackend.write(namespace, digest, length, bytes).await,
            false => self.0.write(namespace, digest, length, bytes).await,
        }
    }

    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        match is_test(namespace, digest) {
            true => Ok(()),
            false => self.0.delete(namespace, digest).await,
        }
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.0.list(namespace, after, most).await
    }

    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        self.0.resolve(namespace, tag).await
    }

    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        self.0.place(namespace)
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.0.check_writable(namespace)
    }

    fn keeps(&self) -> bool {
        self.0.keeps()
    }

    async fn ready(&self) -> Result<(), BackendError> {
        self.0.ready().await
    }
}

/// Pulls the test blob through the swarm, anew; it stays for a client to read.
pub(super) async fn pull(agent: &Agent) -> (Finding, Option<TestBlob>) {
    let check = "test blob";
    let begun = Instant::now();
    let pulled = timeout(PATIENCE, pulled(agent)).await;
    let seconds = begun.elapsed().as_secs_f64();
    let error = match pulled {
        Ok(Ok(from)) => {
            let size = ByteSize(LENGTH);
            let what = format!("{size} came in {seconds:.2} s, {from}, and are right");
            return (Finding::ok(check, what), Some(test_blob()));
        }
        Ok(Err(error)) => error,
        Err(_) => {
            let what = format!("it did not come within {} s", PATIENCE.as_secs());
            let advice = "its metainfo or its pieces do not come: what is named above says why, or the agent's log";
            return (Finding::failed(check, what, advice), None);
        }
    };
    (Finding::failed(check, error.what, error.advice), None)
}

struct Wrong {
    what: String,
    advice: &'static str,
}

/// Gives in words from whom it came.
async fn pulled(agent: &Agent) -> Result<String, Wrong> {
    let blob = test_blob();
    let namespace: Namespace = NAMESPACE.parse().expect("a namespace");
    // Perhaps a doctor before this was interrupted.
    agent.forget(blob.digest).await.map_err(cannot_open)?;
    let reader = agent.open_in(&namespace, blob.digest).await;
    let reader = reader.map_err(cannot_open)?;
    let mut read = Vec::new();
    let came = reader.take(LENGTH + 1).read_to_end(&mut read).await;
    came.map_err(|error| Wrong {
        what: format!("it did not come to its end: {error}"),
        advice: "its pieces do not come: what is named above says why, or the agent's log",
    })?;
    if Digest::of(&read) != blob.digest {
        return Err(Wrong {
            what: "its bytes are wrong".into(),
            advice: "memory or the disk of this host changes bytes: test both",
        });
    }
    let stats = agent.stats(blob.digest).await.unwrap_or_default();
    let [origins, agents] = [stats.from_origins, stats.from_agents].map(ByteSize);
    Ok(format!(
        "{origins} from origins and {agents} from other agents"
    ))
}

fn cannot_open(error: OpenError) -> Wrong {
    let advice = match &error {
        OpenError::NotFound(_) => {
            "the origins do not know the test blob: they are of an older version, run the doctor when they \
             are updated"
        }
        OpenError::Store(_) => "this host cannot keep it: see its disk above",
        _ => "no tracker or origin tells what it consists of: what is named above says why",
    };
    Wrong {
        what: error.to_string(),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use kraken_core::storage::OpendalBackend;

    use super::*;

    #[test]
    fn every_process_knows_the_same_blob() {
        let whole = bytes(0..LENGTH);
        assert_eq!(whole.len() as u64, LENGTH);
        assert_eq!(test_blob().digest, Digest::of(&whole));
        for range in [0..1, 31..33, 1000..5000, LENGTH - 7..LENGTH, 9..9] {
            let part = range.start as usize..range.end as usize;
            assert_eq!(bytes(range.clone()), whole[part], "{range:?}");
        }
        // Hosts of different versions meet at this blob.
        assert_eq!(&test_blob().digest.hex()[..8], "3f84447b");
    }

    #[tokio::test]
    async fn it_is_found_behind_an_origin_and_never_kept_there() {
        let inner = OpendalBackend::memory();
        let backend = WithTestBlob(inner.clone());
        let test: Namespace = NAMESPACE.parse().unwrap();
        let other: Namespace = "library/app".parse().unwrap();
        let blob = test_blob();
        assert_eq!(
            backend.stat(&test, blob.digest).await.unwrap(),
            Some(LENGTH)
        );
        assert_eq!(backend.stat(&other, blob.digest).await.unwrap(), None);
        let range = 5..u64::MAX;
        let read = backend.read(&test, blob.digest, range).await.unwrap();
        let read: Vec<_> = read.try_collect().await.unwrap();
        assert_eq!(read.concat(), bytes(5..LENGTH));
        let body = || stream::iter([Ok(bytes(0..LENGTH).into())]).boxed();
        backend
            .write(&test, blob.digest, LENGTH, body())
            .await
            .unwrap();
        assert_eq!(inner.stat(&test, blob.digest).await.unwrap(), None);
        // All else is the storage's.
        let more = Digest::of(b"more");
        let body = stream::iter([Ok("more".into())]).boxed();
        backend.write(&test, more, 4, body).await.unwrap();
        assert_eq!(inner.stat(&test, more).await.unwrap(), Some(4));
        backend.delete(&test, more).await.unwrap();
        assert_eq!(backend.stat(&test, more).await.unwrap(), None);
    }
}
