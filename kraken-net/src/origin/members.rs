//! The origins of a ring, as one of them or a client of theirs sees them: who they are, who answers, and
//! whose share is whose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use kraken_proto::ring::health::{HealthConfig, Members as Health};
use kraken_proto::{Digest, Member, Ring, Timestamp};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::client::OriginClient;
use crate::http::{ApiError, BaseUrl, HttpClient};

/// How often each of the others is asked whether it is there, and how long it may take to say so.
const PROBE: Duration = Duration::from_secs(1);

/// One member of the origins' ring.
#[derive(Debug, Clone)]
pub struct RingMember {
    /// The name that places its share; stays when it moves.
    pub name: String,
    /// Where its HTTP face is.
    pub url: BaseUrl,
}

/// Who the members are, and how.
pub struct Members {
    /// This one, if it is one of them.
    name: Option<String>,
    http: Option<HttpClient>,
    replicas: usize,
    started: Instant,
    table: RwLock<Arc<Table>>,
    health: Mutex<Health>,
    /// This one hands its share over and leaves.
    is_leaving: AtomicBool,
    /// Somebody went up or down, came or left.
    changed: Notify,
}

/// The members of one configuration.
struct Table {
    ring: Ring,
    /// The base URLs of all, this one included.
    urls: BTreeMap<String, String>,
    /// The others.
    clients: BTreeMap<String, OriginClient>,
}

impl Table {
    fn new(name: Option<&str>, members: &[RingMember], http: Option<&HttpClient>) -> Self {
        let names: Vec<_> = match members {
            // Without a ring an origin stands alone.
            [] => name.map(str::to_string).into_iter().collect(),
            members => members.iter().map(|member| member.name.clone()).collect(),
        };
        let others = members.iter().filter(|member| Some(&*member.name) != name);
        let client = |member: &RingMember| {
            let client = OriginClient::new(member.url.clone(), http?.clone());
            Some((member.name.clone(), client))
        };
        let url = |member: &RingMember| (member.name.clone(), member.url.to_string());
        Self {
            ring: Ring::new(names.into_iter().map(Member::new)),
            urls: members.iter().map(url).collect(),
            clients: others.filter_map(client).collect(),
        }
    }

    fn names(&self) -> impl Iterator<Item = String> {
        self.ring.members().iter().map(|member| member.name.clone())
    }
}

