//! A cluster behind the registry: an agent's swarm or the origins as a [`BlobSource`], the origins
//! as a [`BlobSink`].

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use kraken_core::net::http::{ApiError, FileBody};
use kraken_core::net::origin::OriginCluster;
use kraken_core::{Agent, BlobReader, OpenError, ReadError};
use kraken_proto::{Digest, Namespace};

use crate::sink::{BlobSink, BodyError, SinkError};
use crate::source::{BlobBody, BlobSource, ResolveError, SourceError};

impl BlobSource for Agent {
    async fn stat(&self, ns: &Namespace, digest: Digest) -> Result<Option<u64>, SourceError> {
        Self::stat(self, ns, digest).await.map_err(open_error)
    }

    async fn open(
        &self,
        ns: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<BlobBody, SourceError> {
        let reader = open_for(self, ns, digest, &range).await;
        let reader = reader.map_err(open_error)?;
        let total = reader.length();
        let is_rest = range.end == u64::MAX;
        let range = range.start.min(total)..range.end.min(total);
        // What is wrong with the file is wrong with the stream, which says it.
        let file = reader.file().await.ok().flatten();
        let reader = Arc::new(reader);
        let replaced = Arc::new(AtomicBool::new(false));
        let (first, seen) = (Arc::clone(&reader), Arc::clone(&replaced));
        let valid = move || first.is_usable() && !seen.load(Ordering::Relaxed);
        let (agent, namespace) = (self.clone(), ns.clone());
        let read = move |range: Range<u64>| {
            let reading = Reading {
                agent: agent.clone(),
                namespace: namespace.clone(),
                digest,
                stream: reader.stream(range.clone()).boxed(),
                range,
                is_rest,
                replaced: Arc::clone(&replaced),
            };
            reading.stream()
        };
        let stream = read(range.clone());
        let read = move |range| {
            let told = move |error: &SourceError| {
                tracing::warn!(%digest, %error, "a blob's body broke off");
            };
            read(range)
                .inspect_err(told)
                .map_err(io::Error::other)
                .boxed()
        };
        let file = file.map(|file| FileBody {
            file,
            range,
            read: Arc::new(read),
            valid: Arc::new(valid),
        });
        Ok(BlobBody {
            total,
            stream,
            file,
        })
    }
}

/// Opens a blob to read some bytes of it: all of it is fetched when they are all, or all of the rest.
async fn open_for(
    agent: &Agent,
    ns: &Namespace,
    digest: Digest,
    range: &Range<u64>,
) -> Result<BlobReader, OpenError> {
    if range.end == u64::MAX {
        return agent.open_in(ns, digest).await;
    }
    let reader = agent.open_parts(ns, digest).await?;
    match range.start == 0 && range.end >= reader.length() {
        true => agent.open_in(ns, digest).await,
        false => Ok(reader),
    }
}

/// A part of a blob that is read to its end, also when the blob goes meanwhile: evicted, or found
/// damaged, it comes anew.
struct Reading {
    agent: Agent,
    namespace: Namespace,
    digest: Digest,
    stream: BoxStream<'static, Result<Bytes, ReadError>>,
    /// What is still to come.
    range: Range<u64>,
    /// Whether it was asked for with all that follows.
    is_rest: bool,
    /// Whether the first reader had to be replaced: its file is not to be trusted then.
    replaced: Arc<AtomicBool>,
}

impl Reading {
    /// How often a reader is replaced before it gave a byte.
    const READERS: u32 = 7;
    /// The wait before the first one, which doubles: until a blob's end has gone round, or there is
    /// room for it again.
    const WAIT: Duration = Duration::from_millis(50);

    fn stream(self) -> BoxStream<'static, Result<Bytes, SourceError>> {
        let next = async |mut reading: Self| {
            let chunk = reading.next().await;
            let chunk = chunk.map_err(SourceError::Unavailable)?;
            Ok(chunk.map(|chunk| (chunk, reading)))
        };
        futures::stream::try_unfold(self, next).boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let mut tries = 0;
        loop {
            let error = match self.stream.try_next().await {
                Ok(chunk) => {
                    self.range.start += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                    return Ok(chunk);
                }
                Err(error) if went(&error) && tries < Self::READERS => error,
                Err(error) => return Err(error.to_string()),
            };
            let digest = self.digest;
            tracing::info!(%digest, %error, from = self.range.start, "a blob went while it was read");
            self.replaced.store(true, Ordering::Relaxed);
            self.stream = loop {
                tokio::time::sleep(Self::WAIT * (1 << tries)).await;
                tries += 1;
                let end = if self.is_rest {
                    u64::MAX
                } else {
                    self.range.end
                };
                let wanted = self.range.start..end;
                match open_for(&self.agent, &self.namespace, digest, &wanted).await {
                    Ok(reader) => break reader.stream(self.range.clone()).boxed(),
                    Err(error @ (OpenError::NotFound(_) | OpenError::Stopped)) => {
                        return Err(error.to_string());
                    }
                    Err(error) if tries >= Self::READERS => return Err(error.to_string()),
                    Err(_) => {}
                }
            };
        }
    }
}

/// Whether the blob left its swarm without anybody having wanted that: opened again, it comes again.
fn went(error: &ReadError) -> bool {
    !matches!(
        error,
        ReadError::Stalled { .. } | ReadError::Paused(_) | ReadError::Stopped
    )
}

fn open_error(error: OpenError) -> SourceError {
    match error {
        OpenError::NotFound(_) => SourceError::NotFound,
        other => SourceError::Unavailable(other.to_string()),
    }
}

