//! A registry that images come from: its tags are looked at every so often, and are here what they are there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_core::storage::backend::web::RegistryBackend;
use kraken_proto::tags::hours::Plan;
use kraken_proto::tags::outbox::{Outbox, Sent};
use kraken_proto::tags::record::{Condition, Version};
use kraken_proto::{Digest, Namespace, Timestamp};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::fetch::refused;
use super::gate::Gate;
use super::registry::Registry;
use super::rules::MirrorRule;
use super::send::{BLOBS, MANIFESTS, absent};
use super::server::mark_sparse;
use super::{Inner, LOOK, PARALLEL, ROOM, SendError, one_ends};
use crate::link::{Link, Linked, RegisterName};
use crate::manifest::{Manifest, ManifestError};
use crate::name::{RepoName, TagName};
use crate::platform;
use crate::reader::fetch;
use crate::tags::chance;
use crate::tags::ring::TagRing;

/// Tags that are asked for at once, and how often: for a million in one repository.
const PAGE: usize = 1000;
const PAGES: usize = 1000;
/// Bytes of the manifests of one image that are not here, at most.
const BYTES: usize = 64 << 20;
/// How long a registry is left alone that does not list its tags.
const AWAY: Duration = Duration::from_secs(30);

/// A registry that images come from.
pub(super) struct Mirror {
    pub(super) gate: Gate,
    pub(super) there: Registry,
    pub(super) blobs: RegistryBackend,
    rule: MirrorRule,
    outbox: Mutex<Outbox>,
    /// It is to be looked at now.
    hurry: Notify,
    /// The tags whose images were walked since the rules are these.
    walked: Mutex<HashSet<TagName>>,
}

/// What a registry says of the tags of a repository.
#[derive(Deserialize)]
struct TagList {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// An image as a registry has it.
#[derive(Default)]
struct Image {
    /// Its manifests, and those about it, each before what lists it.
    manifests: Vec<Digest>,
    /// The bytes of those that are not here, and how many that are.
    bytes: BTreeMap<Digest, Bytes>,
    kept: usize,
    /// All other blobs.
    blobs: BTreeSet<Digest>,
    referrers: Vec<Link>,
    /// Indexes of which something is left out.
    sparse: BTreeSet<Digest>,
}

impl Image {
    /// The bytes of a manifest that is not here.
    fn keep(&mut self, manifest: Digest, bytes: Bytes) -> Result<(), SendError> {
        self.kept += bytes.len();
        self.bytes.insert(manifest, bytes);
        if self.kept <= BYTES {
            return Ok(());
        }
        let what = format!("an image whose manifests have more than {BYTES} bytes is not fetched");
        Err(SendError::Refused(what))
    }

    /// Something is not there that is about the image. Whether it is nothing else.
    fn forget(&mut self, manifest: Digest) -> bool {
        let before = self.referrers.len();
        self.referrers.retain(|it| it.digest() != manifest);
        self.referrers.len() < before
    }
}

impl Mirror {
    pub(super) fn new(name: String, rule: MirrorRule, plan: Plan) -> Self {
        let there = Registry::new((name, rule.registry.clone()));
        Self {
            gate: Gate::new(Some(there.traffic.clone()), plan),
            there,
            blobs: rule.blobs.clone(),
            rule,
            outbox: Mutex::new(Outbox::new(ROOM, chance())),
            hurry: Notify::new(),
            walked: Mutex::default(),
        }
    }

    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walked(&self) -> MutexGuard<'_, HashSet<TagName>> {
        self.walked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets come what may come now. Whether that is anything.
    pub(super) fn regulate(&self, now: Timestamp) -> bool {
        let (is_any, is_new) = self.gate.regulate(false);
        if is_new {
            self.outbox().hurry(now);
        }
        is_any
    }

    /// It is looked at now, and all that waits is due.
    pub(super) fn hurry(&self, now: Timestamp) {
        self.outbox().hurry(now);
        self.hurry.notify_one();
    }

    /// Looks what tags it has, as often as the rule says, for ever.
    async fn keep_looking(&self, inner: &Inner) {
        loop {
            let mut wait = LOOK;
            if self.regulate(inner.now()) {
                wait = self.rule.every;
                let owned = |repo: &&RepoName| inner.ring.owns_repo(repo.as_str());
                for repo in self.rule.repositories.iter().filter(owned) {
                    if let Err(error) = self.look(inner, repo).await {
                        let told = format!("{repo}: its tags: {error}");
                        tracing::warn!(registry = self.there.name(), told, "not listed");
                        self.gate.told().last_error = Some(told);
                        wait = self.rule.every.min(AWAY);
                    }
                }
            }
            let _ = timeout(wait, self.hurry.notified()).await;
        }
    }

