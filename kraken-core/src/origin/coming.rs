//! A blob on its way in, as those see it who wait for it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use kraken_net::http::ApiError;
use kraken_proto::{Digest, MetaInfo};
use tokio::sync::watch;

use super::Inner;
use super::fetches::Asker;
use super::ingest::store_error;
use crate::dynamic::DynUploadStore;

/// Bytes in one chunk read from the store.
const CHUNK: u64 = 1 << 20;
/// The longest that an answer about an open metainfo waits for more.
const LONG_POLL: Duration = Duration::from_secs(10);

/// A blob on its way in. Clones wait for the same one.
#[derive(Clone)]
pub(super) struct Coming {
    said: watch::Receiver<Said>,
    /// It does not come: it is being removed, and nobody is to take it in meanwhile.
    goes: bool,
}

/// How far it is.
#[derive(Default)]
pub(super) struct Said {
    /// Known as soon as a source has told the length, and whole once the blob is; of a blob of one
    /// piece nothing is told before.
    pub(super) meta: Option<MetaInfo>,
    /// So many pieces are in the store, from the first on.
    pub(super) pieces: u32,
    /// It is sealed, or will not be.
    pub(super) end: Option<Result<(), ApiError>>,
}

impl Said {
    fn failure(&self) -> Option<ApiError> {
        self.end.as_ref()?.as_ref().err().cloned()
    }
}

impl Coming {
    pub(super) fn begin() -> (watch::Sender<Said>, Self) {
        let (sender, said) = watch::channel(Said::default());
        let goes = false;
        (sender, Self { said, goes })
    }

    /// A blob on its way out, until the sender is dropped.
    pub(super) fn goes() -> (watch::Sender<Said>, Self) {
        let (sender, said) = watch::channel(Said::default());
        let goes = true;
        (sender, Self { said, goes })
    }

    /// Waits until it is whole and durable.
    pub(super) async fn whole(mut self) -> Result<MetaInfo, ApiError> {
        let meta = self.until(|said| said.end.is_some()).await?;
        debug_assert!(meta.is_whole());
        Ok(meta)
    }

    /// Waits until its length is known; with `after`, for a while until more states than so many are.
    pub(super) async fn open(mut self, after: Option<u32>) -> Result<MetaInfo, ApiError> {
        let enough = |said: &Said| {
            let meta = said.meta.as_ref();
            let more = |meta: &MetaInfo| {
                meta.is_whole() || after.is_none_or(|after| meta.known_states() > after)
            };
            said.end.is_some() || meta.is_some_and(more)
        };
        match tokio::time::timeout(LONG_POLL, self.until(enough)).await {
            Ok(meta) => meta,
            Err(_) => {
                self.until(|said| said.end.is_some() || said.meta.is_some())
                    .await
            }
        }
    }

    /// The metainfo once `enough` has been said.
    async fn until(&mut self, enough: impl FnMut(&Said) -> bool) -> Result<MetaInfo, ApiError> {
        let stopped = || ApiError::Unavailable("the origin stops, or makes room: ask again".into());
        let said = self.said.wait_for(enough).await.map_err(|_| stopped())?;
        match said.failure() {
            Some(error) => Err(error),
            None => said.meta.clone().ok_or_else(stopped),
        }
    }

    /// Waits until the byte `at` is in the store, and says up to where all are.
    async fn reaches(&mut self, meta: &MetaInfo, at: u64) -> Result<u64, ApiError> {
        let there = |said: &Said| meta.piece_range(said.pieces).start;
        let stopped =
            |_| ApiError::Unavailable("the origin stops, or makes room: ask again".into());
        let enough = |said: &Said| there(said) > at || said.end.is_some();
        let said = self.said.wait_for(enough).await.map_err(stopped)?;
        match said.failure() {
            Some(error) if there(&said) <= at => Err(error),
            _ => Ok(there(&said)),
        }
    }
}

impl Inner {
    /// A blob's metainfo, once it is whole here; it is taken in first when it must.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        namespace: &kraken_proto::Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        match self.sealed(digest).await? {
            Some(meta) => Ok(meta),
            None => {
                let coming = self.take_in(namespace, digest, Asker::Metainfo);
                coming.whole().await
            }
        }
    }

    /// Waits until a blob is not being removed. Whoever has queued a task for it before keeps it from
    /// then on: who removes looks for tasks behind saying so.
    pub(super) async fn stays(&self, digest: Digest) {
        loop {
            let goes = self.fetching().get(&digest).filter(|it| it.goes).cloned();
            match goes {
                None => return,
                Some(goes) => drop(goes.whole().await),
            }
        }
    }

    /// The length of a blob that is on its way in, once it is known.
    pub(super) fn coming_length(&self, digest: Digest) -> Option<u64> {
        let fetching = self.fetching();
        let said = fetching.get(&digest)?.said.borrow();
        said.meta.as_ref().map(MetaInfo::length)
    }

    /// A blob's bytes out of the store; those of one that is `coming`, as they come.
    pub(super) fn stream(
        &self,
        meta: &MetaInfo,
        range: Range<u64>,
        coming: Option<Coming>,
    ) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        let reading = Reading {
            store: self.store.clone(),
            range: range.start..range.end.min(meta.length()),
            there: if coming.is_none() { meta.length() } else { 0 },
            meta: meta.clone(),
            coming,
        };
        futures::stream::try_unfold(reading, |mut reading| async move {
            let chunk = reading.next().await.map_err(std::io::Error::other)?;
            Ok(chunk.map(|chunk| (chunk, reading)))
        })
    }
}

/// Where a stream is.
struct Reading {
    store: Arc<dyn DynUploadStore>,
    meta: MetaInfo,
    range: Range<u64>,
    /// Up to here all bytes are in the store.
    there: u64,
    coming: Option<Coming>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let at = self.range.start;
        if at >= self.range.end {
            return Ok(None);
        }
        if at >= self.there
            && let Some(coming) = &mut self.coming
        {
            self.there = coming.reaches(&self.meta, at).await?;
        }
        let end = self.range.end.min(self.there);
        let len = u32::try_from(CHUNK.min(end - at)).expect("at most CHUNK");
        let read = self.store.read(self.meta.digest(), at, len).await;
        let chunk = read.map_err(store_error)?;
        self.range.start += chunk.len() as u64;
        Ok(Some(chunk))
    }
}
