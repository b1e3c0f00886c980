//! The way of a blob to another registry: in chunks, of which the last that arrived is written down, so that
//! it goes on from there. Where a repository there has the blob already, another one shares it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use http::StatusCode;
use kraken_core::storage::backend::web::{PushError, Started, Upload};
use kraken_proto::{Digest, Namespace};

use super::SendError;
use super::blobs::{BREAKS, Inner};
use super::registry::Registry;
use super::stock::Stock;

/// The bytes of a chunk, at least: what is on its way when somebody dies is sent again, and cloud registries
/// take no parts of less than 5 MiB and none of more than 10.
const CHUNK: u64 = 8 << 20;

/// A blob on its way.
struct Sending<'a> {
    registry: &'a Registry,
    ns: &'a Namespace,
    /// The repository there.
    repo: String,
    digest: Digest,
    length: u64,
    /// What the upload is written down as.
    key: String,
}

impl Inner {
    pub(super) async fn upload_to(
        &self,
        registry: &Arc<Registry>,
        ns: &Namespace,
        digest: Digest,
    ) -> Result<(), SendError> {
        let _turn = registry.traffic.turn().await?;
        let length = self.origins.stat(ns, digest).await;
        let length = length.map_err(|error| SendError::Failed(format!("here: {error}")))?;
        let repo = registry.writer.repository(ns);
        let key = format!("{repo} {}", digest.hex());
        let sending = Sending {
            registry,
            ns,
            repo,
            digest,
            length,
            key,
        };
        // Somebody else may have sent it since.
        let is_there = registry.writer.has_blob(&sending.repo, digest).await?;
        if !is_there && let Some(upload) = self.begin(&sending).await? {
            self.send_chunks(&sending, upload).await?;
            registry.traffic.sent_blobs.fetch_add(1, Ordering::Relaxed);
        }
        let place = sending.repo.clone();
        registry.places.insert(digest, place).await;
        self.keep_upload(registry.name(), &sending.key, None).await
    }

    /// The upload by which a blob goes; nothing when the registry has it from another repository.
    async fn begin(&self, it: &Sending<'_>) -> Result<Option<Upload>, SendError> {
        let (registry, writer) = (it.registry, &it.registry.writer);
        if let Some(url) = self.kept_upload(registry.name(), &it.key).await?
            && let Some(upload) = writer.find(&it.repo, &url).await?
            && upload.at <= it.length
        {
            return Ok(Some(upload));
        }
        let from = registry.places.get(&it.digest).await;
        match writer.start(&it.repo, it.digest, from.as_deref()).await? {
            Started::There => Ok(None),
            Started::At(upload) => Ok(Some(upload)),
        }
    }

    async fn send_chunks(&self, it: &Sending<'_>, mut upload: Upload) -> Result<(), SendError> {
        let (writer, blob) = (&it.registry.writer, (it.repo.as_str(), it.digest));
        let mut breaks = 0;
        loop {
            let chunk = CHUNK.max(upload.min_chunk);
            if it.length - upload.at <= chunk {
                let rest = self.chunk(it, upload.at..it.length).await?;
                match writer.finish(blob, &upload, rest).await {
                    Ok(()) => return Ok(()),
                    Err(error) => return self.gave_up_at(it, error).await,
                }
            }
            let bytes = self.chunk(it, upload.at..upload.at + chunk).await?;
            let error = match writer.append(&it.repo, &upload, bytes).await {
                Ok(next) => {
                    upload = next;
                    let url = Some(upload.url.clone());
                    self.keep_upload(it.registry.name(), &it.key, url).await?;
                    continue;
                }
                Err(error) => error,
            };
            if upload.at == 0 && takes_no_chunks(&error) {
                return self.send_whole(it).await;
            }
            breaks += 1;
            if breaks > BREAKS {
                return Err(error.into());
            }
            upload = match writer.find(&it.repo, &upload.url).await? {
                Some(found) if found.at <= it.length => Upload {
                    min_chunk: upload.min_chunk,
                    ..found
                },
                _ => return self.gave_up_at(it, error).await,
            };
        }
    }

    async fn send_whole(&self, it: &Sending<'_>) -> Result<(), SendError> {
        let writer = &it.registry.writer;
        let Started::At(upload) = writer.start(&it.repo, it.digest, None).await? else {
            return Ok(());
        };
        let traffic = &it.registry.traffic;
        let from = Stock::Origins(&self.origins);
        let body = from.read(traffic, (it.ns, it.digest), 0..it.length).await?;
        let blob = (it.repo.as_str(), it.digest);
        let sent = writer.finish_whole(blob, &upload, (body, it.length)).await;
        traffic.check()?;
        Ok(sent?)
    }

    /// An upload that is not known any more is begun anew the next time.
    async fn gave_up_at(&self, it: &Sending<'_>, error: PushError) -> Result<(), SendError> {
        if error
            .status()
            .is_some_and(|status| status.is_client_error())
        {
            self.keep_upload(it.registry.name(), &it.key, None).await?;
        }
        Err(error.into())
    }

    async fn chunk(
        &self,
        it: &Sending<'_>,
        part: std::ops::Range<u64>,
    ) -> Result<Bytes, SendError> {
        let traffic = &it.registry.traffic;
        traffic.check()?;
        let wanted = part.end - part.start;
        let from = Stock::Origins(&self.origins);
        let body = from.read(traffic, (it.ns, it.digest), part).await?;
        let bytes = body.try_fold(BytesMut::new(), async |mut whole, chunk| {
            whole.extend_from_slice(&chunk);
            Ok(whole)
        });
        let bytes = bytes.await;
        traffic.check()?;
        let bytes = bytes.map_err(|error| SendError::Failed(format!("here: {error}")))?;
        match bytes.len() as u64 == wanted {
            true => Ok(bytes.freeze()),
            false => Err(SendError::Failed("here: it is shorter than it was".into())),
        }
    }
}

/// Whether a registry takes blobs as a whole only. One that has lost the upload says 404.
fn takes_no_chunks(error: &PushError) -> bool {
    let known = [
        StatusCode::NOT_FOUND,
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    error.status().is_some_and(|it| {
        !known.contains(&it) && (it.is_client_error() || it == StatusCode::NOT_IMPLEMENTED)
    })
}