impl Members {
    /// These members, among them the one named `name` if this is an origin; each blob belongs to
    /// `replicas` of them. An origin without members stands alone.
    pub fn new(
        name: Option<&str>,
        members: &[RingMember],
        http: Option<HttpClient>,
        (replicas, health): (usize, HealthConfig),
    ) -> Self {
        let table = Table::new(name, members, http.as_ref());
        Self {
            name: name.map(str::to_string),
            replicas,
            started: Instant::now(),
            health: Mutex::new(Health::new(table.names(), health)),
            table: RwLock::new(Arc::new(table)),
            http,
            is_leaving: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// From now on these are the members.
    pub fn set(&self, members: &[RingMember]) {
        let table = Table::new(self.name.as_deref(), members, self.http.as_ref());
        self.health().set(self.now(), table.names());
        let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(table);
        drop(current);
        self.changed.notify_waiters();
    }

    /// Whether this one hands its share over.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Hands its share over, or takes it back.
    pub fn leave(&self, is_leaving: bool) {
        self.is_leaving.store(is_leaving, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// The names of all members.
    pub fn all(&self) -> Vec<String> {
        self.table().names().collect()
    }

    /// How many members there are to be.
    pub fn count(&self) -> usize {
        self.table().ring.members().len()
    }

    /// How many copies a blob is to have.
    pub fn replicas(&self) -> usize {
        self.replicas.min(self.count())
    }

    /// The client of another member.
    pub fn client(&self, name: &str) -> Option<OriginClient> {
        self.table().clients.get(name).cloned()
    }

    /// The base URL of a member.
    pub fn url(&self, name: &str) -> Option<String> {
        self.table().urls.get(name).cloned()
    }

    /// The owners of a blob, the first one in front: of those in the ring.
    pub fn owners(&self, digest: Digest) -> Vec<String> {
        self.ring().owners(digest)
    }

    /// All members in a blob's order, those that do not answer behind the others.
    pub fn order(&self, digest: Digest) -> Vec<String> {
        let table = self.table();
        let ranked = table.ring.ranked(&digest);
        let health = self.health();
        let names = ranked.into_iter().map(|member| member.name.clone());
        let is_there = |name: &String| self.is_me(name) || health.is_up(name);
        let (mut there, away): (Vec<_>, Vec<_>) = names.partition(is_there);
        there.extend(away);
        there
    }

    /// Who counts at this moment.
    pub fn ring(&self) -> Shares {
        let table = self.table();
        let now = self.now();
        let health = self.health();
        let is_in = |member: &&Member| match self.is_me(&member.name) {
            true => !self.is_leaving(),
            false => health.is_in(now, &member.name),
        };
        let members = table.ring.members().iter().filter(is_in).cloned();
        Shares {
            ring: Ring::new(members),
            replicas: self.replicas,
        }
    }

    /// The others that answer.
    pub fn others(&self) -> Vec<(String, OriginClient)> {
        let table = self.table();
        let health = self.health();
        let up = table.clients.iter().filter(|(name, _)| health.is_up(name));
        up.map(|(name, client)| (name.clone(), client.clone()))
            .collect()
    }

    /// Whether a member has its share.
    pub fn is_in(&self, name: &str) -> bool {
        self.health().is_in(self.now(), name)
    }

    /// Whether all see the same ring.
    pub fn are_settled(&self) -> bool {
        let now = self.now();
        // This one does not ask itself.
        let mut health = self.health().clone();
        health.set(now, self.table().clients.keys().cloned());
        health.are_settled(now)
    }

    /// Waits until the ring changes, but not after `most`.
    pub async fn changes(&self, most: Duration) {
        let now = self.now();
        let next = self.health().next_change(now);
        let next = next.map_or(most, |at| at.since(now).min(most));
        let _ = tokio::time::timeout(next, self.changed.notified()).await;
    }

    /// Asks the others for ever whether they are there.
    pub async fn probe(&self) {
        loop {
            let next = Instant::now() + PROBE;
            let table = self.table();
            let asks = table
                .clients
                .iter()
                .map(|(name, client)| async move { (name, client.is_leaving(PROBE).await) });
            for (name, answer) in join_all(asks).await {
                self.heard(name, answer.map_err(|error| error.to_string()));
            }
            sleep_until(next).await;
        }
    }

    /// A member answered something, or did not: a signal as good as a probe's.
    pub fn met<T>(&self, name: &str, answer: &Result<T, ApiError>) {
        let is_up = !matches!(answer, Err(ApiError::Unavailable(_)));
        if self.health().heard(self.now(), name, is_up) {
            self.changed.notify_waiters();
        }
    }

    fn heard(&self, name: &str, answer: Result<bool, String>) {
        let now = self.now();
        let mut health = self.health();
        let is_up = answer.is_ok();
        let mut is_news = health.heard(now, name, is_up);
        if is_news {
            match &answer {
                Ok(_) => tracing::info!(origin = name, "an origin is there again"),
                Err(error) => tracing::warn!(origin = name, error, "an origin does not answer"),
            }
        }
        if let Ok(is_leaving) = answer
            && health.leaves(now, name, is_leaving)
        {
            tracing::info!(origin = name, is_leaving, "an origin hands over its share");
            is_news = true;
        }
        drop(health);
        if is_news {
            self.changed.notify_waiters();
        }
    }

    /// Waits until a member counts as down.
    pub async fn until_down(&self, name: &str) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // What changes from here on is heard.
            changed.as_mut().enable();
            if !self.is_up(name) {
                return;
            }
            changed.await;
        }
    }

    /// Whether another member answers.
    pub fn is_up(&self, name: &str) -> bool {
        self.health().is_up(name)
    }

    fn is_me(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.started.elapsed()
    }

    fn table(&self) -> Arc<Table> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.clone()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who owns what, as somebody sees it.
#[derive(Debug, Clone)]
pub struct Shares {
    ring: Ring,
    replicas: usize,
}

impl Shares {
    /// As somebody sees it who knows these members.
    pub fn of(names: &[String], replicas: usize) -> Self {
        Self {
            ring: Ring::new(names.iter().map(Member::new)),
            replicas,
        }
    }

    /// Who has a share.
    pub fn names(&self) -> Vec<String> {
        self.ring
            .members()
            .iter()
            .map(|member| member.name.clone())
            .collect()
    }

    /// The owners of a blob, the first one in front.
    pub fn owners(&self, digest: Digest) -> Vec<String> {
        let owners = self.ring.owners(&digest, self.replicas);
        owners.into_iter().map(str::to_string).collect()
    }

    /// Whether a member owns a blob.
    pub fn owns(&self, name: &str, digest: Digest) -> bool {
        self.ring.owners(&digest, self.replicas).contains(&name)
    }

    /// Whether each of the two owns it.
    pub fn own(&self, (one, other): (&str, &str), digest: Digest) -> (bool, bool) {
        let owners = self.ring.owners(&digest, self.replicas);
        (owners.contains(&one), owners.contains(&other))
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members")
            .field("name", &self.name)
            .field("ring", &self.table().ring)
            .finish_non_exhaustive()
    }
}
