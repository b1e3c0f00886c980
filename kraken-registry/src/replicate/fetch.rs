//! What a register needs that comes from another cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_proto::tags::outbox::Sent;
use kraken_proto::tags::record::TagState;
use kraken_proto::{Digest, Namespace};
use tokio::task::JoinSet;

use super::offer::{AskImage, Fetched, Offered, Struck};
use super::send::{BLOBS, absent};
use super::server::Named;
use super::source::{Reading, Source};
use super::{Inner, Known, PARALLEL, SendError, one_ends};
use crate::link::{Link, RegisterName};
use crate::tags::error::IndexError;

impl Inner {
    /// Fetches what waits at one build-index of a source, for ever.
    pub(super) async fn keep_fetching(self: Arc<Self>, source: Arc<Source>, at: usize) {
        let list = &source.lists[at];
        let mut reading = Reading::default();
        let mut under_way = JoinSet::new();
        loop {
            if let Err(error) = source
                .read(list, &mut reading, (self.now(), &self.ring))
                .await
            {
                let remote = source.remote.name();
                tracing::debug!(remote, %error, "a cluster that images come from does not say what waits");
                source.gate.told().last_error = Some(error.to_string());
            }
            while source.regulate(self.now()) && under_way.len() < PARALLEL {
                let Some(name) = list.outbox().next(self.now()) else {
                    break;
                };
                under_way.spawn(self.clone().fetch_one(source.clone(), at, name));
            }
            one_ends(&mut under_way).await;
        }
    }

    async fn fetch_one(self: Arc<Self>, source: Arc<Source>, at: usize, name: String) {
        let result = self.fetch(&source, at, &name).await;
        source.gate.told().tell(&name, result.as_ref().err());
        let remote = source.remote.name();
        let ended = match result {
            Ok(is_same) => (Sent::Done, is_same),
            Err(error) => (error.ended(remote, &name), true),
        };
        source.lists[at].ended(self.now(), &name, ended);
    }

    /// Makes sure that this cluster has a register as it is there, or something later, and says so there.
    /// Whether it is still that there.
    async fn fetch(&self, source: &Source, at: usize, name: &str) -> Result<bool, SendError> {
        let mut taken = None;
        loop {
            let asked = AskImage {
                name: name.to_owned(),
            };
            let offered: Offered = source.remote.ask_one(at, "image", &asked).await?;
            if offered.is_done {
                return Ok(true);
            }
            let known = offered
                .state
                .as_ref()
                .map_or_else(Known::default, |state| Known {
                    version: state.now.version,
                    state: Some(state.id()),
                });
            let fetched = Fetched {
                rules: offered.rules.clone(),
                name: name.to_owned(),
                version: known.version,
                state: known.state,
            };
            let links: Vec<_> = offered.links.iter().map(|it| it.state.id()).collect();
            let all = Some((known, links));
            // What came to be about it meanwhile was left to this: the image was not there yet.
            if all == taken || !self.take(source, name, offered).await? {
                // From then on it does not wait there any more.
                let struck: Struck = source.remote.ask_one(at, "fetched", &fetched).await?;
                return Ok(struck.is_same);
            }
            taken = all;
        }
    }

    /// Takes what another cluster offers. Whether it is wanted here.
    async fn take(&self, source: &Source, name: &str, offered: Offered) -> Result<bool, SendError> {
        let Some(state) = offered.state.filter(|_| offered.is_wanted) else {
            return Ok(false);
        };
        let wrong = |error| SendError::Failed(format!("it offers {name}: {error}"));
        let register: RegisterName = name.parse().map_err(wrong)?;
        if !self.wants_link(&register, &state).await? {
            return Ok(false);
        }
        let own = self.ring.register(&register).await?;
        let is_later = own.is_some_and(|own| own.now.version > state.now.version);
        let own = (register, state);
        if is_later {
            // What is here is later, and may lack what was there before.
            self.accept(own, &BTreeSet::new()).await.map_err(refused)?;
            return Ok(true);
        }
        let ns = own.0.repo().namespace();
        self.fetch_blobs(source, &ns, &offered.blobs).await?;
        for Named { name, state } in offered.links {
            let link: RegisterName = name.parse().map_err(wrong)?;
            if !matches!(&link, RegisterName::Link(repo, _) if repo == own.0.repo()) {
                let what = format!("it offers {name} with {}", own.0);
                return Err(SendError::Failed(what));
            }
            let taken = self.accept((link, state), &offered.absent).await;
            taken.map_err(refused)?;
        }
        let version = own.1.now.version.get();
        self.accept(own, &offered.absent).await.map_err(refused)?;
        tracing::info!(remote = source.remote.name(), name, version, "fetched");
        Ok(true)
    }

    /// Whether a link is to be here: when the image is that it is about. Otherwise it comes with its tag.
    async fn wants_link(
        &self,
        register: &RegisterName,
        state: &TagState,
    ) -> Result<bool, SendError> {
        let RegisterName::Link(repo, link) = register else {
            return Ok(true);
        };
        let manifest = match link {
            Link::Referrer { subject, .. } => *subject,
            Link::Manifest(manifest) => *manifest,
            Link::Blob(_) | Link::Sparse(_) => return Ok(false),
        };
        let about = RegisterName::Link(repo.clone(), Link::Manifest(manifest));
        if let Some(own) = self.ring.register(&about).await? {
            // A manifest that was removed here may come back.
            return Ok(own.now.digest.is_some() || &about == register);
        }
        // An image without links is here when its manifest is.
        if state.now.digest.is_none() || &about == register {
            return Ok(false);
        }
        match self.origins.stat(&repo.namespace(), manifest).await {
            Ok(_) => Ok(true),
            Err(ApiError::NotFound) => Ok(false),
            Err(error) => Err(SendError::Failed(format!("here: {error}"))),
        }
    }

    /// Fetches what of an image is not here.
    async fn fetch_blobs(
        &self,
        source: &Source,
        ns: &Namespace,
        blobs: &BTreeSet<Digest>,
    ) -> Result<(), SendError> {
        let absent = absent(&self.origins, ns, blobs).await?;
        let name = source.remote.name();
        let fetching = absent.into_iter();
        let fetching = fetching.map(|digest| self.blobs.send(name, ns, digest));
        let fetching: Vec<_> = fetching.collect();
        let fetching = stream::iter(fetching).buffer_unordered(BLOBS);
        fetching.try_collect().await
    }
}

/// Why a register was not taken here.
pub(super) fn refused(error: IndexError) -> SendError {
    match error.is_conflict() {
        true => SendError::Refused(error.to_string()),
        false => SendError::Failed(format!("here: {error}")),
    }
}
