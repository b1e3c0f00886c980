//! What a register needs to be in another registry.
//!
//! There are no versions there: what a tag is here counts, whatever it was made there. So it is looked again
//! what it is here, right before it is put there and afterwards.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_proto::tags::record::TagState;
use kraken_proto::{Digest, Namespace};

use super::registry::{Listed, Registry};
use super::send::Image;
use super::{Inner, Known, SendError};
use crate::link::{Link, RegisterName};
use crate::name::{RepoName, TagName};
use crate::reader::{Stored, fetch};

/// How often a register is pushed that is another one each time.
const TRIES: usize = 3;
/// Manifests that are looked for, and blobs that go, at once.
const LOOKS: usize = 8;
const BLOBS: usize = 4;

impl Inner {
    /// Makes sure that another registry has a register as it is here.
    pub(super) async fn push(&self, registry: &Registry, name: &str) -> Result<Known, SendError> {
        let register: RegisterName = match name.parse() {
            Ok(register) => register,
            // Nobody could ask for it.
            Err(_) => return Ok(Known::default()),
        };
        for _ in 0..TRIES {
            let Some(state) = self.ring.register(&register).await? else {
                return Ok(Known::default());
            };
            match (&register, state.now.digest) {
                // The rules were others when it was noted.
                _ if !self.wants(registry.name(), &register) => {}
                (RegisterName::Tag(tag), Some(_)) => self.push_tag(registry, tag, &state).await?,
                (RegisterName::Tag(tag), None) => self.push_removal(registry, tag, &state).await?,
                (RegisterName::Link(repo, Link::Referrer { subject, manifest }), now) => {
                    let about = (*subject, *manifest);
                    self.push_referrer(registry, repo, about, now.is_some())
                        .await?;
                }
                // It goes with its tag.
                (RegisterName::Link(..), _) => {}
            }
            if self.is_still(&register, &state).await? {
                return Ok(Known {
                    version: state.now.version,
                    state: Some(state.id()),
                });
            }
        }
        Err(SendError::Failed("it changes all the time".into()))
    }

    async fn is_still(&self, register: &RegisterName, state: &TagState) -> Result<bool, SendError> {
        let now = self.ring.register(register).await?;
        Ok(now.is_some_and(|now| now.id() == state.id()))
    }

    async fn push_tag(
        &self,
        registry: &Registry,
        tag: &TagName,
        state: &TagState,
    ) -> Result<(), SendError> {
        let (repo, Some(digest)) = (tag.repo(), state.now.digest) else {
            return Ok(());
        };
        let mut pushed = None;
        loop {
            let image = self.image(registry.name(), repo, digest).await?;
            // What came to be about it meanwhile was left to this: the image was not there yet.
            if pushed.as_ref() == Some(&image.referrers) {
                return Ok(());
            }
            if !image.manifests.contains(&digest) {
                let what = format!("{digest} is no image, and a registry takes only those");
                return Err(SendError::Refused(what));
            }
            self.push_image(registry, repo, &image).await?;
            let register = RegisterName::Tag(tag.clone());
            if !self.is_still(&register, state).await? {
                return Ok(());
            }
            if registry.tag(tag).await? != Some(digest) {
                let stored = self.stored(&repo.namespace(), digest).await?;
                registry
                    .put((repo, &tag.tag().to_string()), &stored)
                    .await?;
                let remote = registry.name();
                tracing::info!(remote, name = %tag, %digest, "sent");
            }
            pushed = Some(image.referrers);
        }
    }

    /// Removes a tag there, if it points to what it was here.
    async fn push_removal(
        &self,
        registry: &Registry,
        tag: &TagName,
        state: &TagState,
    ) -> Result<(), SendError> {
        let Some(there) = registry.tag(tag).await? else {
            return Ok(());
        };
        let (removed, _) = Registry::removed(tag);
        let mut was = state.records().filter_map(|record| record.digest);
        if !was.any(|digest| digest == there) && removed != there {
            let what = format!(
                "it was removed here, and points to {there} there, which it never was here"
            );
            return Err(SendError::Refused(what));
        }
        // It was to be removed before, and something came in between.
        let was = match there == removed {
            false => Some(there),
            true => self.last_there(registry, tag, state).await?,
        };
        registry.remove_tag(tag, was).await?;
        tracing::info!(remote = registry.name(), name = %tag, "removed");
        Ok(())
    }

    /// The last that a tag was here and that is still there.
    async fn last_there(
        &self,
        registry: &Registry,
        tag: &TagName,
        state: &TagState,
    ) -> Result<Option<Digest>, SendError> {
        for digest in state.records().filter_map(|record| record.digest) {
            if registry.has(tag.repo(), digest).await? {
                return Ok(Some(digest));
            }
        }
        Ok(None)
    }

