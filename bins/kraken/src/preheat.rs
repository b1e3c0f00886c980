//! `kraken preheat`: an image is fetched before anybody needs it, into the origins, or onto hosts.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _};
use kraken_core::Digest;
use kraken_registry::Manifest;
use kraken_registry::name::{Reference, RepoName};
use kraken_registry::preheat::Pacer;
use serde::Serialize;
use tokio::time::timeout;

use crate::Failure;
use crate::caller::Caller;
use crate::client::Registry;

/// How often it is said how far it is.
const SAY: Duration = Duration::from_secs(1);
/// How long one host may take for one blob.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// How deep indexes may nest.
const MAX_DEPTH: usize = 4;

/// Which hosts get an image, and when that is enough.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// The address of each agent's registry.
    pub agents: Vec<String>,
    /// Manifests that indexes of the image list, and that no host can have.
    pub left_out: BTreeSet<Digest>,
    /// The share of them that gets it, in hundredths: the first of the list.
    pub percent: u8,
    /// The share of these that must have it, in hundredths.
    pub wait: u8,
    /// Hosts that begin at once.
    pub at_once: usize,
    /// Bytes per second that all of them together are told to fetch; no limit when absent.
    pub at_most: Option<NonZeroU64>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Hosts that have all of it.
    pub ready: usize,
    /// Hosts on which it failed.
    pub failed: usize,
    /// Hosts that get it.
    pub hosts: usize,
    /// Whether so many have it as were wanted.
    pub is_enough: bool,
    /// About how many seconds are left, as far as the last ones tell.
    pub seconds_left: Option<u64>,
}

/// Lets hosts fetch an image, asked by `caller`, and waits until enough of them have it.
///
/// # Errors
/// What `say` gives.
pub async fn to_hosts(
    (repository, reference): (&RepoName, &Reference),
    (hosts, caller): (&Hosts, &Caller),
    say: impl Fn(&Progress) -> Result<(), Failure>,
) -> Result<Progress, Failure> {
    let share = |of: usize, percent: u8| (of * usize::from(percent)).div_ceil(100);
    let chosen = &hosts.agents[..share(hosts.agents.len(), hosts.percent)];
    let enough = share(chosen.len(), hosts.wait);
    let mut progress = Progress {
        ready: 0,
        failed: 0,
        hosts: chosen.len(),
        is_enough: false,
        seconds_left: None,
    };
    let pacer = &Pacer::new(hosts.at_most);
    let fetched = stream::iter(chosen).map(async |agent| {
        let image = (repository, reference);
        let fetched = on_host((agent, caller), image, (&hosts.left_out, pacer)).await;
        (agent, fetched)
    });
    let mut fetched = fetched.buffer_unordered(hosts.at_once.max(1));
    let began = Instant::now();
    let mut said = tokio::time::interval(SAY);
    while progress.ready < enough {
        tokio::select! {
            done = fetched.next() => match done {
                Some((_, Ok(()))) => progress.ready += 1,
                Some((agent, Err(error))) => {
                    tracing::warn!(agent, %error, "a host does not have the image");
                    progress.failed += 1;
                }
                None => break,
            },
            _ = said.tick() => say(&progress)?,
        }
        let left = enough.saturating_sub(progress.ready);
        let took = began.elapsed().as_secs_f64();
        progress.seconds_left = (progress.ready > 0)
            .then(|| (took / progress.ready as f64 * left as f64).ceil() as u64);
    }
    progress.is_enough = progress.ready >= enough;
    say(&progress)?;
    Ok(progress)
}

/// One host fetches all that the image needs.
async fn on_host(
    (agent, caller): (&str, &Caller),
    (repository, reference): (&RepoName, &Reference),
    (left_out, pacer): (&BTreeSet<Digest>, &Pacer),
) -> Result<(), Failure> {
    let registry = &Registry::of(agent, caller)?;
    let repository = repository.as_str();
    let mut level = vec![reference.to_string()];
    let mut seen = BTreeSet::<Digest>::new();
    for _ in 0..=MAX_DEPTH {
        let mut next = Vec::new();
        for reference in level {
            let (_, bytes) = registry.manifest(repository, &reference).await?;
            let manifest = Manifest::parse(&bytes);
            let manifest = manifest.map_err(|error| Failure::Registry(error.to_string()))?;
            let blobs = manifest.blobs().map(|blob| (blob.digest, blob.size));
            let new: Vec<_> = blobs.filter(|(digest, _)| seen.insert(*digest)).collect();
            // All of them at once: the agent goes on also when nobody waits any more.
            let fetched = new
                .into_iter()
                .map(|blob| fetch(registry, repository, blob, pacer));
            futures::future::try_join_all(fetched).await?;
            let children = manifest.manifests().map(|child| child.digest);
            let children = children.filter(|child| !left_out.contains(child));
            next.extend(children.map(|child| child.to_string()));
        }
        if next.is_empty() {
            return Ok(());
        }
        level = next;
    }
    Err(Failure::Registry(
        "the image's indexes nest too deep".into(),
    ))
}

/// One host fetches one blob, when its turn comes.
async fn fetch(
    registry: &Registry,
    repository: &str,
    (digest, bytes): (Digest, u64),
    pacer: &Pacer,
) -> Result<(), Failure> {
    let turn = pacer.turn(bytes).await;
    match registry.begin_to_fetch(repository, digest).await {
        Ok(false) => {}
        done => {
            turn.give_back();
            return done.map(drop);
        }
    }
    let fetched = timeout(PATIENCE, registry.fetch(repository, digest)).await;
    let late = || Failure::Registry(format!("it does not have {digest} in time"));
    fetched.unwrap_or_else(|_| Err(late()))
}