    async fn look(&self, inner: &Inner, repo: &RepoName) -> Result<(), SendError> {
        let there = self.there.repository(repo);
        let rank = inner.ring.rank(repo.as_str());
        let mut query = format!("n={PAGE}");
        // What was refused and is there no longer.
        let mut gone = self.gate.told().refused_in(repo);
        for _ in 0..PAGES {
            let what = format!("tags/list?{query}");
            let page = self.there.writer.page(&there, &what).await?;
            let Some((bytes, next)) = page else {
                return Err(SendError::Failed("it has no such repository".into()));
            };
            let list: TagList = serde_json::from_slice(&bytes)
                .map_err(|error| SendError::Failed(format!("no list: {error}")))?;
            let tags = list.tags.unwrap_or_default();
            // A list of referrers is none here.
            for tag in tags.iter().filter(|tag| !is_list(tag)) {
                let name = format!("{repo}:{tag}");
                if self.rule.tags.iter().any(|it| it.is_match(&name)) {
                    gone.remove(&name);
                    self.add(inner, &name, rank).await;
                }
            }
            match next {
                Some(next) if next != query => query = next,
                _ => {
                    gone.iter()
                        .for_each(|name| self.gate.told().tell(name, None));
                    return Ok(());
                }
            }
        }
        Err(SendError::Failed(format!("more than {PAGES} pages")))
    }

