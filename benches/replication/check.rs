//! Looks in a cluster for what is to be there, and for what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, TryStreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_core::{Digest, Namespace};
use kraken_registry::tags::{LinkService as _, TagService as _};
use kraken_registry::{LinkKind, RepoName};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use crate::Outcome;
use crate::cluster::Client;
use crate::push::{Book, Pushed, Tagged, insist};

/// What was found in one cluster.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) missing_tags: usize,
    pub(crate) missing_referrers: usize,
    pub(crate) missing_blobs: usize,
    pub(crate) misplaced: usize,
    /// Of the distinct blobs that had to come.
    pub(crate) needed_bytes: u64,
    /// The first of what is wrong, by name.
    pub(crate) reasons: Vec<String>,
}

impl Found {
    fn tell(&mut self, reason: String) {
        if self.reasons.len() < MOST_REASONS {
            self.reasons.push(reason);
        }
    }
}

const MOST_REASONS: usize = 20;
/// Questions at once.
const LOOKS: usize = 16;
/// Of so many blobs one is read.
const SAMPLE: usize = 8;

/// Waits until all tags and lists of artifacts are as they should be, at most until `end`; then looks at
/// the blobs, and for what has no business there.
pub(crate) async fn check(
    client: &Client,
    book: &Book,
    is_wanted: impl Fn(&RepoName) -> bool,
    end: Instant,
) -> Outcome<Found> {
    let mut found = Found::default();
    let (wanted, unwanted) = parted(&book.tags, |it| is_wanted(&it.repo));
    let (current, others) = parted(&book.current, |it| is_wanted(&it.repo));
    let (former, former_others) = parted(&book.former, |it| is_wanted(&it.repo));
    for tagged in left(wanted, end, async |it| is_equal(client, it).await).await {
        found.missing_tags += 1;
        let Tagged { repo, tag, digest } = tagged;
        found.tell(format!("{}: {repo}:{tag} is not {digest:?}", client.name));
    }
    let artifacts = current.iter().filter(|it| it.referrer.is_some()).copied();
    for image in left(artifacts.collect(), end, async |it| {
        is_listed(client, it).await
    })
    .await
    {
        found.missing_referrers += 1;
        let Pushed { repo, digest, .. } = image;
        found.tell(format!(
            "{}: the artifact about {repo}@{digest} is not listed",
            client.name
        ));
    }
    let needed = blobs(&current);
    look_at_blobs(client, &needed, &mut found).await?;
    found.needed_bytes = needed.values().map(|(_, length)| length).sum();
    let once = blobs(&former);
    for (digest, (ns, length)) in once.iter().filter(|it| !needed.contains_key(it.0)) {
        // It was needed then, if it has come.
        if stat(client, ns, *digest).await?.is_some() {
            found.needed_bytes += length;
        }
    }
    let mut foreign = blobs(&others);
    foreign.extend(blobs(&former_others));
    foreign.retain(|digest, _| !needed.contains_key(digest) && !once.contains_key(digest));
    for (digest, (ns, _)) in &foreign {
        if stat(client, ns, *digest).await?.is_some() {
            found.misplaced += 1;
            found.tell(format!("{}: {digest} of {ns} is there", client.name));
        }
    }
    look_for_repositories(client, &unwanted, is_wanted, &mut found).await?;
    Ok(found)
}

/// Those that are so, and those that are not.
fn parted<T>(all: &[T], is_so: impl Fn(&T) -> bool) -> (Vec<&T>, Vec<&T>) {
    all.iter().partition(|it| is_so(it))
}

/// The blobs of images, each with a repository that has it and its length.
fn blobs(images: &[&Pushed]) -> BTreeMap<Digest, (Namespace, u64)> {
    let of = |image: &&Pushed| {
        let ns = image.repo.namespace();
        let lengths = image.lengths.clone().into_iter();
        lengths.map(move |(digest, length)| (digest, (ns.clone(), length)))
    };
    images.iter().flat_map(of).collect()
}

