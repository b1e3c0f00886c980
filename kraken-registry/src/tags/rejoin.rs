//! A build-index takes part among the others: it begins with them, comes back after it lost its disk,
//! or learns what it missed while it was away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kraken_proto::tags::list::Lists;
use kraken_proto::tags::register::Register;
use kraken_proto::tags::rejoin::{Beginning, Decision, Told, decide};
use tokio::time::{Instant, sleep};

use super::TagError;
use super::backend::TagBackend;
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
    /// Takes part: begins to vote when that is safe, and from then on looks for what it missed, and goes from
    /// one list of build-indexes to the next, for ever. Until it votes, all others must do without it.
    pub async fn take_part(&self) {
        self.begin_to_vote().await;
        // What the configuration says is remembered before anything is built on it.
        while let Some(lists) = self.here().lists() {
            match self.become_of(lists).await {
                Ok(()) => break,
                Err(error) => tracing::error!(%error, "the list of build-indexes cannot be kept"),
            }
            sleep(PAUSE_MAX).await;
        }
        tokio::join!(self.keep_following(), self.keep_mending());
    }

    async fn begin_to_vote(&self) {
        let store = self.here();
        let mut pause = PAUSE;
        while !store.standing().votes() {
            let begun = match self.begin(store).await {
                // What the others say after that counts.
                Ok(false) if self.backend().is_some_and(TagBackend::was_just_read) => continue,
                begun => begun,
            };
            match begun {
                Ok(true) => tracing::info!("this build-index knows the tags and votes"),
                Ok(false) => tracing::debug!("waiting for the other build-indexes"),
                Err(error) => tracing::warn!(error, "cannot learn the tags yet"),
            }
            if !store.standing().votes() {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    async fn keep_following(&self) {
        loop {
            let wait = self.follow_lists().await;
            sleep(wait).await;
        }
    }

    async fn keep_mending(&self) {
        loop {
            let began = Instant::now();
            match self.mend(self.here()).await {
                Ok(0) => {}
                Ok(mended) => tracing::info!(mended, "tags that were missed are here now"),
                Err(error) => tracing::debug!(%error, "not all tags can be compared now"),
            }
            sleep(MEND.saturating_sub(began.elapsed())).await;
        }
    }

    async fn begin(&self, store: &TagStore) -> Result<bool, String> {
        let own = (self.name(), store.standing().incarnation);
        let told = self.ask_others().await;
        self.check(own.1, &told)?;
        let failed = |error: TagStoreError| error.to_string();
        let beginning = match decide(own, self.configured(), &told, self.replicas()) {
            Decision::Wait => return Ok(false),
            Decision::Renew(incarnation) => {
                store.renew(incarnation).await.map_err(failed)?;
                return Ok(false);
            }
            Decision::NotListed => {
                let what =
                    "the others do not have this list of build-indexes in their configuration";
                return Err(what.into());
            }
            Decision::AskToo(members) => {
                let mut lists = Lists::first(members);
                lists.settled.members.extend(self.configured().clone());
                self.see(lists);
                return Ok(false);
            }
            Decision::Begin(beginning) => {
                if !self.restored(&beginning).await? {
                    return Ok(false);
                }
                beginning
            }
            Decision::CatchUp(beginning) => {
                // What belongs to it is what does by the lists that it will go by.
                self.see(beginning.lists.clone());
                self.catch_up(store, &told, &beginning.lists).await?;
                beginning
            }
        };
        let lists = beginning.lists.clone();
        let begun = store.begin(beginning, self.replicas()).await;
        begun.map_err(failed)?;
        self.see(lists);
        Ok(true)
    }

    /// Whether what the backend holds was read for this beginning. Reading takes a while, in which the others
    /// may come to another: they are asked once more after it.
    async fn restored(&self, beginning: &Beginning) -> Result<bool, String> {
        match self.backend() {
            Some(backend) => backend.restore(self, &beginning.founders).await,
            None => Ok(true),
        }
    }

    /// Whether what the others say goes together with what this one is.
    fn check(&self, ours: u64, told: &BTreeMap<String, Option<Told>>) -> Result<(), String> {
        let replicas = self.replicas();
        for standing in told.values().flatten().map(|told| &told.standing) {
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
        Ok(())
    }

    /// Learns what those hold that vote, and makes sure that these were enough.
    async fn catch_up(
        &self,
        store: &TagStore,
        told: &BTreeMap<String, Option<Told>>,
        lists: &Lists,
    ) -> Result<(), String> {
        let mut heard = BTreeSet::new();
        for (name, owner) in self.others() {
            let votes = told.get(&name).and_then(Option::as_ref);
            if !votes.is_some_and(|told| told.standing.votes()) {
                continue;
            }
            match self.learn_from(store, &owner).await {
                Ok(()) => drop(heard.insert(name)),
                Err(error) => tracing::debug!(error, "one of the others does not tell"),
            }
        }
        // Meanwhile they may have gone on to another list.
        let now = self.ask_others().await.into_iter();
        let now = now.filter(|(name, _)| heard.contains(name));
        let now: BTreeMap<_, _> = now
            .filter_map(|(name, told)| Some((name, told?.lists?)))
            .collect();
        let is_same = Lists::to_adopt(&now, self.configured()).as_ref() == Some(lists);
        if is_same && lists.suffices(self.name(), &now, self.replicas()) {
            return Ok(());
        }
        let all = self.others().len();
        Err(format!("{} of {all} told what they hold", now.len()))
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
            match self.mend_from(store, &owner).await {
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
            let lists = self.view().asked();
            let page = owner.page(("", &lists), PAGE, after.as_deref()).await;
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
                    None => store.held(&name).await?.accepted,
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
