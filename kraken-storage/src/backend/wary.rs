//! A storage that does not answer is left alone until it does.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_proto::{Digest, Namespace};
use tokio::time::{Instant, sleep, timeout};

use super::{Backend, BackendError, ByteStream};

/// How often a storage that does not answer is asked whether it does again.
const PROBE: Duration = Duration::from_secs(1);

/// A backend whose questions have an end, and that keeps nobody waiting while the storage is away.
///
/// Whether a blob is there, what a tag points to, and the beginning of a blob's bytes may take so long, retries
/// included. When one had no answer, and none that came later had one either, the storage counts as away: from then
/// on all questions fail at once, and this asks the last one again every second until it is answered. Writes are
/// passed on: whoever writes has asked before.
///
/// Clones share what they know of the storage.
pub struct WaryBackend<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Clone for WaryBackend<B> {
    fn clone(&self) -> Self {
        let shared = self.shared.clone();
        Self { shared }
    }
}

struct Shared<B> {
    backend: B,
    answer: Duration,
    known: Mutex<Known>,
}

struct Known {
    /// When the last answer came.
    answered: Option<Instant>,
    away: Option<Away>,
}

/// The storage does not answer.
struct Away {
    since: Instant,
    why: String,
}

impl<B: Backend> WaryBackend<B> {
    /// Gives `backend` at most `answer` for each question.
    pub fn new(backend: B, answer: Duration) -> Self {
        let known = Mutex::new(Known {
            answered: None,
            away: None,
        });
        Self {
            shared: Arc::new(Shared {
                backend,
                answer,
                known,
            }),
        }
    }

    /// Whether the storage counts as away.
    pub fn is_away(&self) -> bool {
        self.shared.known().away.is_some()
    }

    async fn ask<T>(
        &self,
        about: (&Namespace, Digest),
        question: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        self.shared.check()?;
        let began = Instant::now();
        let answer = self.shared.within(question).await;
        match &answer {
            Err(BackendError::Unavailable(why)) => self.missed(began, why, about),
            _ => self.shared.known().answered = Some(Instant::now()),
        }
        answer
    }

    /// A question had no answer.
    fn missed(&self, began: Instant, why: &str, (namespace, digest): (&Namespace, Digest)) {
        let mut known = self.shared.known();
        let others_had = known.answered.is_some_and(|at| at > began);
        if others_had || known.away.is_some() {
            return;
        }
        tracing::warn!(
            why,
            "the storage does not answer: it is left alone until it does"
        );
        known.away = Some(Away {
            since: Instant::now(),
            why: why.to_owned(),
        });
        let shared = Arc::downgrade(&self.shared);
        let namespace = namespace.clone();
        tokio::spawn(async move {
            loop {
                sleep(PROBE).await;
                // Nobody uses it any more.
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                if shared.probe(&namespace, digest).await {
                    return;
                }
            }
        });
    }
}

impl<B: Backend> Shared<B> {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), BackendError> {
        let known = self.known();
        let Some(away) = &known.away else {
            return Ok(());
        };
        let seconds = away.since.elapsed().as_secs();
        let what = format!("it has not answered for {seconds} s ({})", away.why);
        Err(BackendError::Unavailable(what))
    }

    async fn within<T>(
        &self,
        question: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let silent = |_| {
            let seconds = self.answer.as_secs_f32();
            let what = format!("no answer within {seconds} s");
            Err(BackendError::Unavailable(what))
        };
        timeout(self.answer, question).await.unwrap_or_else(silent)
    }

    /// Asks again, and says whether there was an answer.
    async fn probe(&self, namespace: &Namespace, digest: Digest) -> bool {
        let answer = self.within(self.backend.stat(namespace, digest)).await;
        let is_away = matches!(answer, Err(BackendError::Unavailable(_)));
        if !is_away {
            let mut known = self.known();
            known.answered = Some(Instant::now());
            if let Some(away) = known.away.take() {
                let seconds = away.since.elapsed().as_secs();
                tracing::info!(seconds, "the storage answers again");
            }
        }
        !is_away
    }
}

