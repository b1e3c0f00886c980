//! Preheating: what an image needs is fetched into the origins before anybody pulls it.
//!
//! | method and path | |
//! |---|---|
//! | POST `/proxy/v1/registry/prefetch` | `{"tag": "repository:tag", "trace_id"}`: answered when all manifests are there; the rest comes in the background |
//! | POST `/proxy/v2/registry/prefetch` | the same: answered when the origins have begun to fetch all of it |
//! | POST `/registry/notifications` | the webhook of the Docker project's registry, and of Harbor: what was pushed is fetched in the background |
//!
//! The answer of the first two: `{"tag", "prefetched", "status", "message", "trace_id"}`, and `"left_out"` with the
//! digests of those manifests that an index lists and that are known not to be in this cluster. With
//! `"at_most": bytes` they ask for no more bytes per second than that, as [`Pacer`] has it.

mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use kraken_core::net::http::ApiError;
use kraken_core::net::origin::{OriginCluster, Prefetch as Begun};
use kraken_proto::{Digest, DigestError, Namespace};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::link::{Link, Linked};
use crate::name::{Reference, RepoName, split_tag};
use crate::reader::{ReadError, fetch};
use crate::source::{BlobSource, SourceError};
use crate::tags::{LinkService, TagError, TagService};

pub use pace::{Pacer, Turn};

/// Blobs that the origins are asked for at once, for one image.
const AT_ONCE: usize = 16;
/// Images that are fetched in the background at once; further ones wait, so many at most.
const IMAGES: usize = 8;
const WAITING: usize = 1000;
/// Manifests of one image: the largest in the wild list some dozens.
const MAX_MANIFESTS: usize = 4096;
const MAX_BLOBS: usize = 100_000;