fn known(length: Result<u64, ApiError>) -> Result<Option<u64>, SourceError> {
    match length {
        Ok(length) => Ok(Some(length)),
        Err(ApiError::NotFound) => Ok(None),
        Err(error) => Err(SourceError::Unavailable(error.to_string())),
    }
}

impl BlobSource for OriginCluster {
    async fn stat(&self, ns: &Namespace, digest: Digest) -> Result<Option<u64>, SourceError> {
        known(Self::stat(self, ns, digest).await)
    }

    async fn stat_whole(&self, ns: &Namespace, digest: Digest) -> Result<Option<u64>, SourceError> {
        known(Self::stat_whole(self, ns, digest).await)
    }

    async fn resolve(&self, ns: &Namespace, tag: &str) -> Result<Option<Digest>, ResolveError> {
        match Self::resolve(self, ns, tag).await {
            Ok(digest) => Ok(Some(digest)),
            Err(ApiError::NotFound) => Ok(None),
            Err(ApiError::Behind { what, wait }) => Err(ResolveError::Away { reason: what, wait }),
            Err(error) => Err(ResolveError::Refused(error.to_string())),
        }
    }

    async fn open(
        &self,
        ns: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<BlobBody, SourceError> {
        let whole = range.start == 0 && range.end == u64::MAX;
        let total = match Self::stat(self, ns, digest).await {
            Ok(length) => length,
            Err(ApiError::NotFound) => return Err(SourceError::NotFound),
            Err(error) => return Err(SourceError::Unavailable(error.to_string())),
        };
        let part = range.start..range.end.min(total);
        if part.is_empty() {
            return Ok(BlobBody::new(total, futures::stream::empty().boxed()));
        }
        let read = Self::read(self, ns, digest, (!whole).then_some(part)).await;
        let read = read.map_err(|error| match error {
            ApiError::NotFound => SourceError::NotFound,
            other => SourceError::Unavailable(other.to_string()),
        })?;
        let stream = read
            .body
            .map(|chunk| chunk.map_err(|error| SourceError::Unavailable(error.to_string())));
        Ok(BlobBody::new(total, stream.boxed()))
    }
}

/// Uploads go to one origin each; the id names it.
impl BlobSink for OriginCluster {
    async fn upload_start(&self, _: &Namespace) -> Result<String, SinkError> {
        let (origin, upload) = Self::upload_start(self).await.map_err(sink_error)?;
        Ok(format!("{origin}.{upload}"))
    }

    async fn upload_start_known(
        &self,
        ns: &Namespace,
        digest: Digest,
        length: u64,
    ) -> Result<String, SinkError> {
        match Self::upload_start_known(self, ns, digest, length).await {
            Ok((origin, upload)) => Ok(format!("{origin}.{upload}")),
            // The bytes may come all the same: the commit sees that they are there.
            Err(ApiError::Conflict(_)) => BlobSink::upload_start(self, ns).await,
            Err(error) => Err(sink_error(error)),
        }
    }

    async fn upload_len(&self, id: &str) -> Result<u64, SinkError> {
        let (origin, upload) = split(id)?;
        Self::upload_len(self, origin, upload)
            .await
            .map_err(sink_error)
    }

    async fn upload_append(
        &self,
        id: &str,
        offset: u64,
        body: BoxStream<'static, Result<Bytes, BodyError>>,
    ) -> Result<u64, SinkError> {
        let (origin, upload) = split(id)?;
        let broken = Arc::new(Mutex::new(None));
        let noted = broken.clone();
        let body = body.map(move |chunk| {
            chunk.map_err(|error| {
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                io::Error::other(error)
            })
        });
        let appended = Self::upload_append(self, origin, upload, offset, body.boxed()).await;
        appended.map_err(|error| {
            // The origin sees only that the body broke off; why, this side knows.
            let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
            broken.map_or_else(|| sink_error(error), SinkError::Body)
        })
    }

    async fn upload_commit(
        &self,
        id: &str,
        ns: &Namespace,
        digest: Digest,
    ) -> Result<(), SinkError> {
        let (origin, upload) = split(id)?;
        Self::upload_commit(self, origin, upload, ns, digest)
            .await
            .map(drop)
            .map_err(|error| match error {
                ApiError::BadRequest(_) => SinkError::DigestMismatch,
                other => sink_error(other),
            })
    }

    async fn upload_abort(&self, id: &str) -> Result<(), SinkError> {
        let (origin, upload) = split(id)?;
        Self::upload_abort(self, origin, upload)
            .await
            .map_err(sink_error)
    }
}

fn split(id: &str) -> Result<(&str, &str), SinkError> {
    let parts = id.rsplit_once('.').ok_or(SinkError::Unknown)?;
    // What a client made up must not reach into an origin's paths.
    let plain = |text: &str| {
        text.bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    if plain(parts.0) && plain(parts.1) {
        Ok(parts)
    } else {
        Err(SinkError::Unknown)
    }
}

fn sink_error(error: ApiError) -> SinkError {
    match error {
        ApiError::NotFound | ApiError::BadRequest(_) => SinkError::Unknown,
        ApiError::RangeInvalid { len } => SinkError::OffsetWrong { len },
        ApiError::Forbidden(why) => SinkError::Denied(why),
        ApiError::Full(_) => SinkError::Full,
        other => SinkError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_upload_ids_do_not_pass() {
        assert_eq!(split("origin-1.0192-ab_c"), Ok(("origin-1", "0192-ab_c")));
        for wrong in [
            "",
            "origin-1",
            "origin-1./internal",
            "origin-1.%2e%2e",
            "a/b.c",
            "a..b",
        ] {
            assert_eq!(split(wrong), Err(SinkError::Unknown), "{wrong}");
        }
    }
}