/// Those that are not right when the time is over.
async fn left<'a, T>(
    mut all: Vec<&'a T>,
    end: Instant,
    is_right: impl AsyncFn(&'a T) -> Outcome<bool>,
) -> Vec<&'a T> {
    loop {
        let looks = all.into_iter().map(async |it| {
            // Who could not be asked is asked again.
            let is_right = is_right(it).await.unwrap_or(false);
            (!is_right).then_some(it)
        });
        let looks = stream::iter(looks).buffer_unordered(LOOKS);
        all = looks.filter_map(std::future::ready).collect().await;
        if all.is_empty() || Instant::now() > end {
            return all;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn is_equal(client: &Client, it: &Tagged) -> Outcome<bool> {
    Ok(client.tags.get(&it.repo, &it.tag).await? == it.digest)
}

async fn is_listed(client: &Client, image: &Pushed) -> Outcome<bool> {
    let kind = LinkKind::ReferrersOf(image.digest);
    let listed = client.tags.links(&image.repo, kind, 100, None).await?;
    Ok(image.referrer.is_none_or(|it| listed.contains(&it)))
}

async fn stat(client: &Client, ns: &Namespace, digest: Digest) -> Outcome<Option<u64>> {
    let look = async || match client.origins.stat(ns, digest).await {
        Ok(length) => Ok(Some(length)),
        Err(ApiError::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    };
    insist("the length of a blob", look).await
}

async fn look_at_blobs(
    client: &Client,
    needed: &BTreeMap<Digest, (Namespace, u64)>,
    found: &mut Found,
) -> Outcome<()> {
    let looks = needed.iter().enumerate();
    let looks = looks.map(async |(turn, (digest, (ns, length)))| {
        let is_there = stat(client, ns, *digest).await? == Some(*length);
        let is_right = is_there
            && (!turn.is_multiple_of(SAMPLE)
                || insist("a blob", async || read(client, ns, *digest).await).await?);
        Ok::<_, crate::Failure>((!is_right).then_some((ns, *digest)))
    });
    let looks = stream::iter(looks).buffer_unordered(LOOKS);
    let missing: Vec<_> = looks.try_collect().await?;
    for (ns, digest) in missing.into_iter().flatten() {
        found.missing_blobs += 1;
        found.tell(format!(
            "{}: {digest} of {ns} is missing or wrong",
            client.name
        ));
    }
    Ok(())
}

/// Whether a blob's bytes are right.
async fn read(client: &Client, ns: &Namespace, digest: Digest) -> Outcome<bool> {
    let mut body = client.origins.read(ns, digest, None).await?.body;
    let mut hash = Sha256::new();
    while let Some(chunk) = body.next().await {
        hash.update(&chunk?);
    }
    Ok(hash.finalize()[..] == digest.as_bytes()[..])
}

/// Repositories and tags that no rule brings there.
async fn look_for_repositories(
    client: &Client,
    unwanted: &[&Tagged],
    is_wanted: impl Fn(&RepoName) -> bool,
    found: &mut Found,
) -> Outcome<()> {
    let list = async || Ok(client.tags.repositories(usize::MAX, None).await?);
    for name in insist("the catalog", list).await? {
        if !is_wanted(&name.parse()?) {
            found.misplaced += 1;
            found.tell(format!("{}: the repository {name} is there", client.name));
        }
    }
    for Tagged { repo, tag, .. } in unwanted {
        let look = async || Ok(client.tags.get(repo, tag).await?);
        if insist("a tag", look).await?.is_some() {
            found.misplaced += 1;
            found.tell(format!("{}: the tag {repo}:{tag} is there", client.name));
        }
    }
    for repo in unwanted.iter().map(|it| &it.repo).collect::<BTreeSet<_>>() {
        let look = async || {
            Ok(client
                .tags
                .links(repo, LinkKind::Manifests, 100, None)
                .await?)
        };
        let held = insist("links", look).await?.len();
        if held > 0 {
            found.misplaced += held;
            found.tell(format!("{}: {repo} holds {held} manifests", client.name));
        }
    }
    Ok(())
}

/// What each build-index says of what it copies.
pub(crate) async fn statuses(client: &Client) -> Vec<String> {
    let asks = client.indexes.iter().map(async |index| {
        let answer = client.http.raw().get(format!("{index}/replicate/status"));
        let answer = answer.timeout(Duration::from_secs(5)).send().await;
        let text = match answer {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        format!("{} at {index}: {text}", client.name)
    });
    futures::future::join_all(asks).await
}