/// Somewhere that blobs can be fetched to.
pub trait Prefetch: BlobSource {
    /// Begins to fetch a blob, unless it is there; whether it is.
    ///
    /// # Errors
    /// It exists nowhere, or nobody could be asked.
    fn prefetch(
        &self,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<bool, SourceError>> + Send;
}

impl Prefetch for OriginCluster {
    async fn prefetch(&self, ns: &Namespace, digest: Digest) -> Result<bool, SourceError> {
        match Self::prefetch(self, ns, digest).await {
            Ok(begun) => Ok(begun == Begun::Present),
            Err(ApiError::NotFound) => Err(SourceError::NotFound),
            Err(error) => Err(SourceError::Unavailable(error.to_string())),
        }
    }
}

/// What preheating works with.
#[derive(Debug)]
struct Preheater<B, T> {
    blobs: B,
    tags: T,
    images: Semaphore,
    waiting: Arc<Semaphore>,
}

/// The routes for preheating.
pub fn router<B: Prefetch, T: TagService + LinkService>(blobs: B, tags: T) -> Router {
    let preheater = Arc::new(Preheater {
        blobs,
        tags,
        images: Semaphore::new(IMAGES),
        waiting: Arc::new(Semaphore::new(WAITING)),
    });
    Router::new()
        .route("/proxy/v1/registry/prefetch", post(in_background::<B, T>))
        .route("/proxy/v2/registry/prefetch", post(at_once::<B, T>))
        .route("/registry/notifications", post(notified::<B, T>))
        .with_state(preheater)
}

/// What an image needs.
#[derive(Debug, Default)]
struct Needed {
    /// Blobs and their lengths; 0 for manifests, which have been read.
    blobs: BTreeMap<Digest, u64>,
    /// Manifests that indexes list, and that were left out where they came from.
    left_out: BTreeSet<Digest>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    tag: String,
    #[serde(default)]
    trace_id: String,
    /// In bytes per second.
    at_most: Option<NonZeroU64>,
}

#[derive(Debug, Serialize)]
struct Answer {
    tag: String,
    prefetched: bool,
    status: &'static str,
    message: String,
    trace_id: String,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    left_out: BTreeSet<Digest>,
}

type Shared<B, T> = State<Arc<Preheater<B, T>>>;
type Body<A> = Result<Json<A>, JsonRejection>;

async fn in_background<B: Prefetch, T: TagService + LinkService>(
    State(preheater): Shared<B, T>,
    body: Body<Asked>,
) -> Response {
    let preheated = async |asked: &Asked| {
        let (repo, needed, _place) = preheater.image(&asked.tag).await?;
        let Needed { blobs, left_out } = needed;
        let (count, pacer) = (blobs.len(), Pacer::new(asked.at_most));
        let fetch = async move |it: Arc<Preheater<B, T>>| it.fetch_all(&repo, blobs, &pacer).await;
        if !Arc::clone(&preheater).later(fetch) {
            return Err(PreheatError::Busy);
        }
        Ok((format!("{count} blobs are being fetched"), left_out))
    };
    answer(body, preheated).await
}

async fn at_once<B: Prefetch, T: TagService + LinkService>(
    State(preheater): Shared<B, T>,
    body: Body<Asked>,
) -> Response {
    let preheated = async |asked: &Asked| {
        let (repo, needed, _place) = preheater.image(&asked.tag).await?;
        let Needed { blobs, left_out } = needed;
        let (count, pacer) = (blobs.len(), Pacer::new(asked.at_most));
        preheater.fetch_all(&repo, blobs, &pacer).await?;
        let message = format!("the origins have {count} blobs, or fetch them");
        Ok((message, left_out))
    };
    answer(body, preheated).await
}

async fn answer(
    body: Body<Asked>,
    preheated: impl AsyncFnOnce(&Asked) -> Result<(String, BTreeSet<Digest>), PreheatError>,
) -> Response {
    let asked = match body {
        Ok(Json(asked)) => asked,
        Err(error) => {
            let what = format!(
                "{}: write {{\"tag\": \"repository:tag\"}}",
                error.body_text()
            );
            return ApiError::BadRequest(what).into_response();
        }
    };
    let preheated = preheated(&asked).await;
    let status = match &preheated {
        Ok(_) => StatusCode::OK,
        Err(PreheatError::Name(_)) => StatusCode::BAD_REQUEST,
        Err(PreheatError::Unknown(_)) => StatusCode::NOT_FOUND,
        Err(PreheatError::Refused(_)) => StatusCode::UNPROCESSABLE_ENTITY,
        Err(PreheatError::Unavailable(_) | PreheatError::Busy) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let prefetched = preheated.is_ok();
    let (message, left_out) =
        preheated.unwrap_or_else(|error| (error.to_string(), BTreeSet::new()));
    let answer = Answer {
        tag: asked.tag,
        prefetched,
        status: if prefetched { "success" } else { "failure" },
        message,
        trace_id: asked.trace_id,
        left_out,
    };
    (status, Json(answer)).into_response()
}

/// 202 and how many images are fetched; what is no push is let be.
async fn notified<B: Prefetch, T: TagService + LinkService>(
    State(preheater): Shared<B, T>,
    body: Body<Value>,
) -> Response {
    let Ok(Json(body)) = body else {
        return ApiError::BadRequest("this is no notification of a registry".into())
            .into_response();
    };
    let pushed = pushed(&body);
    let mut count = 0;
    for (repo, reference) in pushed {
        let begun = Arc::clone(&preheater).later(async move |it| {
            let digest = it.resolve(&repo, &reference).await?;
            let needed = it.needed(&repo, digest).await?;
            it.fetch_all(&repo, needed.blobs, &Pacer::new(None)).await
        });
        count += usize::from(begun);
    }
    (
        StatusCode::ACCEPTED,
        Json(serde_json::json!({ "images": count })),
    )
        .into_response()
}

/// What a notification says was pushed: that of the Docker project's registry, or of Harbor.
fn pushed(body: &Value) -> Vec<(RepoName, Reference)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let parsed = |repo: Option<String>, reference: Option<String>| {
        Some((repo?.parse().ok()?, reference?.parse().ok()?))
    };
    let events = body["events"].as_array().into_iter().flatten();
    let events = events.filter(|event| event["action"] == "push");
    let events = events.filter_map(|event| {
        let target = &event["target"];
        // Blobs are notified as well.
        let media_type = text(&target["mediaType"]).unwrap_or_default();
        let is_manifest = media_type.contains("manifest") || media_type.contains("index");
        let reference = text(&target["digest"]).filter(|_| is_manifest);
        parsed(text(&target["repository"]), reference)
    });
    let is_harbor = body["type"] == "PUSH_ARTIFACT";
    let data = &body["event_data"];
    let resources = data["resources"].as_array().into_iter().flatten();
    let resources = resources.filter(|_| is_harbor).filter_map(|resource| {
        let reference = text(&resource["digest"]).or_else(|| text(&resource["tag"]));
        parsed(text(&data["repository"]["repo_full_name"]), reference)
    });
    events.chain(resources).collect()
}

impl<B: Prefetch, T: TagService + LinkService> Preheater<B, T> {
    /// The repository of an image, and all blobs that it needs; others wait while the place is held.
    async fn image(
        &self,
        name: &str,
    ) -> Result<(RepoName, Needed, OwnedSemaphorePermit), PreheatError> {
        let (repo, digest) = self.find(name).await?;
        let place = self.place()?;
        let needed = self.needed(&repo, digest).await?;
        Ok((repo, needed, place))
    }

