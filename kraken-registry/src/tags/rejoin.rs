//! A build-index takes part among the others: it begins with them, comes back after it lost its disk,
//! or learns what it missed while it was away.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use kraken_proto::tags::rejoin::{Decision, decide};
use tokio::time::{Instant, sleep};

use super::TagError;
use super::owner::{Owner, PAGE};
use super::ring::TagRing;
use super::store::{TagStore, TagStoreError};
use crate::name::TagName;

/// The waits while the others do not answer.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(1);
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
        let standings = join_all(others.iter().map(|it| it.standing())).await;
        let standings: Vec<_> = standings.into_iter().map(Result::ok).collect();
        let ours = store.standing().incarnation;
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
        store.begin(founders).await.map_err(|it| it.to_string())?;
        Ok(true)
    }

    /// Learns all that another one holds of what belongs to this one.
    async fn learn_from(&self, store: &TagStore, owner: &Owner) -> Result<(), String> {
        let mut after = String::new();
        loop {
            let page = owner.hand_over(&after).await?;
            let is_last = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                after.clone_from(last);
            }
            let ours = page.into_iter().filter_map(|(name, register)| {
                let name: TagName = name.parse().ok()?;
                self.owns(&name).then_some((name, register))
            });
            let learnt = store.learn(ours.collect()).await;
            learnt.map_err(|error: TagStoreError| error.to_string())?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Reads each tag that another owner knows a later attempt of: that makes them agree. How many.
    async fn mend(&self, store: &TagStore) -> Result<usize, TagError> {
        let mut mended = 0;
        for (_, owner) in self.others() {
            let mut after = None::<String>;
            loop {
                let page = owner.page("", PAGE, after.as_deref()).await;
                let page = page.map_err(TagError::Unavailable)?;
                let is_last = page.len() < PAGE;
                let ours = store.page("", PAGE, after.as_deref()).await?;
                let ours: BTreeMap<_, _> =
                    ours.into_iter().map(|it| (it.name, it.accepted)).collect();
                after = page.last().map(|it| it.name.clone());
                for listed in page {
                    let Ok(name) = listed.name.parse::<TagName>() else {
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
                    break;
                }
            }
        }
        Ok(mended)
    }
}
