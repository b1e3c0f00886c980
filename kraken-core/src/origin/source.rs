//! Where a blob that is not here comes from.
//!
//! Of all origins only the first in the blob's order reads the backend, and the others read from
//! it: so a backend gives each byte once, however many origins are asked at once. When the first
//! cannot be reached, the next takes its place.

use std::ops::Range;

use futures::StreamExt as _;
use futures::future::join_all;
use kraken_net::http::{ApiError, ByteStream};
use kraken_net::origin::{Copies, OriginClient};
use kraken_net::{trace, trace_span};
use kraken_proto::{Digest, Namespace};
use kraken_storage::{Backend as _, BackendError};
use tracing::Instrument as _;
use tracing::field::Empty;

use super::Inner;

/// The bytes of a blob from somewhere on.
pub(super) struct Source {
    /// The length of the whole blob.
    pub(super) length: u64,
    pub(super) body: ByteStream,
}

impl Inner {
    /// The blob's bytes, or those in `rest`, from whoever is to give them.
    pub(super) async fn source(
        &self,
        namespace: &Namespace,
        digest: Digest,
        rest: Option<Range<u64>>,
    ) -> Result<Source, ApiError> {
        if let Some(rest) = rest.as_ref().filter(|rest| rest.is_empty()) {
            let body = futures::stream::empty().boxed();
            let length = rest.end;
            return Ok(Source { length, body });
        }
        let (holder, unreachable) = self.find_at_peers(namespace, digest).await;
        let step = |what: String| self.fetches.step(digest, what);
        if let Some(client) = holder {
            step(format!("read from {}, which has it whole", client.url()));
            // The copy here will count as one of the blob's: it must reach the backend as well.
            self.queue_write_back(namespace, digest, self.stagger)
                .await?;
            match read(&client, namespace, digest, rest.clone()).await {
                Ok(source) => return Ok(source),
                Err(error) => {
                    step(format!("it cannot send it: {error}"));
                    tracing::warn!(%digest, %error, "another origin cannot send a blob");
                }
            }
        }
        for name in self.members.order(digest) {
            let Some(client) = self.members.client(&name) else {
                break;
            };
            step(format!(
                "no origin has it: {name} is asked, by which the storage is read for this blob"
            ));
            let came = tokio::select! {
                came = read(&client, namespace, digest, rest.clone()) => came,
                () = self.members.until_down(&name) => {
                    Err(ApiError::Unavailable("it does not answer any more".into()))
                }
            };
            match came {
                Ok(source) => return Ok(source),
                // It has looked everywhere.
                Err(error @ (ApiError::NotFound | ApiError::Damaged(_))) => return Err(error),
                Err(error) => {
                    step(format!("{name} is away: {error}"));
                    tracing::info!(origin = name, %error, "a blob's first origin is away");
                }
            }
        }
        let from = rest.map_or(0, |rest| rest.start);
        self.read_backend(namespace, digest, from, unreachable)
            .await
    }

    async fn read_backend(
        &self,
        namespace: &Namespace,
        digest: Digest,
        from: u64,
        unreachable: usize,
    ) -> Result<Source, ApiError> {
        let step = |what: String| self.fetches.step(digest, what);
        step(format!(
            "no origin has it: the storage of namespace {namespace} is asked"
        ));
        let span = trace_span!(
            "backend read",
            otel.kind = "client",
            kraken.digest = %digest,
            kraken.namespace = %namespace,
            kraken.bytes = Empty,
        );
        let length = self.backend.stat(namespace, digest);
        let length = length.instrument(span.clone()).await;
        match length.map_err(backend_error)? {
            Some(length) => {
                step(format!(
                    "the storage has it, {length} bytes: read from byte {from} on"
                ));
                let stream = self.backend.read(namespace, digest, from..u64::MAX);
                let stream = stream.instrument(span.clone()).await;
                let stream = stream.map_err(backend_error)?;
                span.record("kraken.bytes", trace::number(length.saturating_sub(from)));
                self.counts.backend_reads.inc();
                // It lasts until the last byte has come.
                let body =
                    stream.map(move |chunk| span.in_scope(|| chunk.map_err(std::io::Error::other)));
                let body = body.boxed();
                Ok(Source { length, body })
            }
            // A blob that is nowhere in the backend is held by at least a quorum of origins, so
            // that it does not exist when fewer than that could not be asked.
            None if unreachable < self.quorum() => {
                step("the storage does not have it".into());
                Err(ApiError::NotFound)
            }
            None => Err(ApiError::Unavailable(
                "too many origins cannot be asked for the blob".into(),
            )),
        }
    }

    /// Another origin that has the blob whole, and how many could not be asked.
    pub(super) async fn find_at_peers(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> (Option<OriginClient>, usize) {
        let order = self.members.order(digest);
        let others = order
            .iter()
            .filter_map(|name| Some((name, self.members.client(name)?)));
        let (there, away): (Vec<_>, Vec<_>) =
            others.partition(|(name, _)| self.members.is_up(name));
        let asks = there.into_iter().map(|(name, client)| async move {
            let length = tokio::select! {
                length = client.stat(namespace, digest, Copies::Here) => length,
                () = self.members.until_down(name) => {
                    Err(ApiError::Unavailable("it does not answer any more".into()))
                }
            };
            (client, length)
        });
        let (mut holder, mut unreachable) = (None, away.len());
        for (client, length) in join_all(asks).await {
            match length {
                Ok(Some(_)) => holder = holder.or(Some(client)),
                Ok(None) => {}
                Err(_) => unreachable += 1,
            }
        }
        (holder, unreachable)
    }
}

/// What others are told when the storage fails: that it is behind this origin, which is well itself.
pub(super) fn backend_error(error: BackendError) -> ApiError {
    let wait = match &error {
        BackendError::Paused(wait) => Some(*wait),
        BackendError::Unavailable(_) => None,
        _ => return ApiError::Unavailable(error.to_string()),
    };
    let what = error.to_string();
    ApiError::Behind { what, wait }
}

async fn read(
    client: &OriginClient,
    namespace: &Namespace,
    digest: Digest,
    rest: Option<Range<u64>>,
) -> Result<Source, ApiError> {
    let read = client.read(namespace, digest, rest).await?;
    Ok(Source {
        length: read.length,
        body: read.body,
    })
}