    /// The repository and the manifest that a tag names; with or without the registry's host in front.
    async fn find(&self, tag: &str) -> Result<(RepoName, Digest), PreheatError> {
        let looks_like_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let without_host = tag.split_once('/');
        let without_host = without_host.filter(|(first, _)| looks_like_host(first));
        let without_host = without_host.map(|(_, rest)| rest);
        let mut wrong = None;
        for text in [Some(tag), without_host].into_iter().flatten() {
            if let Some((repo, digest)) = text.split_once('@') {
                let wrong_digest = |error: DigestError| PreheatError::Name(error.to_string());
                let digest = digest.parse().map_err(wrong_digest)?;
                match repo.parse::<RepoName>() {
                    Ok(repo) => return Ok((repo, digest)),
                    Err(error) => {
                        wrong.get_or_insert_with(|| PreheatError::Name(error.to_string()));
                        continue;
                    }
                }
            }
            let (repo, tag) = match split_tag(text) {
                Ok(parts) => parts,
                Err(error) => {
                    wrong.get_or_insert_with(|| PreheatError::Name(error.to_string()));
                    continue;
                }
            };
            if let Some(digest) = self.tags.get(&repo, &tag).await? {
                return Ok((repo, digest));
            }
            wrong = Some(PreheatError::Unknown(format!("{repo}:{tag}")));
        }
        Err(wrong.unwrap_or_else(|| PreheatError::Unknown(tag.to_owned())))
    }

