//! What a register needs to be in another cluster.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_core::net::origin::OriginCluster;
use kraken_proto::tags::record::TagState;
use kraken_proto::{Digest, Namespace};

use super::remote::Remote;
use super::server::Registers;
use super::{Inner, Known, SendError};
use crate::link::{Link, LinkKind, Linked, RegisterName};
use crate::name::RepoName;
use crate::platform;
use crate::reader::{ReadError, fetch};

/// Blobs of one image that go at once, and that are looked for.
pub(super) const BLOBS: usize = 4;
const LOOKS: usize = 16;
/// Manifests that one image has at most, its referrers among them.
pub(super) const MANIFESTS: usize = 10_000;
/// Referrers in one page.
const PAGE: usize = 1000;

/// What an image consists of.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// All blobs, its manifests among them.
    pub(super) blobs: BTreeSet<Digest>,
    /// The manifests of its repository.
    pub(super) manifests: Vec<Digest>,
    /// What is about these.
    pub(super) referrers: Vec<Link>,
    /// Those that list others, and what they list of what belongs to it.
    lists: BTreeMap<Digest, Vec<Digest>>,
    /// What is listed and left out, as no platform that is wanted, or as it was left out where it came from.
    pub(super) absent: BTreeSet<Digest>,
}

impl Image {
    fn leave_out(&mut self, manifest: Digest) {
        for listed in self.lists.values_mut() {
            listed.retain(|it| *it != manifest);
        }
        self.absent.insert(manifest);
    }

    /// Its manifests, each behind all that it lists.
    pub(super) fn in_order(&self) -> Vec<Digest> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for manifest in &self.manifests {
            // Each is seen twice: before what it lists, and behind it.
            let mut left = vec![(*manifest, false)];
            while let Some((next, is_behind)) = left.pop() {
                if is_behind {
                    order.push(next);
                } else if seen.insert(next) {
                    left.push((next, true));
                    let listed = self.lists.get(&next).into_iter().flatten();
                    left.extend(listed.map(|it| (*it, false)));
                }
            }
        }
        order
    }
}

impl Inner {
    /// Makes sure that another cluster has a register as it is here, or something later. What it has.
    pub(super) async fn send(&self, remote: &Remote, name: &str) -> Result<Known, SendError> {
        let register: RegisterName = match name.parse() {
            Ok(register) => register,
            // Nobody could ask for it.
            Err(_) => return Ok(Known::default()),
        };
        let Some(state) = self.ring.register(&register).await? else {
            return Ok(Known::default());
        };
        let known = Known {
            version: state.now.version,
            state: Some(state.id()),
        };
        if !self.is_wanted(remote, &register, &state).await? {
            return Ok(known);
        }
        // Also says whether it is another cluster at all.
        remote.origins().await?;
        let there = remote.look(vec![name.to_owned()]).await?;
        let there = there.first();
        let is_same = there.is_some_and(|it| it.state == known.state);
        if there.is_some_and(|it| it.version > known.version) {
            // It has something later, and may lack what was here before.
            let own = vec![(name.to_owned(), state)];
            remote.merge(own, &BTreeSet::new()).await?;
        } else if !is_same || !self.has_all(remote, &register, &state).await? {
            self.send_with_all(remote, (&register, state)).await?;
            let version = known.version.get();
            tracing::info!(remote = remote.name(), name, version, "sent");
        }
        Ok(known)
    }

    /// Whether the rules send a register to a remote: they may have been others when it was noted.
    pub(super) fn wants(&self, remote: &str, register: &RegisterName) -> bool {
        let rules = self.wanted.iter().find(|it| it.remote == remote);
        rules.is_some_and(|it| it.wants(register))
    }

