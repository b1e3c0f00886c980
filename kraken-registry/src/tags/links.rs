//! Links in the registers of the build-indexes.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_proto::tags::record::{Condition, TagState, Version};
use kraken_proto::tags::register::Ballot;
use kraken_proto::{Digest, tags};

use super::lists::{gather, merge};
use super::owner::PAGE;
use super::ring::TagRing;
use super::store::Listed;
use super::{LinkService, TagError};
use crate::link::{Link, LinkKind, Linked, RegisterName};
use crate::name::{RepoName, Tag, TagName};

/// Links that are looked at at once.
const LINKS: usize = 16;

impl TagRing {
    /// What is known of a link, and since which version.
    ///
    /// # Errors
    /// Too few of its owners answer.
    pub async fn link(&self, repo: &RepoName, link: Link) -> Result<(Linked, Version), TagError> {
        let name = RegisterName::Link(repo.clone(), link);
        Ok(known(self.register(&name).await?.as_ref()))
    }

    /// Lets a repository hold something, or no longer, if `condition` holds.
    ///
    /// # Errors
    /// [`TagError::Conflict`]; [`TagError::Unavailable`] when too few of its owners answer: then it may
    /// be so, or become so yet.
    pub async fn set_link(
        &self,
        repo: &RepoName,
        link: Link,
        (is_held, condition): (bool, Condition),
    ) -> Result<Version, TagError> {
        let name = RegisterName::Link(repo.clone(), link);
        let digest = is_held.then(|| link.digest());
        let state = self.set_by(&name, digest, (condition, false)).await?;
        if let Some(state) = state {
            return Ok(state.now.version);
        }
        // What was never there leaves no trace when it is removed, and is to.
        let held = (Condition::At(Version::ZERO), false);
        let held = self.set_by(&name, Some(link.digest()), held).await?;
        let version = held.map_or(Version::ZERO, |state| state.now.version);
        let removed = (Condition::At(version), false);
        let removed = self.set_by(&name, None, removed).await?;
        Ok(removed.map_or(version, |state| state.now.version))
    }

    /// Manifests that were removed come back with a tag that needs them, as by a push, unless they were removed
    /// after the version `until`.
    pub(crate) async fn revive(
        &self,
        repo: &RepoName,
        (manifests, until): (BTreeSet<Digest>, Version),
    ) -> Result<(), TagError> {
        let revived = stream::iter(manifests).map(async |digest| {
            let link = Link::Manifest(digest);
            let (known, version) = self.link(repo, link).await?;
            if known != Linked::Removed || version > until {
                return Ok(());
            }
            let asked = (true, Condition::At(version));
            match self.set_link(repo, link, asked).await {
                // What somebody has made of it since is later.
                Ok(_) | Err(TagError::Conflict(_)) => Ok(()),
                Err(error) => Err(error),
            }
        });
        revived.buffer_unordered(LINKS).try_collect().await
    }

    /// Up to `n` digests that a repository holds links of a kind to, in their order, behind `after`.
    ///
    /// # Errors
    /// Too few build-indexes answer.
    pub async fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> Result<Vec<Digest>, TagError> {
        let prefix = format!("{}{kind}/", RegisterName::links(repo));
        let after = after.map(|after| format!("{prefix}{}", after.hex()));
        let page = self.page_registers(&prefix, n, after.as_deref()).await?;
        Ok(page.into_iter().map(|(_, digest)| digest).collect())
    }

    /// The tags of a repository that point to `digest`.
    ///
    /// # Errors
    /// Too few build-indexes answer.
    pub async fn tags_of(&self, repo: &RepoName, digest: Digest) -> Result<Vec<Tag>, TagError> {
        let prefix = format!("{repo}:");
        let (mut tags, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self.page_registers(&prefix, PAGE, after.as_deref()).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|(name, _)| name.clone());
            let of = page.into_iter().filter(|(_, found)| *found == digest);
            let names = of.filter_map(|(name, _)| name.parse::<TagName>().ok());
            tags.extend(names.map(|name| name.tag().clone()));
            if is_last {
                return Ok(tags);
            }
        }
    }

    /// Whether a repository has, or ever had, a tag of which this holds.
    pub(crate) async fn any_tag_ever(
        &self,
        repo: &RepoName,
        is: impl Fn(&TagName) -> bool,
    ) -> Result<bool, TagError> {
        let prefix = format!("{repo}:");
        let mut after = None::<String>;
        loop {
            let view = self.view();
            let (lists, owning) = (view.asked(), view.owning(repo.as_str()));
            let asked = owning.owners.iter();
            let asked = asked.map(|it| it.page((&prefix, &lists), PAGE, after.as_deref()));
            let (listed, last) = merge(gather(asked, owning.enough()).await?, PAGE);
            let ever = listed.iter().filter(|it| it.accepted != Ballot::default());
            let mut names = ever.filter_map(|it| it.name.parse().ok());
            if names.any(|name| is(&name)) {
                return Ok(true);
            }
            match last {
                Some(last) => after = Some(last),
                None => return Ok(false),
            }
        }
    }

    /// Whether a repository holds anything, or ever did.
    ///
    /// # Errors
    /// Too few build-indexes answer.
    pub async fn is_known(&self, repo: &RepoName) -> Result<bool, TagError> {
        let view = self.view();
        let (lists, owning) = (view.asked(), view.owning(repo.as_str()));
        for prefix in [format!("{repo}:"), RegisterName::links(repo)] {
            let owners = owning.owners.iter();
            let asked = owners.map(|owner| owner.page((&prefix, &lists), PAGE, None));
            let pages = gather(asked, owning.enough()).await?;
            // One that was only promised to does not count.
            let ever = |it: &Listed| it.accepted != Ballot::default();
            if pages.iter().flatten().any(ever) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl LinkService for TagRing {
    async fn link(&self, repo: &RepoName, link: Link) -> Result<Linked, TagError> {
        Ok(Self::link(self, repo, link).await?.0)
    }

    async fn set_link(&self, repo: &RepoName, link: Link, is_held: bool) -> Result<(), TagError> {
        let asked = (is_held, Condition::Any);
        Self::set_link(self, repo, link, asked).await.map(drop)
    }

    async fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> Result<Vec<Digest>, TagError> {
        Self::links(self, repo, kind, n, after).await
    }

    async fn tags_of(&self, repo: &RepoName, digest: Digest) -> Result<Vec<Tag>, TagError> {
        Self::tags_of(self, repo, digest).await
    }

    async fn is_known(&self, repo: &RepoName) -> Result<bool, TagError> {
        Self::is_known(self, repo).await
    }
}

fn known(state: Option<&TagState>) -> (Linked, Version) {
    match state.map(|state| &state.now) {
        None => (Linked::Never, Version::ZERO),
        Some(tags::record::Record {
            digest: Some(_),
            version,
            ..
        }) => (Linked::Held, *version),
        Some(removed) => (Linked::Removed, removed.version),
    }
}
