//! A build-index takes part among the others: it begins with them, comes back after it lost its disk,
//! or learns what it missed while it was away.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use kraken_proto::tags::register::Register;
use kraken_proto::tags::rejoin::{Decision, decide};
use tokio::time::{Instant, sleep};

use super::TagError;
use super::owner::{Owner, PAGE};
use super::ring::TagRing;
use super::store::{TagStore, TagStoreError};
use crate::link::RegisterName;

/// The waits while the others do not answer.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often one page is asked for.
const TRIES: usize = 5;
/// How often this build-index looks for what it missed.
const MEND: Duration = Duration::from_secs(600);

impl TagRing {
    /// Takes part: begins to vote when that is safe, and from then on looks for what it missed, for
    /// ever. Until it votes, all others must do without it.
    pub async fn take_part(&self) {
        let Some(store) = self.here() else { return };
        let mut pause = PAUSE;
        while !store.standing().votes() {
            match self.begin(store).await {
                Ok(true) => tracing::info!("this build-index knows the tags and votes"),
                Ok(false) => tracing::debug!("waiting for the other build-indexes"),
                Err(error) => tracing::warn!(error, "cannot learn the tags from the others yet"),
            }
            if !store.standing().votes() {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        loop {
            let began = Instant::now();
            match self.mend(store).await {
                Ok(0) => {}
                Ok(mended) => tracing::info!(mended, "tags that were missed are here now"),
                Err(error) => tracing::debug!(%error, "not all tags can be compared now"),
            }
            sleep(MEND.saturating_sub(began.elapsed())).await;
        }
    }

    async fn begin(&self, store: &TagStore) -> Result<bool, String> {
        let others: Vec<_> = self.others().map(|(_, owner)| owner).collect();
        let replicas = self.replicas();
        let standings = join_all(others.iter().map(|it| it.standing())).await;
        let standings: Vec<_> = standings.into_iter().map(Result::ok).collect();
        let ours = store.standing().incarnation;
        for standing in standings.iter().flatten() {
            if standing.incarnation == ours {
                return Err(
                    "two of the build-indexes that are listed are this one: see name".into(),
                );
            }
            if standing.votes() && standing.replicas != replicas {
                let theirs = standing.replicas;
                return Err(format!(
                    "tag_replicas is {replicas} here and {theirs} at another build-index"
                ));
            }
        }
        let founders = match decide(ours, &standings, self.copies()) {
            Decision::Wait => return Ok(false),
            Decision::Begin(founders) => founders,
            Decision::CatchUp { from, founders } => {
                let voting = others.iter().zip(&standings);
                let voting = voting.filter(|(_, it)| it.as_ref().is_some_and(|it| it.votes()));
                let mut heard = 0;
                for (owner, _) in voting {
                    match self.learn_from(store, owner).await {
                        Ok(()) => heard += 1,
                        Err(error) => tracing::debug!(error, "one of the others does not tell"),
                    }
                }
                if heard < from {
                    return Err(format!("{heard} of {from} told what they hold"));
                }
                founders
            }
        };
        let begun = store.begin(founders, replicas).await;
        begun.map_err(|error| error.to_string())?;
        Ok(true)
    }

    /// Learns all that another one holds of what belongs to this one.
    async fn learn_from(&self, store: &TagStore, owner: &Owner) -> Result<(), String> {
        let mut after = String::new();
        loop {
            let page = self.page_of(store, owner, &after).await?;
            let is_last = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                after.clone_from(last);
            }
            let ours = page.into_iter().filter_map(|(name, register)| {
                let name: RegisterName = name.parse().ok()?;
                self.owns(&name).then_some((name, register))
            });
            let learnt = store.learn(ours.collect()).await;
            learnt.map_err(|error: TagStoreError| error.to_string())?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// One page, asked for a few times: to begin with the first one again would outbid all changes anew.
    async fn page_of(
        &self,
        store: &TagStore,
        owner: &Owner,
        after: &str,
    ) -> Result<Vec<(String, Register)>, String> {
        let ours = (self.name(), store.standing().incarnation);
        for _ in 1..TRIES {
            match owner.hand_over(ours, after).await {
                Ok(page) => return Ok(page),
                Err(error) => tracing::debug!(error, "a page of registers did not come"),
            }
            sleep(PAUSE).await;
        }
        owner.hand_over(ours, after).await
    }

    /// Reads each tag that another owner knows a later attempt of: that makes them agree. How many.
    async fn mend(&self, store: &TagStore) -> Result<usize, TagError> {
        let (mut mended, mut failed) = (0, None);
        for (_, owner) in self.others() {
            match self.mend_from(store, owner).await {
                Ok(count) => mended += count,
                // The others may know more all the same.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(mended), Err)
    }

    async fn mend_from(&self, store: &TagStore, owner: &Owner) -> Result<usize, TagError> {
        let mut mended = 0;
        let mut after = None::<String>;
        loop {
            let page = owner.page("", PAGE, after.as_deref()).await;
            let page = page.map_err(TagError::Unavailable)?;
            let is_last = page.len() < PAGE;
            let ours = store.page("", PAGE, after.as_deref()).await?;
            let ours: BTreeMap<_, _> = ours.into_iter().map(|it| (it.name, it.accepted)).collect();
            after = page.last().map(|it| it.name.clone());
            for listed in page {
                let Ok(name) = listed.name.parse::<RegisterName>() else {
                    continue;
                };
                let known = match ours.get(&listed.name) {
                    Some(accepted) => *accepted,
                    None => store.look(&name).await?.accepted,
                };
                if self.owns(&name) && known < listed.accepted {
                    self.agree(&name).await?;
                    mended += 1;
                }
            }
            if is_last {
                return Ok(mended);
            }
        }
    }
}