    /// Whether a register is to be there: a tag by the rules, a link when the image is there that it is about.
    async fn is_wanted(
        &self,
        remote: &Remote,
        register: &RegisterName,
        state: &TagState,
    ) -> Result<bool, SendError> {
        let RegisterName::Link(repo, link) = register else {
            return Ok(self.wants(remote.name(), register));
        };
        // Of other repositories nothing is told there.
        if !self.is_ruled(remote.name(), register).await? {
            return Ok(false);
        }
        let manifest = match link {
            Link::Referrer { subject, .. } => *subject,
            Link::Manifest(manifest) => *manifest,
            Link::Blob(_) | Link::Sparse(_) => return Ok(false),
        };
        let about = RegisterName::Link(repo.clone(), Link::Manifest(manifest));
        let looked = remote.look(vec![about.to_string()]).await?;
        match looked.first() {
            // A manifest that was removed there may come back.
            Some(it) if it.state.is_some() => Ok(it.is_set || &about == register),
            // An image without links is there when its manifest is.
            _ if state.now.digest.is_some() && &about != register => {
                let origins = remote.origins().await?;
                match origins.stat(&repo.namespace(), manifest).await {
                    Ok(_) => Ok(true),
                    Err(ApiError::NotFound) => Ok(false),
                    Err(error) => Err(SendError::Failed(error.to_string())),
                }
            }
            // Otherwise it goes with its tag.
            _ => Ok(false),
        }
    }

