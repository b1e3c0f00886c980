//! Copies of a blob at other origins.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kraken_net::http::ApiError;
use kraken_proto::{Digest, MetaInfo, Namespace};

use super::Inner;

/// A replica writes a blob back only when the first holder has not done so after this time per
/// rank: one upload per blob, and none lost.
const STAGGER: Duration = Duration::from_secs(60);

impl Inner {
    /// How many copies a commit needs before it is acknowledged: a majority of the owners.
    pub(super) fn quorum(&self) -> usize {
        self.replicas.min(self.ring.members().len()) / 2 + 1
    }

    /// Brings a blob that is durable here to its other owners, and says whether enough hold it.
    ///
    /// An owner that cannot be reached is stood in for by the next origin in the ring's order, and
    /// gets its copy later, from a durable task.
    pub(super) async fn replicate(
        &self,
        namespace: &Namespace,
        meta: &MetaInfo,
    ) -> Result<(), ApiError> {
        let digest = meta.digest();
        let ranked: Vec<_> = self
            .ring
            .ranked(&digest)
            .into_iter()
            .map(|member| member.name.clone())
            .collect();
        let owners: Vec<_> = ranked.iter().take(self.replicas).collect();
        let mut copies = usize::from(owners.contains(&&self.name));
        let mut away = Vec::new();
        let mut rank = 1;
        let mut rest = ranked.iter().filter(|name| **name != self.name);
        let mut sending = FuturesUnordered::new();
        loop {
            while copies + sending.len() < owners.len() {
                let Some(name) = rest.next() else { break };
                sending.push(async move {
                    (
                        name,
                        self.copy_to(name, namespace, meta, STAGGER * rank).await,
                    )
                });
                rank += 1;
            }
            match sending.next().await {
                Some((_, Ok(()))) => copies += 1,
                Some((name, Err(reason))) => {
                    tracing::warn!(origin = %name, %digest, reason, "no copy there yet");
                    away.extend(owners.contains(&name).then_some(name));
                }
                None => break,
            }
        }
        drop(sending);
        for name in away {
            let queued = self.queue_replica(name, namespace, digest).await;
            queued.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        }
        // The copy here counts also when this origin owns no share: it is durable.
        let copies = copies + usize::from(!owners.contains(&&self.name));
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
        origin: &str,
        namespace: &Namespace,
        meta: &MetaInfo,
        write_back_delay: Duration,
    ) -> Result<(), String> {
        let said = |error: ApiError| error.to_string();
        let client = self.peers.get(origin).ok_or("not a member of the ring")?;
        let digest: Digest = meta.digest();
        if client
            .stat(namespace, digest, true)
            .await
            .map_err(said)?
            .is_some()
        {
            return Ok(());
        }
        let upload = client.upload_start().await.map_err(said)?;
        let body = self.stream(meta, 0..meta.length());
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
                Err(error.to_string())
            }
        }
    }
}