    async fn resolve(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Digest, PreheatError> {
        match reference {
            Reference::Digest(digest) => Ok(*digest),
            Reference::Tag(tag) => {
                let found = self.tags.get(repo, tag).await?;
                found.ok_or_else(|| PreheatError::Unknown(format!("{repo}:{tag}")))
            }
        }
    }

    /// All blobs that an image needs, of every platform, the manifests among them.
    async fn needed(&self, repo: &RepoName, digest: Digest) -> Result<Needed, PreheatError> {
        let ns = repo.namespace();
        let mut needed = Needed::default();
        needed.blobs.insert(digest, 0);
        let mut manifests = vec![(digest, None)];
        let mut read = 0;
        while let Some((next, index)) = manifests.pop() {
            read += 1;
            if read > MAX_MANIFESTS {
                let what = format!("the index lists more than {MAX_MANIFESTS} manifests");
                return Err(PreheatError::Refused(what));
            }
            let manifest = match fetch(&self.blobs, &ns, next).await {
                Ok((_, manifest)) => manifest,
                Err(ReadError::NotFound) if self.is_sparse(repo, index).await? => {
                    needed.blobs.remove(&next);
                    needed.left_out.insert(next);
                    continue;
                }
                // A tag may name any file.
                Err(ReadError::Refused(_)) if next == digest => return Ok(needed),
                Err(error) => return Err(PreheatError::of(error, next)),
            };
            let blobs = &mut needed.blobs;
            blobs.extend(manifest.blobs().map(|blob| (blob.digest, blob.size)));
            if blobs.len() > MAX_BLOBS {
                let what = format!("the image needs more than {MAX_BLOBS} blobs");
                return Err(PreheatError::Refused(what));
            }
            let children = manifest.manifests().map(|child| child.digest);
            let new = children.filter(|child| blobs.insert(*child, 0).is_none());
            manifests.extend(new.map(|child| (child, Some(next))));
        }
        Ok(needed)
    }

    /// Whether an index came from another cluster without some of what it lists.
    async fn is_sparse(
        &self,
        repo: &RepoName,
        index: Option<Digest>,
    ) -> Result<bool, PreheatError> {
        let Some(index) = index else {
            return Ok(false);
        };
        let known = self.tags.link(repo, Link::Sparse(index)).await?;
        Ok(known == Linked::Held)
    }

    async fn fetch_all(
        &self,
        repo: &RepoName,
        blobs: BTreeMap<Digest, u64>,
        pacer: &Pacer,
    ) -> Result<(), PreheatError> {
        let ns = &repo.namespace();
        stream::iter(blobs)
            .map(async |(digest, bytes)| {
                let turn = pacer.turn(bytes).await;
                match self.blobs.prefetch(ns, digest).await {
                    Ok(is_there) => {
                        if is_there {
                            turn.give_back();
                        }
                        Ok(())
                    }
                    Err(SourceError::NotFound) => Err(PreheatError::Unknown(digest.to_string())),
                    Err(error) => Err(PreheatError::Unavailable(error.to_string())),
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Room for one more image.
    fn place(&self) -> Result<OwnedSemaphorePermit, PreheatError> {
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        place.map_err(|_| PreheatError::Busy)
    }

    /// Does something in the background, in its turn; false when too much waits.
    fn later<F, Done>(self: Arc<Self>, work: F) -> bool
    where
        F: FnOnce(Arc<Self>) -> Done + Send + 'static,
        Done: Future<Output = Result<(), PreheatError>> + Send + 'static,
    {
        let Ok(place) = self.place() else {
            tracing::warn!("too many images wait to be preheated");
            return false;
        };
        tokio::spawn(async move {
            let _place = place;
            let preheater = Arc::clone(&self);
            let Ok(_turn) = preheater.images.acquire().await else {
                return;
            };
            if let Err(error) = work(self).await {
                tracing::warn!(%error, "an image is not preheated, or not all of it");
            }
        });
        true
    }
}

/// Why an image is not preheated.
#[derive(Debug, thiserror::Error)]
enum PreheatError {
    #[error("{0}")]
    Name(String),
    #[error("{0} does not exist")]
    Unknown(String),
    #[error("{0}")]
    Refused(String),
    #[error("not all could be asked, try again: {0}")]
    Unavailable(String),
    #[error("too many images wait to be preheated: try again later")]
    Busy,
}

impl PreheatError {
    fn of(error: ReadError, digest: Digest) -> Self {
        match error {
            ReadError::NotFound => Self::Unknown(digest.to_string()),
            ReadError::Refused(error) => Self::Refused(error.to_string()),
            ReadError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

impl From<TagError> for PreheatError {
    fn from(error: TagError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Mutex;
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::memory::{MemoryBlobs, MemoryTags};
    use crate::source::BlobBody;

    /// Notes when it is asked to fetch what, and has some of it.
    #[derive(Debug)]
    struct Noting {
        blobs: MemoryBlobs,
        has: Digest,
        began: Instant,
        asked: Mutex<Vec<(Digest, Duration)>>,
    }

    impl BlobSource for Arc<Noting> {
        async fn stat(&self, ns: &Namespace, digest: Digest) -> Result<Option<u64>, SourceError> {
            self.blobs.stat(ns, digest).await
        }

        async fn open(
            &self,
            ns: &Namespace,
            digest: Digest,
            range: Range<u64>,
        ) -> Result<BlobBody, SourceError> {
            self.blobs.open(ns, digest, range).await
        }
    }

    impl Prefetch for Arc<Noting> {
        async fn prefetch(&self, _: &Namespace, digest: Digest) -> Result<bool, SourceError> {
            let mut asked = self.asked.lock().unwrap();
            asked.push((digest, self.began.elapsed()));
            Ok(digest == self.has)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_is_fetched_no_faster_than_it_may() {
        let blobs = MemoryBlobs::default();
        let layers = [100_000, 300_000, 700_000].map(|length| blobs.insert(vec![1; length]));
        let sizes: BTreeMap<_, _> = layers
            .into_iter()
            .zip([100_000, 300_000, 700_000])
            .collect();
        let described = sizes
            .iter()
            .map(|(digest, size)| json!({"digest": digest, "size": size}));
        let manifest = json!({
            "schemaVersion": 2, "config": {"digest": layers[0], "size": 100_000},
            "layers": described.collect::<Vec<_>>(),
        });
        let manifest = blobs.insert(manifest.to_string());
        let (repo, tag) = ("team/app".parse().unwrap(), "v1".parse().unwrap());
        let tags = MemoryTags::default();
        tags.put(&repo, &tag, manifest).await.unwrap();
        let noting = Arc::new(Noting {
            blobs,
            has: layers[2],
            began: Instant::now(),
            asked: Mutex::default(),
        });
        let app = router(noting.clone(), tags);
        let body = json!({"tag": "team/app:v1", "at_most": 1000}).to_string();
        let request = http::Request::post("/proxy/v2/registry/prefetch")
            .header("content-type", "application/json");
        let request = request.body(axum::body::Body::from(body)).unwrap();
        let answer = tower::ServiceExt::oneshot(app, request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let asked = noting.asked.lock().unwrap();
        assert_eq!(asked.len(), 4, "{asked:?}");
        let mut before = 0_u64;
        for (digest, at) in asked.iter() {
            assert!(at.as_millis() >= u128::from(before), "{asked:?}");
            let size = sizes.get(digest).copied().unwrap_or(0);
            // A byte takes a millisecond, and what is there nothing.
            before += if *digest == layers[2] { 0 } else { size };
        }
        let (_, last) = asked.last().unwrap();
        assert!(last.as_millis() < 410_000, "{asked:?}");
    }

    #[tokio::test]
    async fn what_is_known_to_be_left_out_is_not_missed() {
        let blobs = MemoryBlobs::default();
        let layer = blobs.insert("layer");
        let image = json!({"schemaVersion": 2, "config": {"digest": layer}, "layers": []});
        let image = blobs.insert(image.to_string());
        let absent = Digest::of(b"for another platform");
        let index =
            json!({"schemaVersion": 2, "manifests": [{"digest": image}, {"digest": absent}]});
        let index = blobs.insert(index.to_string());
        let noting = Arc::new(Noting {
            blobs,
            has: layer,
            began: Instant::now(),
            asked: Mutex::default(),
        });
        let tags = MemoryTags::default();
        let app = router(noting.clone(), tags.clone());
        let ask = async |version: &str| {
            let body = json!({"tag": format!("team/app@{index}")}).to_string();
            let request = http::Request::post(format!("/proxy/{version}/registry/prefetch"))
                .header("content-type", "application/json");
            let request = request.body(axum::body::Body::from(body)).unwrap();
            let answer = tower::ServiceExt::oneshot(app.clone(), request)
                .await
                .unwrap();
            let status = answer.status();
            let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
                .await
                .unwrap();
            (status, serde_json::from_slice::<Value>(&body).unwrap())
        };
        let (status, answer) = ask("v2").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
        assert_eq!(answer["message"], format!("{absent} does not exist"));
        let repo: RepoName = "team/app".parse().unwrap();
        tags.set_link(&repo, Link::Sparse(index), true)
            .await
            .unwrap();
        for version in ["v1", "v2"] {
            let (status, answer) = ask(version).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            assert_eq!(answer["left_out"], json!([absent]));
        }
        let asked = noting.asked.lock().unwrap();
        assert!(asked.iter().all(|(digest, _)| *digest != absent));
        assert!(asked.iter().any(|(digest, _)| *digest == layer));
    }

    #[tokio::test]
    async fn a_digest_that_is_none_here_is_called_so() {
        let app = router(
            Arc::new(Noting {
                blobs: MemoryBlobs::default(),
                has: Digest::of(b""),
                began: Instant::now(),
                asked: Mutex::default(),
            }),
            MemoryTags::default(),
        );
        let digest = format!("sha512:{}", "0".repeat(128));
        for image in [
            format!("team/app@{digest}"),
            format!("registry:5000/team/app@{digest}"),
            format!("TEAM@{}", Digest::of(b"")),
        ] {
            let body = json!({"tag": image}).to_string();
            let request = http::Request::post("/proxy/v2/registry/prefetch")
                .header("content-type", "application/json");
            let request = request.body(axum::body::Body::from(body)).unwrap();
            let answer = tower::ServiceExt::oneshot(app.clone(), request).await;
            assert_eq!(answer.unwrap().status(), StatusCode::BAD_REQUEST, "{image}");
        }
    }

    #[test]
    fn notifications_of_both_kinds_name_what_was_pushed() {
        let digest = Digest::of(b"manifest");
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let event = |action: &str, media_type: &str| {
            json!({"action": action, "target": {
                "mediaType": media_type, "digest": digest, "repository": "team/app", "tag": "v1",
            }})
        };
        let docker = json!({"events": [
            event("push", manifest), event("pull", manifest), event("push", "application/octet-stream"),
            {"action": "push", "target": {"mediaType": manifest, "repository": "NO", "digest": digest}},
            {"action": "push"},
        ]});
        let repo: RepoName = "team/app".parse().unwrap();
        assert_eq!(pushed(&docker), [(repo.clone(), Reference::Digest(digest))]);
        let harbor = |kind: &str| {
            json!({"type": kind, "event_data": {
                "repository": {"repo_full_name": "team/app"},
                "resources": [{"digest": digest, "tag": "v1"}, {"tag": "v2"}],
            }})
        };
        let tag = Reference::Tag("v2".parse().unwrap());
        let both = [(repo.clone(), Reference::Digest(digest)), (repo, tag)];
        assert_eq!(pushed(&harbor("PUSH_ARTIFACT")), both);
        assert!(pushed(&harbor("DELETE_ARTIFACT")).is_empty());
        assert!(pushed(&json!([1])).is_empty());
    }
}
