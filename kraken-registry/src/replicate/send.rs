//! What a register needs to be in another cluster.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_proto::tags::record::{TagState, Version};
use kraken_proto::{Digest, Namespace};

use super::remote::Remote;
use super::{Inner, SendError};
use crate::link::{Link, LinkKind, RegisterName};
use crate::name::RepoName;
use crate::reader::{ReadError, fetch};

/// Blobs of one image that go at once, and that are looked for.
const BLOBS: usize = 4;
const LOOKS: usize = 16;
/// Manifests that one image has at most, its referrers among them.
const MANIFESTS: usize = 10_000;
/// Referrers in one page.
const PAGE: usize = 1000;

/// What an image consists of.
#[derive(Debug, Default)]
struct Image {
    /// All blobs, its manifests among them.
    blobs: BTreeSet<Digest>,
    /// The manifests of its repository.
    manifests: Vec<Digest>,
    /// What is about these.
    referrers: Vec<Link>,
}

impl Inner {
    /// Makes sure that another cluster has a register as it is here, or something later. The version that it
    /// has.
    pub(super) async fn send(&self, remote: &Remote, name: &str) -> Result<Version, SendError> {
        let register: RegisterName = match name.parse() {
            Ok(register) => register,
            // Nobody could ask for it.
            Err(_) => return Ok(Version::new(u64::MAX)),
        };
        let Some(state) = self.ring.register(&register).await? else {
            return Ok(Version::ZERO);
        };
        let version = state.now.version;
        let mut asked = vec![name.to_owned()];
        let about = self.about(&register);
        asked.extend(about.iter().map(ToString::to_string));
        let looked = remote.look(asked).await?;
        let there = looked.first();
        let is_same = there.is_some_and(|it| it.state == Some(state.id()));
        // What is about an image that is not there stays here, until that goes there.
        let is_unwanted = about.is_some() && !looked.last().is_some_and(|it| it.is_set);
        if is_same || is_unwanted {
            return Ok(version);
        }
        if there.is_some_and(|it| it.version >= version) {
            // It has something later, and may lack what was here before.
            remote.merge(vec![(name.to_owned(), state)]).await?;
            return Ok(version);
        }
        self.send_with_all(remote, (&register, state)).await?;
        tracing::info!(
            remote = remote.name(),
            name,
            version = version.get(),
            "sent"
        );
        Ok(version)
    }

    /// What must be there for a register to be wanted there, if it is not wanted for itself.
    fn about(&self, register: &RegisterName) -> Option<RegisterName> {
        let manifest = match register {
            RegisterName::Link(_, Link::Referrer { subject, .. }) => *subject,
            RegisterName::Link(_, Link::Manifest(manifest)) => *manifest,
            _ => return None,
        };
        let link = Link::Manifest(manifest);
        Some(RegisterName::Link(register.repo().clone(), link))
    }

    async fn send_with_all(
        &self,
        remote: &Remote,
        (register, state): (&RegisterName, TagState),
    ) -> Result<(), SendError> {
        let repo = register.repo();
        let Some(digest) = state.now.digest else {
            return remote.merge(vec![(register.to_string(), state)]).await;
        };
        loop {
            let image = self.image(repo, digest).await?;
            self.send_blobs(remote, &repo.namespace(), &image).await?;
            let mut registers = Vec::new();
            let manifests = image.manifests.iter().map(|it| Link::Manifest(*it));
            for link in manifests.chain(image.referrers.iter().copied()) {
                let link = RegisterName::Link(repo.clone(), link);
                // One that was never set here need not be there.
                if let Some(state) = self.ring.register(&link).await? {
                    registers.push((link.to_string(), state));
                }
            }
            registers.push((register.to_string(), state.clone()));
            remote.merge(registers).await?;
            // What came to be about it meanwhile was left to this: the image was not there yet.
            if !self.has_more(repo, &image).await? {
                return Ok(());
            }
        }
    }

    /// Whether there is more about an image than it was found to have.
    async fn has_more(&self, repo: &RepoName, image: &Image) -> Result<bool, SendError> {
        for subject in &image.manifests {
            for manifest in self.referrers(repo, *subject).await? {
                let subject = *subject;
                let link = Link::Referrer { subject, manifest };
                if !image.referrers.contains(&link) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Walks down to the layers of every platform, and on to what is about any of its manifests.
    async fn image(&self, repo: &RepoName, digest: Digest) -> Result<Image, SendError> {
        let ns = repo.namespace();
        let mut image = Image::default();
        let mut left = vec![digest];
        let mut seen = BTreeSet::from([digest]);
        while let Some(next) = left.pop() {
            image.blobs.insert(next);
            let manifest = match fetch(&self.origins, &ns, next).await {
                Ok((_, manifest)) => manifest,
                // A tag may name any file.
                Err(ReadError::Refused(_)) if next == digest => continue,
                Err(error) => return Err(SendError::Failed(format!("{next} here: {error}"))),
            };
            image.manifests.push(next);
            image.blobs.extend(manifest.blobs().map(|blob| blob.digest));
            let children = manifest.manifests().map(|child| child.digest);
            left.extend(children.filter(|child| seen.insert(*child)));
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
        // What is needed comes before what needs it.
        image.manifests.reverse();
        Ok(image)
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
        let origins = remote.origins().await?;
        let looked = image.blobs.iter().map(|digest| {
            let (origins, ns, digest) = (origins.clone(), ns.clone(), *digest);
            async move {
                match origins.stat(&ns, digest).await {
                    Ok(_) => Ok(None),
                    Err(kraken_core::net::http::ApiError::NotFound) => Ok(Some(digest)),
                    Err(error) => Err(SendError::Away(error.to_string())),
                }
            }
        });
        let looked: Vec<_> = looked.collect();
        let absent = stream::iter(looked).buffer_unordered(LOOKS);
        let absent: Vec<_> = absent.try_collect().await?;
        let sending = absent.into_iter().flatten().map(|digest| {
            let (blobs, remote, ns) = (self.blobs.clone(), remote.name().to_owned(), ns.clone());
            async move { blobs.send(&remote, &ns, digest).await }
        });
        let sending: Vec<_> = sending.collect();
        let sending = stream::iter(sending).buffer_unordered(BLOBS);
        sending.try_collect().await
    }
}
