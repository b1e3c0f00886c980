//! Who the build-indexes of a cluster are, and how one list of them follows another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use kraken_proto::tags::list::{List, ListId, Lists, Members, Move};
use kraken_proto::tags::rejoin::Told;
use kraken_proto::tags::round::{Majorities, quorum};
use kraken_proto::{Digest, Member, Ring};
use reqwest::Client;

use super::TagError;
use super::lists::{gather, merge};
use super::owner::{Owner, PAGE, Remote};
use super::ring::TagRing;
use super::store::TagStore;
use crate::link::RegisterName;

/// A build-index of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexMember {
    /// The name that places its share; stays when it moves.
    pub name: String,
    /// Its base URL, such as `https://index-1:7604`.
    pub url: String,
}

/// How often the others are asked how far they are with another list, and without one.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_SETTLED: Duration = Duration::from_secs(20);
/// How often one is tried before all begins anew.
const TRIES: usize = 5;
/// Registers that are copied at once.
const COPIES: usize = 32;

/// The build-indexes as one of them sees them at a time.
#[derive(Debug)]
pub(super) struct View {
    pub(super) lists: Lists,
    rings: Vec<Ring>,
    owners: BTreeMap<String, Owner>,
    replicas: usize,
}

/// Who owns the tags of one repository.
#[derive(Debug)]
pub(super) struct Owning {
    pub(super) names: Vec<String>,
    pub(super) owners: Vec<Owner>,
    pub(super) majorities: Majorities,
}

impl Owning {
    /// How many must answer so that most owners are among them.
    pub(super) fn enough(&self) -> usize {
        self.owners.len() - self.majorities.spare()
    }
}

impl View {
    pub(super) fn new(
        lists: Lists,
        (own, store): (&str, &TagStore),
        replicas: usize,
        http: &Client,
    ) -> Self {
        let owner = |name: &str, url: &str| {
            if name == own {
                Owner::Here(store.clone())
            } else {
                Owner::There(Remote::new(http.clone(), url))
            }
        };
        let members = lists.members();
        let owners = members
            .iter()
            .map(|(name, url)| (name.clone(), owner(name, url)));
        let ring = |list: &List| Ring::new(list.members.keys().map(Member::new));
        Self {
            owners: owners.collect(),
            rings: lists.all().map(ring).collect(),
            replicas,
            lists,
        }
    }

    /// Who owns the tags of a repository: while one list follows another, by either.
    pub(super) fn owning(&self, repo: &str) -> Owning {
        let (mut names, mut owners) = (Vec::<String>::new(), Vec::new());
        let mut groups = Vec::new();
        let place = Digest::of(repo.as_bytes());
        for ring in &self.rings {
            let mut group = BTreeSet::new();
            for name in ring.owners(&place, self.replicas) {
                let known = names.iter().position(|it| it == name);
                group.insert(known.unwrap_or(names.len()));
                if let (None, Some(owner)) = (known, self.owners.get(name)) {
                    names.push(name.to_owned());
                    owners.push(owner.clone());
                }
            }
            groups.push(group);
        }
        Owning {
            names,
            owners,
            majorities: Majorities::of_each(groups),
        }
    }

    /// All build-indexes by name.
    pub(super) fn owners(&self) -> impl Iterator<Item = (&String, &Owner)> {
        self.owners.iter()
    }

    /// How many of all must answer so that most owners of each tag are among them.
    pub(super) fn enough(&self) -> usize {
        let spare = |list: &List| {
            let owners = self.replicas.min(list.members.len());
            owners - quorum(owners)
        };
        let spare = self.lists.all().map(spare).min().unwrap_or(0);
        self.owners.len() - spare
    }

    /// The lists whose owners an attempt asks.
    pub(super) fn asked(&self) -> Vec<ListId> {
        self.lists.asked()
    }

    /// The members of the list that stands, in a digest's order.
    pub(super) fn order_for(&self, digest: Digest) -> Vec<(String, String)> {
        let members = &self.lists.settled.members;
        let ring = self.rings.first();
        let names = ring
            .map(|ring| ring.owners(&digest, members.len()))
            .unwrap_or_default();
        let at = |name: &&str| members.get(*name).cloned().unwrap_or_default();
        names
            .iter()
            .map(|name| ((*name).to_owned(), at(name)))
            .collect()
    }

    /// The first owner of a repository by the list that is to stand.
    fn first_owner(&self, repo: &str) -> Option<&str> {
        let place = Digest::of(repo.as_bytes());
        self.rings.last()?.owners(&place, 1).first().copied()
    }
}