impl<B: fmt::Debug> fmt::Debug for WaryBackend<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaryBackend")
            .field("backend", &self.shared.backend)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> Backend for WaryBackend<B> {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        let question = self.shared.backend.stat(namespace, digest);
        self.ask((namespace, digest), question).await
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let question = self.shared.backend.read(namespace, digest, range);
        self.ask((namespace, digest), question).await
    }

    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let backend = &self.shared.backend;
        backend.write(namespace, digest, length, bytes).await
    }

    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.shared.backend.delete(namespace, digest).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.shared.backend.list(namespace, after, most).await
    }

    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        let question = self.shared.backend.resolve(namespace, tag);
        // Any digest does to ask whether it answers.
        let digest = Digest::of(tag.as_bytes());
        self.ask((namespace, digest), question).await
    }

    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        self.shared.backend.place(namespace)
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.shared.backend.check_writable(namespace)
    }

    fn keeps(&self) -> bool {
        self.shared.backend.keeps()
    }

    async fn ready(&self) -> Result<(), BackendError> {
        self.shared.check()?;
        self.shared.within(self.shared.backend.ready()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures::future::pending;

    use super::*;

    const ANSWER: Duration = Duration::from_secs(10);

    /// A storage that may hang, for some blobs only or for all.
    #[derive(Clone, Default)]
    struct Hanging(Arc<(AtomicBool, AtomicUsize)>);

    impl Backend for Hanging {
        async fn stat(&self, _: &Namespace, digest: Digest) -> Result<Option<u64>, BackendError> {
            self.0.1.fetch_add(1, Ordering::Relaxed);
            match self.0.0.load(Ordering::Relaxed) || digest == Digest::of(b"lost") {
                true => pending().await,
                false => Ok(Some(1)),
            }
        }

        async fn read(
            &self,
            namespace: &Namespace,
            digest: Digest,
            _: Range<u64>,
        ) -> Result<ByteStream, BackendError> {
            self.stat(namespace, digest).await?;
            Ok(Box::pin(futures::stream::empty()))
        }

        async fn write(
            &self,
            _: &Namespace,
            _: Digest,
            _: u64,
            _: ByteStream,
        ) -> Result<(), BackendError> {
            Ok(())
        }

        async fn delete(&self, _: &Namespace, _: Digest) -> Result<(), BackendError> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_question_waits_and_those_after_it_do_not() {
        let storage = Hanging::default();
        let (hangs, asked) = (
            |now| storage.0.0.store(now, Ordering::Relaxed),
            &storage.0.1,
        );
        let backend = WaryBackend::new(storage.clone(), ANSWER);
        let (ns, blob) = (Namespace::default(), Digest::of(b"a"));
        assert_eq!(backend.stat(&ns, blob).await.unwrap(), Some(1));

        hangs(true);
        let began = Instant::now();
        let first = backend.stat(&ns, blob).await.unwrap_err().to_string();
        assert_eq!(began.elapsed(), ANSWER);
        assert!(first.contains("no answer within 10 s"), "{first}");
        assert!(backend.clone().is_away());
        let asked_then = asked.load(Ordering::Relaxed);
        for _ in 0..100 {
            let error = backend.stat(&ns, blob).await.unwrap_err().to_string();
            assert!(error.contains("it has not answered for 0 s"), "{error}");
            assert!(backend.read(&ns, blob, 0..1).await.is_err());
            assert!(backend.ready().await.is_err());
        }
        assert_eq!(began.elapsed(), ANSWER, "nobody waited");
        assert_eq!(
            asked.load(Ordering::Relaxed),
            asked_then,
            "nor was it asked"
        );

        hangs(false);
        // The probe that hangs has to end first.
        sleep(ANSWER + 2 * PROBE).await;
        assert!(!backend.is_away());
        assert_eq!(backend.stat(&ns, blob).await.unwrap(), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_blob_that_hangs_is_not_the_storage() {
        let backend = Arc::new(WaryBackend::new(Hanging::default(), ANSWER));
        let ns = Namespace::default();
        let (lost, other) = (Digest::of(b"lost"), backend.clone());
        let hanging = tokio::spawn({
            let ns = ns.clone();
            async move { other.stat(&ns, lost).await }
        });
        sleep(ANSWER / 2).await;
        assert_eq!(backend.stat(&ns, Digest::of(b"a")).await.unwrap(), Some(1));
        hanging.await.unwrap().unwrap_err();
        assert_eq!(backend.stat(&ns, Digest::of(b"a")).await.unwrap(), Some(1));
    }
}
