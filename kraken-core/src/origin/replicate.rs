//! Copies of a blob at other origins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kraken_net::http::ApiError;
use kraken_proto::{Digest, MetaInfo, Namespace};
use kraken_storage::StoreError;
use tokio::time::Instant;

use super::Inner;
use super::copying::Copy;
use super::ingest::store_error;

/// A replica writes a blob back only when the first holder has not done so after this time per
/// rank, unless another one is chosen: one upload per blob, and none lost.
pub(super) const STAGGER: Duration = Duration::from_secs(60);

/// What a commit usually takes: a write-back that looks earlier looks twice.
const COMMIT_TIME: Duration = Duration::from_millis(500);
/// When an owner that got no copy in the commit is tried again.
const REPAIR_AFTER: Duration = Duration::from_secs(2);

impl Inner {
    /// How many copies a commit needs before it is acknowledged: a majority of the owners.
    pub(super) fn quorum(&self) -> usize {
        self.members.replicas() / 2 + 1
    }

    /// Makes a blob of an upload and brings it to its owners.
    ///
    /// All tasks that the blob may need are durable before the blob is there, so that a crash at
    /// any point leaves none with too few copies and nobody to mend it. A client that was not told
    /// of a commit which had happened may repeat it.
    pub(super) async fn commit(
        self: &Arc<Self>,
        upload: &str,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        let begun = Instant::now();
        self.queue_write_back(namespace, digest, COMMIT_TIME)
            .await?;
        let mut repairs = BTreeMap::new();
        for name in self.members.owners(digest) {
            if name != self.name {
                let id = self
                    .queue_replica(&name, namespace, digest, REPAIR_AFTER)
                    .await?;
                repairs.insert(name, id);
            }
        }
        self.stays(digest).await;
        let meta = match upload.parse() {
            Ok(known) => self.known_finish(known, digest).await?,
            Err(()) => self.upload_finish(upload, digest).await?,
        };
        // A task of an earlier attempt may have given up while this one was under way.
        self.queue_write_back(namespace, digest, Duration::ZERO)
            .await?;
        let durable = begun.elapsed();
        self.replicate(namespace, &meta, &repairs).await?;
        self.counts.committed(durable, begun.elapsed() - durable);
        Ok(meta)
    }

    async fn upload_finish(&self, upload: &str, digest: Digest) -> Result<MetaInfo, ApiError> {
        match self.store.upload_commit(upload, digest).await {
            Ok(meta) => Ok(meta),
            Err(error @ StoreError::UploadUnknown(_)) => {
                let sealed = self.sealed(digest).await?;
                sealed.ok_or_else(|| store_error(error))
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// Brings a blob that is durable here to its other owners, and says whether enough hold it.
    ///
    /// An owner that cannot be reached is stood in for by the next origin in the ring's order, and
    /// gets its copy later, from its task in `repairs`.
    async fn replicate(
        &self,
        namespace: &Namespace,
        meta: &MetaInfo,
        repairs: &BTreeMap<String, u64>,
    ) -> Result<(), ApiError> {
        let digest = meta.digest();
        let order = self.members.order(digest);
        let owners = self.members.replicas();
        let own = order.iter().take(owners).any(|name| *name == self.name);
        let mut others = order.iter().filter(|name| **name != self.name);
        let (mut copies, mut rank) = (usize::from(own), 0);
        let mut sending = FuturesUnordered::new();
        loop {
            while copies + sending.len() < owners {
                let Some(name) = others.next() else { break };
                rank += 1;
                let delay = self.stagger * rank;
                sending.push(async move {
                    let copied = async {
                        // A repair may be faster than a commit that is repeated.
                        let copy = self.copying.turn(digest, name).await;
                        self.copy_to(copy, namespace, meta, delay).await
                    };
                    let copied = tokio::select! {
                        copied = copied => copied,
                        // Its task goes on when it is there again.
                        () = self.members.until_down(name) => Err("it does not answer any more".into()),
                    };
                    (name, copied)
                });
            }
            match sending.next().await {
                Some((name, Ok(()))) => {
                    copies += 1;
                    if let Some(id) = repairs.get(name) {
                        self.unqueue(*id).await?;
                    }
                }
                Some((name, Err(reason))) => {
                    tracing::warn!(origin = name, %digest, %reason, "no copy there yet");
                }
                None => break,
            }
        }
        // The copy here counts also when this origin owns no share: it is durable.
        let copies = copies + usize::from(!own);
        let quorum = self.quorum();
        if copies >= quorum {
            return Ok(());
        }
        Err(ApiError::Unavailable(format!(
            "only {copies} of the {quorum} origins that must hold the blob could be reached"
        )))
    }

    /// Sends a blob to another origin, unless it has it.
    pub(super) async fn copy_to(
        &self,
        copy: Copy,
        namespace: &Namespace,
        meta: &MetaInfo,
        write_back_delay: Duration,
    ) -> Result<(), String> {
        let said = |error: ApiError| error.to_string();
        let client = self.members.client(copy.origin());
        let client = client.ok_or("not a member of the ring")?;
        let digest: Digest = meta.digest();
        // One that it has may be in the backend of another namespace only.
        match client.write_back(namespace, digest, write_back_delay).await {
            Ok(()) => return Ok(()),
            Err(ApiError::NotFound) => {}
            Err(error) => return Err(said(error)),
        }
        let upload = client.upload_start_replica(digest).await.map_err(said)?;
        let body = self.stream(meta, 0..meta.length(), None);
        let copied = async {
            client.upload_append(&upload, 0, body.boxed()).await?;
            client
                .upload_commit_replica(&upload, namespace, digest, write_back_delay)
                .await
        };
        match copied.await {
            Ok(_) => Ok(()),
            Err(error) => {
                // What was sent is worth nothing; if the other side is gone, it expires there.
                let _ = client.upload_abort(&upload).await;
                Err(said(error))
            }
        }
    }
}