/// The lists that a build-index begins with: what it remembers, and what its configuration says now.
pub(super) fn configured(
    store: &TagStore,
    name: &str,
    members: &[IndexMember],
) -> Result<Lists, RingError> {
    let mut configured = Members::new();
    for member in members {
        let (name, url) = (member.name.clone(), member.url.clone());
        if configured.insert(name, url).is_some() {
            return Err(RingError::Twice(member.name.clone()));
        }
    }
    if configured.is_empty() {
        configured.insert(name.to_owned(), String::new());
    }
    let lists = match store.lists() {
        Some(mut lists) => {
            rename(&mut lists, name);
            let changed = lists.configure(configured);
            changed.map_err(|it| RingError::UnderWay(it.to_string()))?;
            lists
        }
        None => Lists::first(configured),
    };
    if !lists.members().contains_key(name) {
        return Err(RingError::NotListed(name.to_owned()));
    }
    Ok(lists)
}

/// One that was alone was this one, whatever it was called.
fn rename(lists: &mut Lists, name: &str) {
    let alone = &mut lists.settled.members;
    if alone.len() == 1 && lists.next.is_none() && !alone.contains_key(name) {
        *alone = [(name.to_owned(), String::new())].into();
    }
}

impl TagRing {
    /// What the others say of themselves.
    pub(super) async fn ask_others(&self) -> BTreeMap<String, Option<Told>> {
        let asked = self.others().into_iter().map(|(name, owner)| async move {
            let told = owner.standing().await;
            (name, told.ok())
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Makes the next step from one list to another, if there is one. After how long to look again.
    pub(super) async fn follow_lists(&self) -> Duration {
        let store = self.here();
        let Some(lists) = store.lists() else {
            return LOOK;
        };
        let told = self.ask_others().await.into_iter();
        let told = told.filter_map(|(name, told)| Some((name, told?.lists?)));
        let step = lists.decide(self.name(), &told.collect(), self.replicas());
        let done = match step {
            Move::Wait => Ok(()),
            Move::Become(lists) => self.become_of(lists).await,
            Move::Copy => match self.copy().await {
                Ok(()) => self.become_of(lists.copied()).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the list of build-indexes cannot change yet");
        }
        let is_changing = store.lists().is_none_or(|lists| lists.next.is_some());
        if is_changing { LOOK } else { LOOK_SETTLED }
    }

    /// Remembers the lists, and goes by them.
    pub(super) async fn become_of(&self, lists: Lists) -> Result<(), TagError> {
        let names = |list: &List| list.members.keys().cloned().collect::<Vec<_>>().join(", ");
        match &lists.next {
            Some(next) => tracing::info!(
                from = names(&lists.settled),
                to = names(next),
                is_closed = lists.is_closed,
                has_copied = lists.has_copied,
                "the list of build-indexes is being changed"
            ),
            None => tracing::info!(members = names(&lists.settled), "the list of build-indexes"),
        }
        self.here().set_lists(lists.clone()).await?;
        self.see(lists);
        Ok(())
    }

    /// Makes the owners by either list agree on all that this one is the first owner of.
    async fn copy(&self) -> Result<(), TagError> {
        let view = self.view();
        // Of each majority by the list that stands one says what it holds.
        let (enough, lists) = (view.lists.settled.enough(self.replicas()), view.asked());
        let members = view.lists.settled.members.keys();
        let owners: Vec<_> = members.filter_map(|name| view.owners.get(name)).collect();
        let mut after = None::<String>;
        loop {
            let pages = owners.iter();
            let pages = pages.map(|it| it.page(("", &lists), PAGE, after.as_deref()));
            let (listed, last) = merge(gather(pages, enough).await?, PAGE);
            let mut ours = Vec::new();
            for name in listed.into_iter().filter_map(|it| it.name.parse().ok()) {
                let name: RegisterName = name;
                if view.first_owner(name.repo().as_str()) == Some(self.name()) {
                    ours.push(name);
                }
            }
            let copying = ours.into_iter().map(|name| {
                let ring = self.clone();
                async move {
                    for _ in 1..TRIES {
                        // One that all change at this moment does not hold up the others.
                        if ring.agree(&name).await.is_ok() {
                            return Ok(());
                        }
                    }
                    ring.agree(&name).await
                }
            });
            let mut copying = stream::iter(copying).buffer_unordered(COPIES);
            while let Some(copied) = copying.next().await {
                copied?;
            }
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }
}

/// Why a list of build-indexes makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// A name that occurs twice.
    #[error("two build-indexes are named {0}")]
    Twice(String),
    /// This one is not among them.
    #[error("{0} is not among the build-indexes that are listed")]
    NotListed(String),
    /// Another list is on its way.
    #[error("{0}; until then name the same as before")]
    UnderWay(String),
    /// A tag needs an owner.
    #[error("at least one build-index must own each tag")]
    NoReplicas,
    /// Owners of tags would change without knowing them.
    #[error("each tag has {before} owners since this build-index began, and cannot have {now}")]
    Replicas {
        /// How many they are.
        before: usize,
        /// How many they are to be.
        now: usize,
    },
    /// The cluster's name is none.
    #[error("the name of the cluster has 1 to 255 bytes")]
    Cluster,
}
