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
/// Bytes of one answer, beyond its first descriptor.
const LONGEST: usize = 4 << 20;
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
    let mut known = state.tags.links(repo, kind, n + 1, last).await?;
    let mut more = known.len() > n;
    known.truncate(n);
    let described = describe(state, repo, known.clone()).await?;
    // Annotations may be long: then the page is short.
    let fitting = fitting(&described);
    more |= fitting < known.len();
    known.truncate(fitting);
    let mut described: Vec<_> = described.into_iter().take(fitting).flatten().collect();
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

/// How many of these descriptors fit into one answer; one at least.
fn fitting(described: &[Option<Value>]) -> usize {
    let mut bytes = 0;
    let lengths = described
        .iter()
        .map(|it| it.as_ref().map_or(0, |it| it.to_string().len()));
    let fits = lengths.take_while(|length| {
        bytes += length;
        bytes <= LONGEST
    });
    fits.count().max(1).min(described.len())
}

/// The descriptors of manifests; of one that is gone there is none.
async fn describe<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    digests: Vec<Digest>,
) -> Result<Vec<Option<Value>>, RegistryError> {
    let ns = &repo.namespace();
    let described = stream::iter(digests).map(async |digest| {
        match state.manifests.read(&state.blobs, ns, digest).await {
            Ok(stored) => Ok(Some(stored.describe(digest))),
            Err(ReadError::NotFound | ReadError::Refused(_)) => Ok(None),
            Err(error) => Err(unavailable(&error)),
        }
    });
    described.buffered(READS).try_collect().await
}

/// Not 404, from a mirror either: that would say that there are no signatures.
fn unavailable(error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::new(Code::Unavailable, error.to_string())
}

/// Those that clients listed themselves before registries did: in an index under the tag
/// `sha256-<hex>`, as the specification has it. Those that are known otherwise are left out.
async fn by_fallback_tag<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    subject: Digest,
) -> Result<Vec<Value>, RegistryError> {
    let tag = format!("sha256-{}", subject.hex());
    let tag: Tag = tag.parse().expect("letters, digits and a hyphen");
    let found = state.tags.get(repo, &tag).await;
    let Some(index) = found? else {
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
    let mut seen = BTreeSet::new();
    let listed = index["manifests"].as_array().into_iter().flatten();
    let listed = listed.filter_map(|descriptor| {
        let digest = descriptor["digest"].as_str()?.parse::<Digest>().ok()?;
        seen.insert(digest).then(|| (digest, descriptor.clone()))
    });
    // Clients that list more than a page of them in one tag are not known.
    let listed: Vec<_> = listed.take(PAGE).collect();
    let listed = stream::iter(listed).map(async |(manifest, descriptor)| {
        let links = [
            Link::Referrer { subject, manifest },
            Link::Manifest(manifest),
        ];
        let [referrer, own] = links.map(|link| state.tags.link(repo, link));
        let (referrer, own) = futures::join!(referrer, own);
        let is_listed = referrer? == Linked::Never && own? != Linked::Removed;
        Ok::<_, RegistryError>(is_listed.then_some(descriptor))
    });
    let listed: Vec<Option<Value>> = listed.buffered(READS).try_collect().await?;
    Ok(listed.into_iter().flatten().collect())
}
