//! The manifests that are about another one: signatures, attestations, lists of parts.

use std::collections::BTreeSet;

use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_TYPE, LINK};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use kraken_proto::Digest;
use serde_json::{Value, json};

use super::PullState;
use crate::error::{Code, RegistryError};
use crate::link::{Link, LinkKind, Linked};
use crate::manifest::MediaType;
use crate::name::{RepoName, Tag};
use crate::reader::ReadError;
use crate::source::BlobSource;
use crate::tags::{LinkService, TagService};
use crate::web::{encode, param, query, value};

/// Manifests described in one answer; the `Link` leads to more.
const PAGE: usize = 100;
/// Manifests read at once.
const READS: usize = 16;
/// Names the filters that were applied.
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// `GET /v2/<name>/referrers/<digest>?artifactType=&n=&last=`: an index of them, empty when there are
/// none.
pub(super) async fn get<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
    repo: &RepoName,
    subject: Digest,
) -> Result<Response, RegistryError> {
    let pairs = query(&parts.uri);
    let wanted = param(&pairs, "artifactType").filter(|wanted| !wanted.is_empty());
    let n = page_length(param(&pairs, "n"))?;
    let last = param(&pairs, "last").map(Digest::from_hex).transpose();
    let last = last.map_err(|error| RegistryError::new(Code::DigestInvalid, error.to_string()))?;
    let kind = LinkKind::ReferrersOf(subject);
    let known = state.tags.links(repo, kind, n + 1, last).await;
    let mut known = known.map_err(|error| state.manifest_unavailable(&error.to_string()))?;
    let more = known.len() > n;
    known.truncate(n);
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(MediaType::OciIndex.as_str()),
    );
    if let (true, Some(last)) = (more, known.last()) {
        let filter = wanted.map(|wanted| format!("&artifactType={}", encode(wanted)));
        let path = format!("/v2/{repo}/referrers/{subject}");
        let query = format!("n={n}&last={}{}", last.hex(), filter.unwrap_or_default());
        headers.insert(LINK, value(format!("<{path}?{query}>; rel=\"next\"")));
    }
    let mut described = describe(state, repo, known).await?;
    if last.is_none() {
        described.extend(by_fallback_tag(state, repo, subject).await?);
    }
    if let Some(wanted) = wanted {
        described.retain(|it| it["artifactType"].as_str() == Some(wanted));
        headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciIndex.as_str(),
        "manifests": described,
    });
    Ok((headers, index.to_string()).into_response())
}

fn page_length(n: Option<&str>) -> Result<usize, RegistryError> {
    let Some(text) = n else {
        return Ok(PAGE);
    };
    let wrong = || {
        let what = "n is the number of referrers in a page: a whole number from 1 on";
        RegistryError::new(Code::SizeInvalid, what)
    };
    let n: usize = text.parse().map_err(|_| wrong())?;
    (n > 0).then_some(n.min(PAGE)).ok_or_else(wrong)
}

/// The descriptors of manifests; what is gone is left out.
async fn describe<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    digests: Vec<Digest>,
) -> Result<Vec<Value>, RegistryError> {
    let ns = &repo.namespace();
    let described = stream::iter(digests).map(async |digest| {
        match state.manifests.read(&state.blobs, ns, digest).await {
            Ok(stored) => Ok(Some(stored.describe(digest))),
            Err(ReadError::NotFound | ReadError::Refused(_)) => Ok(None),
            Err(error) => Err(state.manifest_unavailable(&error.to_string())),
        }
    });
    let described: Vec<Option<Value>> = described.buffered(READS).try_collect().await?;
    Ok(described.into_iter().flatten().collect())
}

/// Those that clients listed themselves before registries did: in an index under the tag
/// `sha256-<hex>`, as the specification has it. Those that are known otherwise are left out.
async fn by_fallback_tag<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    subject: Digest,
) -> Result<Vec<Value>, RegistryError> {
    let unavailable =
        |error: &dyn std::fmt::Display| state.manifest_unavailable(&error.to_string());
    let tag = format!("sha256-{}", subject.hex());
    let tag: Tag = tag.parse().expect("letters, digits and a hyphen");
    let found = state.tags.get(repo, &tag).await;
    let Some(index) = found.map_err(|error| unavailable(&error))? else {
        return Ok(Vec::new());
    };
    let ns = repo.namespace();
    let read = state.manifests.read(&state.blobs, &ns, index);
    let index = match read.await {
        Ok(stored) => stored,
        Err(ReadError::NotFound | ReadError::Refused(_)) => return Ok(Vec::new()),
        Err(error) => return Err(unavailable(&error)),
    };
    let index: Value = serde_json::from_slice(&index.bytes).unwrap_or_default();
    let (mut listed, mut seen) = (Vec::new(), BTreeSet::new());
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let digest = descriptor["digest"].as_str().and_then(|it| it.parse().ok());
        let Some(manifest) = digest.filter(|digest| seen.insert(*digest)) else {
            continue;
        };
        let links = [
            Link::Referrer { subject, manifest },
            Link::Manifest(manifest),
        ];
        let [referrer, own] = links.map(|link| state.tags.link(repo, link));
        let (referrer, own) = futures::join!(referrer, own);
        let referrer = referrer.map_err(|error| unavailable(&error))?;
        let own = own.map_err(|error| unavailable(&error))?;
        if referrer == Linked::Never && own != Linked::Removed {
            listed.push(descriptor.clone());
        }
    }
    Ok(listed)
}
