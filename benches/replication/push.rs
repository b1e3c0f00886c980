//! Pushes images to a cluster as a proxy does, moves some tags later and removes some.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_core::proto::rng::Rng;
use kraken_core::{Digest, Namespace};
use kraken_registry::tags::{LinkService as _, TagService as _};
use kraken_registry::{Link, RepoName, Tag};
use tokio::time::{Instant, sleep, sleep_until};

use crate::Outcome;
use crate::cluster::Client;
use crate::images::{Image, Maker, Referrer};

/// What is done to the tag of one image.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// It is pushed, or pushed again as another one.
    Push {
        number: usize,
        version: u64,
    },
    Delete {
        number: usize,
    },
}

impl Step {
    fn number(self) -> usize {
        match self {
            Self::Push { number, .. } | Self::Delete { number } => number,
        }
    }
}

/// An image that was pushed.
#[derive(Debug, Clone)]
pub(crate) struct Pushed {
    pub(crate) repo: RepoName,
    pub(crate) digest: Digest,
    /// All that it needs, and its artifact, in bytes.
    pub(crate) lengths: BTreeMap<Digest, u64>,
    /// The artifact about it.
    pub(crate) referrer: Option<Digest>,
}

/// A tag, and what it is to point to in the end.
#[derive(Debug, Clone)]
pub(crate) struct Tagged {
    pub(crate) repo: RepoName,
    pub(crate) tag: Tag,
    pub(crate) digest: Option<Digest>,
}

/// What was pushed.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) tags: Vec<Tagged>,
    /// Images that tags point to.
    pub(crate) current: Vec<Pushed>,
    /// Images that tags do not point to any more.
    pub(crate) former: Vec<Pushed>,
}

/// Pushes at once.
const WORKERS: usize = 4;
/// How many images later a tag is moved or removed at the earliest.
const LATER: usize = 10;
/// How long is insisted on anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pushes so many images within so much time or more.
pub(crate) async fn push_all(
    client: &Client,
    images: usize,
    seed: u64,
    over: Duration,
) -> Outcome<Book> {
    let maker = &Maker::new(seed);
    let steps = &steps(images, seed);
    let began = Instant::now();
    let workers = (0..WORKERS).map(|worker| async move {
        let mut done = BTreeMap::<usize, Vec<Option<Pushed>>>::new();
        let mine = steps.iter().enumerate();
        // What is done to one tag is done in its order.
        let mine = mine.filter(|(_, step)| step.number() % WORKERS == worker);
        for (turn, step) in mine {
            sleep_until(began + over.mul_f64(turn as f64 / steps.len() as f64)).await;
            let pushed = take(client, maker, *step).await?;
            done.entry(step.number()).or_default().push(pushed);
        }
        Ok::<_, crate::Failure>(done)
    });
    let mut book = Book::default();
    for (number, mut states) in try_join_all(workers).await?.into_iter().flatten() {
        let last = states.pop().flatten();
        let (repo, tag) = Maker::place(number)?;
        let digest = last.as_ref().map(|image| image.digest);
        book.tags.push(Tagged { repo, tag, digest });
        book.current.extend(last);
        book.former.extend(states.into_iter().flatten());
    }
    Ok(book)
}

fn steps(images: usize, seed: u64) -> Vec<Step> {
    let mut rng = Rng::seeded(seed);
    let mut steps = Vec::new();
    let mut version = 0;
    for number in 0..images {
        steps.push(Step::Push { number, version: 0 });
        if number < LATER {
            continue;
        }
        let earlier = rng.below(number - LATER + 1);
        match rng.below(10) {
            0 => {
                version += 1;
                let number = earlier;
                steps.push(Step::Push { number, version });
            }
            1 => steps.push(Step::Delete { number: earlier }),
            _ => {}
        }
    }
    steps
}

async fn take(client: &Client, maker: &Maker, step: Step) -> Outcome<Option<Pushed>> {
    match step {
        Step::Push { number, version } => {
            let image = maker.make(number, version)?;
            let what = format!("a push of {}:{}", image.repo, image.tag);
            insist(&what, async || push(client, &image).await).await?;
            Ok(Some(Pushed {
                digest: image.digest,
                lengths: image.lengths(),
                referrer: image.referrer.as_ref().map(|it| it.digest),
                repo: image.repo,
            }))
        }
        Step::Delete { number } => {
            let (repo, tag) = Maker::place(number)?;
            let what = format!("the removal of {repo}:{tag}");
            let delete = async || Ok(client.tags.delete(&repo, &tag).await?);
            insist(&what, delete).await?;
            Ok(None)
        }
    }
}

/// Does something again until it succeeds.
pub(crate) async fn insist<T>(what: &str, attempt: impl AsyncFn() -> Outcome<T>) -> Outcome<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => return Err(format!("{what}: {error}").into()),
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn push(client: &Client, image: &Image) -> Outcome<()> {
    put_parts(client, image).await?;
    let repo = &image.repo;
    for (digest, _) in &image.manifests {
        let link = Link::Manifest(*digest);
        client.tags.set_link(repo, link, true).await?;
    }
    let early = image.referrer.iter().filter(|it| it.behind.is_none());
    for referrer in early {
        push_referrer(client, image, referrer).await?;
    }
    client.tags.put(repo, &image.tag, image.digest).await?;
    // Once more behind the tag, as a proxy does it.
    let link = Link::Manifest(image.digest);
    client.tags.set_link(repo, link, true).await?;
    if let Some(referrer) = &image.referrer
        && let Some(behind) = referrer.behind
    {
        sleep(behind).await;
        push_referrer(client, image, referrer).await?;
    }
    Ok(())
}

/// Uploads all that the image's tag needs.
pub(crate) async fn put_parts(client: &Client, image: &Image) -> Outcome<()> {
    let ns = &image.repo.namespace();
    let blobs = image.blobs.iter().map(|(digest, bytes)| (*digest, bytes));
    let manifests = image.manifests.iter();
    let manifests = manifests.map(|(digest, bytes)| (*digest, bytes));
    let puts = blobs.chain(manifests);
    let puts = puts.map(|(digest, bytes)| upload(client, ns, digest, bytes));
    let puts = stream::iter(puts).buffer_unordered(WORKERS);
    puts.try_collect::<()>().await
}

async fn push_referrer(client: &Client, image: &Image, referrer: &Referrer) -> Outcome<()> {
    let ns = &image.repo.namespace();
    for (digest, bytes) in &referrer.blobs {
        upload(client, ns, *digest, bytes).await?;
    }
    let manifest = referrer.digest;
    upload(client, ns, manifest, &referrer.manifest).await?;
    let subject = image.digest;
    for link in [
        Link::Referrer { subject, manifest },
        Link::Manifest(manifest),
    ] {
        client.tags.set_link(&image.repo, link, true).await?;
    }
    Ok(())
}

/// Uploads a blob that is not there.
async fn upload(client: &Client, ns: &Namespace, digest: Digest, bytes: &Bytes) -> Outcome<()> {
    match client.origins.stat(ns, digest).await {
        Ok(_) => Ok(()),
        Err(ApiError::NotFound) => {
            client.origins.put(ns, digest, bytes.clone()).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