    /// Whether all that belongs to a register is there as it is here.
    async fn has_all(
        &self,
        remote: &Remote,
        register: &RegisterName,
        state: &TagState,
    ) -> Result<bool, SendError> {
        let Some(digest) = state.now.digest else {
            return Ok(true);
        };
        let image = self.image(remote.name(), register.repo(), digest).await?;
        let links = self.links_of(register.repo(), &image).await?;
        // What has no link may be there or not, as with other platforms than before.
        if links.len() < image.manifests.len() + image.referrers.len() {
            let ns = register.repo().namespace();
            if !absent(&remote.origins().await?, &ns, &image.blobs)
                .await?
                .is_empty()
            {
                return Ok(false);
            }
        }
        for part in links.chunks(Registers::MOST) {
            let names = part.iter().map(|(name, _)| name.clone()).collect();
            let looked = remote.look(names).await?;
            let mut pairs = part.iter().zip(looked);
            if pairs.any(|((_, state), there)| there.state != Some(state.id())) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn send_with_all(
        &self,
        remote: &Remote,
        (register, state): (&RegisterName, TagState),
    ) -> Result<(), SendError> {
        let repo = register.repo();
        let own = (register.to_string(), state.clone());
        let Some(digest) = state.now.digest else {
            return remote.merge(vec![own], &BTreeSet::new()).await;
        };
        let mut sent = None;
        loop {
            let image = self.image(remote.name(), repo, digest).await?;
            let mut registers = self.links_of(repo, &image).await?;
            // What came to be about it meanwhile was left to this: the image was not there yet.
            if sent.as_ref() == Some(&registers) {
                return Ok(());
            }
            self.send_blobs(remote, &repo.namespace(), &image).await?;
            sent = Some(registers.clone());
            registers.push(own.clone());
            remote.merge(registers, &image.absent).await?;
        }
    }

    /// The links of an image as they are here.
    pub(super) async fn links_of(
        &self,
        repo: &RepoName,
        image: &Image,
    ) -> Result<Vec<(String, TagState)>, SendError> {
        let manifests = image.manifests.iter().map(|it| Link::Manifest(*it));
        let mut links = Vec::new();
        for link in manifests.chain(image.referrers.iter().copied()) {
            let link = RegisterName::Link(repo.clone(), link);
            // One that was never set here need not be there.
            if let Some(state) = self.ring.register(&link).await? {
                links.push((link.to_string(), state));
            }
        }
        Ok(links)
    }

    /// Walks down to the layers of every platform that a remote wants, and on to what is about any of these
    /// manifests.
    pub(super) async fn image(
        &self,
        remote: &str,
        repo: &RepoName,
        digest: Digest,
    ) -> Result<Image, SendError> {
        let ns = repo.namespace();
        let wanted = self.wanted.iter().find(|it| it.remote == remote);
        let platforms = wanted.map_or(&[][..], |it| &it.platforms);
        let mut image = Image::default();
        let mut left = vec![digest];
        let mut seen = BTreeSet::from([digest]);
        while let Some(next) = left.pop() {
            let (bytes, manifest) = match fetch(&self.origins, &ns, next).await {
                Ok(fetched) => fetched,
                // A tag may name any file.
                Err(ReadError::Refused(_)) if next == digest => {
                    image.blobs.insert(next);
                    continue;
                }
                Err(ReadError::NotFound) if self.was_left_out(repo, &image, next).await? => {
                    image.leave_out(next);
                    continue;
                }
                Err(error) => return Err(SendError::Failed(format!("{next} here: {error}"))),
            };
            image.manifests.push(next);
            image.blobs.insert(next);
            image.blobs.extend(manifest.blobs().map(|blob| blob.digest));
            let children = manifest.manifests().map(|child| child.digest);
            let left_out = platform::left_out(&bytes, platforms);
            let (left_out, children): (Vec<_>, Vec<_>) =
                children.partition(|child| left_out.contains(child));
            image.absent.extend(left_out);
            left.extend(children.iter().filter(|child| seen.insert(**child)));
            if !children.is_empty() {
                image.lists.insert(next, children);
            }
            for referrer in self.referrers(repo, next).await? {
                let link = Link::Referrer {
                    subject: next,
                    manifest: referrer,
                };
                image.referrers.push(link);
                if seen.insert(referrer) {
                    left.push(referrer);
                }
            }
            if seen.len() > MANIFESTS {
                let what = format!("an image of more than {MANIFESTS} manifests is not sent");
                return Err(SendError::Failed(what));
            }
        }
        // Another index may list it for a platform that is wanted.
        let Image {
            absent, manifests, ..
        } = &mut image;
        absent.retain(|it| !manifests.contains(it));
        // What is needed comes before what needs it.
        image.manifests.reverse();
        Ok(image)
    }

    /// Whether an index of the image that lists a manifest came without it.
    async fn was_left_out(
        &self,
        repo: &RepoName,
        image: &Image,
        manifest: Digest,
    ) -> Result<bool, SendError> {
        for (index, listed) in &image.lists {
            let link = Link::Sparse(*index);
            if listed.contains(&manifest) && self.ring.link(repo, link).await?.0 == Linked::Held {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn referrers(&self, repo: &RepoName, of: Digest) -> Result<Vec<Digest>, SendError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self
                .ring
                .links(repo, LinkKind::ReferrersOf(of), PAGE, after);
            let page = page.await?;
            after = page.last().copied();
            let is_last = page.len() < PAGE;
            all.extend(page);
            if is_last || all.len() > MANIFESTS {
                return Ok(all);
            }
        }
    }

    /// Sends what of an image is not there.
    async fn send_blobs(
        &self,
        remote: &Remote,
        ns: &Namespace,
        image: &Image,
    ) -> Result<(), SendError> {
        let absent = absent(&remote.origins().await?, ns, &image.blobs).await?;
        let sending = absent.into_iter().map(|digest| {
            let (blobs, remote, ns) = (self.blobs.clone(), remote.name().to_owned(), ns.clone());
            async move { blobs.send(&remote, &ns, digest).await }
        });
        let sending: Vec<_> = sending.collect();
        let sending = stream::iter(sending).buffer_unordered(BLOBS);
        sending.try_collect().await
    }
}

/// Those of these blobs that are not at some origins.
pub(super) async fn absent(
    origins: &OriginCluster,
    ns: &Namespace,
    blobs: &BTreeSet<Digest>,
) -> Result<Vec<Digest>, SendError> {
    let looked = blobs.iter().map(|digest| {
        let (origins, ns, digest) = (origins.clone(), ns.clone(), *digest);
        async move {
            // One that is on its way may have broken off.
            match origins.stat_whole(&ns, digest).await {
                Ok(_) => Ok(None),
                Err(ApiError::NotFound) => Ok(Some(digest)),
                Err(error) => Err(SendError::Failed(error.to_string())),
            }
        }
    });
    let looked: Vec<_> = looked.collect();
    let absent = stream::iter(looked).buffer_unordered(LOOKS);
    let absent: Vec<_> = absent.try_collect().await?;
    Ok(absent.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manifest_lists_comes_before_it() {
        let [top, middle, leaf, about] =
            ["top", "middle", "leaf", "about"].map(|it| Digest::of(it.as_bytes()));
        let image = Image {
            manifests: vec![about, middle, leaf, top],
            lists: [
                (top, vec![middle, leaf]),
                (middle, vec![leaf]),
                // What is about an image may list it.
                (about, vec![top]),
            ]
            .into(),
            ..Image::default()
        };
        assert_eq!(image.in_order(), [leaf, middle, top, about]);
    }
}
