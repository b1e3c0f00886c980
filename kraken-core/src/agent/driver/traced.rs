//! Spans of what is done for requests: of a blob's whole way to this host one, whatever peers send it, and
//! of the announces meanwhile.

use kraken_net::trace::{self, TARGET};
use kraken_proto::{AnnounceRequest, Digest, MetaInfo, Namespace, PeerRole};
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::Driver;

impl Driver {
    /// The span of a blob's way here, if it begins with this request and `will_come` to its end. When it
    /// comes for another request already, the request is linked to that.
    pub(super) fn download(
        &self,
        request: &Span,
        (meta, namespace): (&MetaInfo, &Namespace),
        will_come: bool,
    ) -> Span {
        let digest = meta.digest();
        if request.is_none() {
            return Span::none();
        }
        if let Some(blob) = self.blobs.get(&digest) {
            if let Some(other) = trace::context_of(&blob.trace) {
                trace::link(request, other);
            }
            return Span::none();
        }
        if !will_come {
            return Span::none();
        }
        info_span!(
            target: TARGET,
            parent: request,
            "download",
            otel.status_code = Empty,
            otel.status_description = Empty,
            kraken.digest = %digest,
            kraken.namespace = %namespace,
            kraken.bytes.from_origins = Empty,
            kraken.bytes.from_agents = Empty,
            kraken.peers = Empty,
        )
    }

    /// A blob has come, or not; who sent it is told by then.
    pub(super) fn downloaded(&mut self, digest: Digest, failed: Option<&str>) {
        let blob = self.blobs.get_mut(&digest);
        let Some(span) = blob.map(|blob| std::mem::replace(&mut blob.trace, Span::none())) else {
            return;
        };
        if span.is_none() {
            return;
        }
        if let Some(transfer) = self.history.of(digest).last() {
            let from = |role| {
                let sources = transfer.sources.iter();
                let sent = sources
                    .filter(|it| it.role == Some(role))
                    .map(|it| it.bytes);
                trace::number(sent.sum())
            };
            span.record("kraken.bytes.from_origins", from(PeerRole::Origin));
            span.record("kraken.bytes.from_agents", from(PeerRole::Agent));
            let senders = transfer.sources.iter().filter(|it| it.bytes > 0);
            span.record("kraken.peers", trace::number(senders.count() as u64));
        }
        if let Some(reason) = failed {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", reason);
        }
    }

    /// The span of an announce: a part of the first download that it serves, with links to the others.
    pub(super) fn announcing(&self, request: &AnnounceRequest) -> Span {
        let traces = request.blobs.iter().filter_map(|it| {
            let blob = self.blobs.get(&it.digest)?;
            (!blob.trace.is_none()).then_some(&blob.trace)
        });
        let mut traces = traces;
        let Some(first) = traces.next() else {
            return Span::none();
        };
        let blobs = trace::number(request.blobs.len() as u64);
        let span = info_span!(
            target: TARGET,
            parent: first,
            "announce",
            otel.kind = "client",
            otel.status_code = Empty,
            kraken.blobs = blobs,
        );
        for other in traces.filter_map(trace::context_of) {
            trace::link(&span, other);
        }
        span
    }
}