    /// A manifest came to be about another one, or was removed.
    async fn push_referrer(
        &self,
        registry: &Registry,
        repo: &RepoName,
        (subject, manifest): (Digest, Digest),
        is_set: bool,
    ) -> Result<(), SendError> {
        let is_ruled = |tag: &TagName| self.wants(registry.name(), &tag.clone().into());
        // Of other repositories nothing is told there; and what is not there goes with its tag.
        if !self.ring.any_tag_ever(repo, is_ruled).await? || !registry.has(repo, subject).await? {
            return Ok(());
        }
        if !is_set {
            // A tag may keep it.
            let tags = self.ring.tags_of(repo, manifest).await?;
            let about = (subject, manifest);
            return registry
                .remove_referrer(repo, about, !tags.is_empty())
                .await;
        }
        let mut image = self.image(registry.name(), repo, manifest).await?;
        image.referrers.push(Link::Referrer { subject, manifest });
        self.push_image(registry, repo, &image).await
    }

    /// Sends what of an image is not there, and has what is about any of its manifests listed there.
    async fn push_image(
        &self,
        registry: &Registry,
        repo: &RepoName,
        image: &Image,
    ) -> Result<(), SendError> {
        let ns = repo.namespace();
        let looked = image.manifests.iter().map(async |digest| {
            let found = registry.has(repo, *digest).await;
            found.map(|found| (!found).then_some(*digest))
        });
        let looked: Vec<_> = looked.collect();
        let absent = stream::iter(looked).buffer_unordered(LOOKS);
        let absent: Vec<_> = absent.try_collect().await?;
        let absent: BTreeSet<_> = absent.into_iter().flatten().collect();
        let mut blobs = BTreeSet::new();
        for digest in &absent {
            let (_, manifest) = self.manifest(&ns, *digest).await?;
            blobs.extend(manifest.blobs().map(|blob| blob.digest));
        }
        self.push_blobs(registry, &ns, blobs).await?;
        // What a manifest lists comes before it.
        for digest in image.in_order() {
            if absent.contains(&digest) {
                let stored = self.stored(&ns, digest).await?;
                let put = registry.put((repo, &digest.to_string()), &stored).await;
                put.map_err(|error| sparse(error, image))?;
            }
        }
        self.list_referrers(registry, repo, image).await
    }

    async fn list_referrers(
        &self,
        registry: &Registry,
        repo: &RepoName,
        image: &Image,
    ) -> Result<(), SendError> {
        let mut about = BTreeMap::<Digest, Vec<Digest>>::new();
        for link in &image.referrers {
            if let Link::Referrer { subject, manifest } = link {
                about.entry(*subject).or_default().push(*manifest);
            }
        }
        for (subject, mut manifests) in about {
            let listed = registry.listed(repo, subject).await?;
            manifests.retain(|manifest| !listed.has(*manifest));
            if manifests.is_empty() {
                continue;
            }
            let mut described = Vec::new();
            for manifest in manifests {
                let stored = self.stored(&repo.namespace(), manifest).await?;
                match &listed {
                    // It was put before the registry listed such things.
                    Listed::Api(_) => registry.put((repo, &manifest.to_string()), &stored).await?,
                    Listed::Tag(_) => described.push(stored.describe(manifest)),
                }
            }
            if !described.is_empty() {
                registry.list(repo, subject, described).await?;
            }
        }
        Ok(())
    }

    /// Sends those of some blobs that are not in the repository there.
    async fn push_blobs(
        &self,
        registry: &Registry,
        ns: &Namespace,
        blobs: BTreeSet<Digest>,
    ) -> Result<(), SendError> {
        let there = registry.writer.repository(ns);
        let sending = blobs.into_iter().map(|digest| {
            let (blobs, remote, ns) = (self.blobs.clone(), registry.name().to_owned(), ns.clone());
            let (writer, there) = (registry.writer.clone(), there.clone());
            async move {
                match writer.has_blob(&there, digest).await? {
                    true => Ok(()),
                    false => blobs.send(&remote, &ns, digest).await,
                }
            }
        });
        let sending: Vec<_> = sending.collect();
        let sending = stream::iter(sending).buffer_unordered(BLOBS);
        sending.try_collect().await
    }

    async fn manifest(
        &self,
        ns: &Namespace,
        digest: Digest,
    ) -> Result<(bytes::Bytes, crate::manifest::Manifest), SendError> {
        let fetched = fetch(&self.origins, ns, digest).await;
        fetched.map_err(|error| SendError::Failed(format!("{digest} here: {error}")))
    }

    async fn stored(&self, ns: &Namespace, digest: Digest) -> Result<Stored, SendError> {
        let (bytes, manifest) = self.manifest(ns, digest).await?;
        let media_type = manifest.media_type();
        Ok(Stored { bytes, media_type })
    }
}

/// Says why an index may have been refused.
fn sparse(error: SendError, image: &Image) -> SendError {
    match error {
        SendError::Refused(reason) if !image.absent.is_empty() => SendError::Refused(format!(
            "{reason}; `platforms` leaves out manifests of it, which not every registry takes"
        )),
        error => error,
    }
}
