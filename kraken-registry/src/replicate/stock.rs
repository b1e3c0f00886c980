//! Where a blob is taken from on its way.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_core::net::origin::OriginCluster;
use kraken_core::storage::Backend as _;
use kraken_core::storage::backend::web::RegistryBackend;
use kraken_proto::{Digest, Namespace};

use super::SendError;
use super::traffic::Traffic;
use crate::source::BlobSource as _;

/// Who has a blob.
pub(super) enum Stock<'a> {
    Origins(&'a OriginCluster),
    Registry(&'a RegistryBackend),
}

impl Stock<'_> {
    /// How many bytes a blob has.
    pub(super) async fn length(&self, ns: &Namespace, digest: Digest) -> Result<u64, SendError> {
        match self {
            Self::Origins(origins) => origins.stat(ns, digest).await.map_err(failed),
            Self::Registry(registry) => match registry.stat(ns, digest).await {
                Ok(Some(length)) => Ok(length),
                Ok(None) => Err(failed(ApiError::NotFound)),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// The bytes of a part of a blob, as fast as they may go.
    pub(super) async fn read(
        &self,
        traffic: &Arc<Traffic>,
        (ns, digest): (&Namespace, Digest),
        part: Range<u64>,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, SendError> {
        let chunks = match self {
            Self::Origins(origins) => {
                let body = origins.open(ns, digest, part).await.map_err(failed)?;
                body.stream.map_err(std::io::Error::other).boxed()
            }
            Self::Registry(registry) => {
                let body = registry.read(ns, digest, part).await?;
                body.map_err(std::io::Error::other).boxed()
            }
        };
        let traffic = traffic.clone();
        let paced = chunks.and_then(move |chunk| {
            let traffic = traffic.clone();
            async move {
                let passed = traffic.pass(chunk.len() as u64).await;
                passed.map_err(std::io::Error::other)?;
                Ok(chunk)
            }
        });
        Ok(paced.boxed())
    }
}

fn failed(error: impl std::fmt::Display) -> SendError {
    SendError::Failed(format!("where it comes from: {error}"))
}