    /// Waits until there is room.
    async fn add(&self, inner: &Inner, name: &str, rank: usize) {
        while !self.outbox().add(inner.now(), name, rank) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Inner {
    /// Fetches what a registry has, for ever.
    pub(super) async fn keep_mirroring(self: Arc<Self>, mirror: Arc<Mirror>) {
        let fetching = async {
            let mut under_way = JoinSet::new();
            loop {
                while mirror.regulate(self.now()) && under_way.len() < PARALLEL {
                    let Some(name) = mirror.outbox().next(self.now()) else {
                        break;
                    };
                    under_way.spawn(self.clone().mirror_one(mirror.clone(), name));
                }
                one_ends(&mut under_way).await;
            }
        };
        futures::future::join(mirror.keep_looking(&self), fetching).await;
    }

    async fn mirror_one(self: Arc<Self>, mirror: Arc<Mirror>, name: String) {
        let result = match name.parse() {
            Ok(tag) => self.mirror(&mirror, &tag).boxed().await,
            // What has such a name can be no tag here.
            Err(error) => Err(SendError::Refused(format!("its name: {error}"))),
        };
        mirror.gate.told().tell(&name, result.as_ref().err());
        let sent = match result {
            // What is refused is looked at again with all the others.
            Ok(()) | Err(SendError::Refused(_)) => Sent::Done,
            Err(error) => error.ended(mirror.there.name(), &name),
        };
        mirror.outbox().ended(self.now(), &name, sent);
    }

    /// Makes a tag here what it is there, with all that it needs.
    async fn mirror(&self, mirror: &Mirror, tag: &TagName) -> Result<(), SendError> {
        // One that was removed there stays here.
        let Some(digest) = mirror.there.tag(tag).await? else {
            return Ok(());
        };
        let register = RegisterName::from(tag.clone());
        let known = self.ring.register(&register).await?;
        let version = known.as_ref().map_or(Version::ZERO, |it| it.now.version);
        let is_known = known.and_then(|state| state.now.digest) == Some(digest);
        // With other rules than before it may lack something.
        let is_walked = is_known && mirror.walked().contains(tag);
        let image = match is_walked {
            true => self.news_of(mirror, tag.repo(), digest).await?,
            false => {
                self.image_at(mirror, tag.repo(), (vec![digest], Vec::new()))
                    .await?
            }
        };
        self.take_image(mirror, tag.repo(), &image).await?;
        if !is_known {
            // Another build-index may have seen something later while this one was held up.
            let asked = (Condition::At(version), self.policy.is_immutable(tag));
            let set = self.ring.set_by(&register, Some(digest), asked).await;
            set.map_err(|error| refused(error.into()))?;
            tracing::info!(registry = mirror.there.name(), %tag, %digest, "fetched");
        }
        mirror.walked().insert(tag.clone());
        Ok(())
    }

    /// What came to be about an image that is here.
    async fn news_of(
        &self,
        mirror: &Mirror,
        repo: &RepoName,
        subject: Digest,
    ) -> Result<Image, SendError> {
        let mut new = Vec::new();
        for manifest in mirror.there.listed(repo, subject).await?.digests() {
            let link = Link::Referrer { subject, manifest };
            if self.ring.link(repo, link).await?.0 == Linked::Never {
                new.push((link, manifest));
            }
        }
        let (links, manifests): (Vec<_>, Vec<_>) = new.into_iter().unzip();
        self.image_at(mirror, repo, (manifests, links)).await
    }

    /// Walks down from these manifests, which are about others as these links say, to the layers of every
    /// platform that is wanted, and on to what is about any of them.
    async fn image_at(
        &self,
        mirror: &Mirror,
        repo: &RepoName,
        (mut left, referrers): (Vec<Digest>, Vec<Link>),
    ) -> Result<Image, SendError> {
        let (ns, there) = (repo.namespace(), mirror.there.repository(repo));
        let mut image = Image {
            referrers,
            ..Image::default()
        };
        let mut seen: BTreeSet<_> = left.iter().copied().collect();
        while let Some(next) = left.pop() {
            mirror.there.traffic.check()?;
            let (bytes, manifest) = match fetch(&self.origins, &ns, next).await {
                Ok(known) => known,
                Err(_) => match mirror.there.bytes(&there, next).await? {
                    Some(bytes) => {
                        let manifest = Manifest::parse(&bytes).map_err(unfit)?;
                        image.keep(next, bytes.clone())?;
                        (bytes, manifest)
                    }
                    // A list may tell of what was removed.
                    None if image.forget(next) => continue,
                    None => return Err(SendError::Failed(format!("it lacks {next}"))),
                },
            };
            image.manifests.push(next);
            image.blobs.extend(manifest.blobs().map(|blob| blob.digest));
            let left_out = platform::left_out(&bytes, &mirror.rule.platforms);
            if !left_out.is_empty() {
                image.sparse.insert(next);
            }
            let children = manifest.manifests().map(|child| child.digest);
            left.extend(children.filter(|it| !left_out.contains(it) && seen.insert(*it)));
            for manifest in mirror.there.listed(repo, next).await?.digests() {
                image.referrers.push(Link::Referrer {
                    subject: next,
                    manifest,
                });
                if seen.insert(manifest) {
                    left.push(manifest);
                }
            }
            if seen.len() > MANIFESTS {
                let what = format!("an image of more than {MANIFESTS} manifests is not fetched");
                return Err(SendError::Refused(what));
            }
        }
        // What is needed comes before what needs it.
        image.manifests.reverse();
        Ok(image)
    }

    /// Takes all of an image that is not here, but its tag.
    async fn take_image(
        &self,
        mirror: &Mirror,
        repo: &RepoName,
        image: &Image,
    ) -> Result<(), SendError> {
        let ns = repo.namespace();
        let lacking = absent(&self.origins, &ns, &image.blobs).await?;
        let name = mirror.there.name();
        let fetching = lacking.into_iter();
        let fetching: Vec<_> = fetching.map(|it| self.blobs.send(name, &ns, it)).collect();
        let fetching = stream::iter(fetching).buffer_unordered(BLOBS);
        fetching.try_collect::<()>().await?;
        for digest in &image.manifests {
            if let Some(bytes) = image.bytes.get(digest) {
                self.keep_small(&ns, (*digest, bytes)).await?;
            }
            hold(&self.ring, repo, Link::Manifest(*digest)).await?;
        }
        let marked = mark_sparse(&self.ring, repo, image.sparse.clone()).await;
        marked.map_err(refused)?;
        for link in &image.referrers {
            hold(&self.ring, repo, *link).await?;
        }
        Ok(())
    }

    /// Puts a small blob into this cluster's origins.
    async fn keep_small(
        &self,
        ns: &Namespace,
        (digest, bytes): (Digest, &Bytes),
    ) -> Result<(), SendError> {
        let failed = |error: ApiError| SendError::Failed(format!("{digest} here: {error}"));
        let length = bytes.len() as u64;
        let (origin, id) = match self.origins.upload_start_known(ns, digest, length).await {
            Ok(started) => started,
            Err(ApiError::Conflict(_)) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let body = stream::iter([Ok(bytes.clone())]).boxed();
        let appended = self.origins.upload_append(&origin, &id, 0, body).await;
        appended.map_err(failed)?;
        let committed = self.origins.upload_commit(&origin, &id, ns, digest).await;
        committed.map(drop).map_err(failed)
    }
}

async fn hold(ring: &TagRing, repo: &RepoName, link: Link) -> Result<(), SendError> {
    if ring.link(repo, link).await?.0 != Linked::Held {
        ring.set_link(repo, link, (true, Condition::Any)).await?;
    }
    Ok(())
}

/// Whether a tag is that of a list of referrers (OCI distribution specification, "Referrers Tag Schema").
fn is_list(tag: &str) -> bool {
    let hex = tag.strip_prefix("sha256-");
    hex.is_some_and(|hex| Digest::from_hex(hex).is_ok())
}

fn unfit(error: ManifestError) -> SendError {
    SendError::Refused(format!("it is no manifest that can be kept: {error}"))
}
