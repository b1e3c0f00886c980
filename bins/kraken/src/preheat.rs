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
use crate::caller::{Caller, base_url};
use crate::client::Registry;

/// How often it is said how far it is.
const SAY: Duration = Duration::from_secs(1);
/// How long one host may take for one blob.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// So many of the hosts that failed are named.
pub const MOST_TOLD: usize = 20;
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Hosts that have all of it.
    pub ready: usize,
    /// Hosts on which it failed.
    pub failed: usize,
    /// The first [`MOST_TOLD`] of these, and why.
    pub failures: Vec<FailedHost>,
    /// Hosts that get it.
    pub hosts: usize,
    /// Whether so many have it as were wanted.
    pub is_enough: bool,
    /// About how many seconds are left, as far as the last ones tell.
    pub seconds_left: Option<u64>,
}

/// A host that did not get the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedHost {
    /// The address of its agent's registry, as it was given.
    pub host: String,
    /// What went wrong there.
    pub reason: String,
}

impl Progress {
    fn note(&mut self, host: &str, error: &Failure) {
        self.failed += 1;
        if self.failures.len() < MOST_TOLD {
            self.failures.push(FailedHost {
                host: host.to_owned(),
                reason: error.to_string(),
            });
        }
    }

    /// The hosts that failed, a line for each that is told of, and how many more there are.
    pub fn told(&self) -> Vec<String> {
        let told = self.failures.iter();
        let mut lines: Vec<_> = told
            .map(|it| format!("{}: {}", it.host, it.reason))
            .collect();
        let more = self.failed - self.failures.len();
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

/// Lets hosts fetch an image, asked by `caller`, and waits until enough of them have it.
///
/// # Errors
/// An address makes no sense, or what `say` gives.
pub async fn to_hosts(
    (repository, reference): (&RepoName, &Reference),
    (hosts, caller): (&Hosts, &Caller),
    say: impl Fn(&Progress) -> Result<(), Failure>,
) -> Result<Progress, Failure> {
    for agent in &hosts.agents {
        base_url(agent)?;
    }
    let share = |of: usize, percent: u8| (of * usize::from(percent)).div_ceil(100);
    let chosen = &hosts.agents[..share(hosts.agents.len(), hosts.percent)];
    let enough = share(chosen.len(), hosts.wait);
    let mut progress = Progress {
        ready: 0,
        failed: 0,
        failures: Vec::new(),
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
                Some((agent, Err(error))) => progress.note(agent, &error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_failed_are_named_with_their_reasons_and_the_rest_counted() {
        let mut progress = Progress {
            ready: 0,
            failed: 0,
            failures: Vec::new(),
            hosts: 30,
            is_enough: false,
            seconds_left: None,
        };
        assert!(progress.told().is_empty());
        for number in 0..=MOST_TOLD {
            let why = Failure::Away(format!("no answer to {number}"));
            progress.note(&format!("h{number}:1"), &why);
        }
        let told = progress.told();
        assert_eq!(told.len(), MOST_TOLD + 1);
        assert_eq!(told[3], "h3:1: no answer to 3");
        assert_eq!(told[MOST_TOLD], "and 1 more");
    }
}
