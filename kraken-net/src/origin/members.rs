//! The origins of a ring, as one of them or a client of theirs sees them: who they are, who answers, and
//! whose share is whose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use kraken_proto::ring::health::{HealthConfig, Members as Health};
use kraken_proto::{Digest, Member, Ring, Timestamp, Zone};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::client::OriginClient;
use crate::http::{ApiError, BaseUrl, HttpClient};

/// How long one that counts as down may take to answer: it may just have come back.
const LAST_CHANCE: Duration = Duration::from_secs(5);
/// How often each of the others is asked whether it is there, and how long it may take to say so.
const PROBE: Duration = Duration::from_secs(1);

/// One member of the origins' ring.
#[derive(Debug, Clone)]
pub struct RingMember {
    /// The name that places its share; stays when it moves.
    pub name: String,
    /// Where its HTTP face is.
    pub url: BaseUrl,
    /// Its share relative to the others; 1.0 for equals.
    pub weight: f64,
    /// Where it stands: a blob's copies are in different zones as far as there are any.
    pub zone: Option<Zone>,
}

impl RingMember {
    /// A member of weight 1 that stands nowhere in particular.
    pub fn new(name: impl Into<String>, url: BaseUrl) -> Self {
        Self {
            name: name.into(),
            url,
            weight: 1.0,
            zone: None,
        }
    }

    fn member(&self) -> Member {
        Member {
            name: self.name.clone(),
            weight: self.weight,
            zone: self.zone.clone(),
        }
    }
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
    /// Counts who went up or down, came or left.
    changed: watch::Sender<u64>,
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
        let all: Vec<_> = match members {
            // Without a ring an origin stands alone.
            [] => name.map(Member::new).into_iter().collect(),
            members => members.iter().map(RingMember::member).collect(),
        };
        let others = members.iter().filter(|member| Some(&*member.name) != name);
        let client = |member: &RingMember| {
            let client = OriginClient::new(member.url.clone(), http?.clone());
            Some((member.name.clone(), client))
        };
        let url = |member: &RingMember| (member.name.clone(), member.url.to_string());
        Self {
            ring: Ring::new(all),
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
            changed: watch::Sender::new(0),
        }
    }

    /// From now on these are the members.
    pub fn set(&self, members: &[RingMember]) {
        let table = Table::new(self.name.as_deref(), members, self.http.as_ref());
        self.health().set(self.now(), table.names());
        let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(table);
        drop(current);
        self.has_changed();
    }

    /// Whether this one hands its share over.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Hands its share over, or takes it back.
    pub fn leave(&self, is_leaving: bool) {
        self.is_leaving.store(is_leaving, Ordering::Relaxed);
        self.has_changed();
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

    /// All members in a blob's order, those that do not answer or leave behind the others.
    pub fn order(&self, digest: Digest) -> Vec<String> {
        let table = self.table();
        let ranked = table.ring.order(&digest, self.replicas);
        let health = self.health();
        let names = ranked.into_iter().map(|member| member.name.clone());
        let is_there = |name: &String| match self.is_me(name) {
            true => !self.is_leaving(),
            false => health.is_up_to_stay(name),
        };
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

    /// Who owns what, as somebody sees it who counts these members.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] when they are many more than there can be.
    pub fn shares_of(&self, names: &[String]) -> Result<Shares, ApiError> {
        let table = self.table();
        // A list may change here later than there.
        if names.len() > 2 * table.ring.members().len() + 16 {
            let what = format!("{} members are more than the ring has", names.len());
            return Err(ApiError::BadRequest(what));
        }
        let known = |name: &String| {
            let mut members = table.ring.members().iter();
            members.find(|member| member.name == *name).cloned()
        };
        let members = names
            .iter()
            .map(|name| known(name).unwrap_or_else(|| Member::new(name)));
        Ok(Shares {
            ring: Ring::new(members),
            replicas: self.replicas,
        })
    }

    /// The others that answer.
    pub fn others(&self) -> Vec<(String, OriginClient)> {
        let table = self.table();
        let health = self.health();
        let up = table.clients.iter().filter(|(name, _)| health.is_up(name));
        up.map(|(name, client)| (name.clone(), client.clone()))
            .collect()
    }

    /// The others that do not answer.
    pub fn away(&self) -> Vec<String> {
        let table = self.table();
        let health = self.health();
        let names = table.clients.keys();
        names.filter(|name| !health.is_up(name)).cloned().collect()
    }

    /// Whether so many members are there, or were a moment ago, that a blob can have copies at a majority of its
    /// owners.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] with those that have been away for so long that nobody waits for them.
    pub fn check_quorum(&self) -> Result<(), ApiError> {
        let (all, quorum) = (self.count(), self.replicas() / 2 + 1);
        let lost = self.away();
        let lost: Vec<_> = lost.into_iter().filter(|name| !self.is_in(name)).collect();
        if all - lost.len().min(all) >= quorum {
            return Ok(());
        }
        let lost = lost.join(", ");
        Err(ApiError::Unavailable(format!(
            "a blob needs {quorum} of {all} origins to be kept, and these do not answer: {lost}"
        )))
    }

    /// The others that can take this one's share, now or when they answer again: those that do not hand over theirs.
    pub fn heirs(&self) -> Vec<String> {
        let table = self.table();
        let health = self.health();
        let names = table.clients.keys();
        names
            .filter(|name| !health.is_leaving(name))
            .cloned()
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

    /// For [`Members::changes`].
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until the ring changes, but not after `most`. A change since the last call counts.
    pub async fn changes(&self, seen: &mut watch::Receiver<u64>, most: Duration) {
        let now = self.now();
        let next = self.health().next_change(now);
        let next = next.map_or(most, |at| at.since(now).min(most));
        let _ = tokio::time::timeout(next, seen.changed()).await;
    }

    fn has_changed(&self) {
        self.changed.send_modify(|count| *count += 1);
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
            self.has_changed();
        }
    }

    /// Waits until a member counts as down.
    pub async fn until_down(&self, name: &str) {
        let mut changed = self.changed.subscribe();
        while self.is_up(name) && changed.changed().await.is_ok() {}
    }

    /// What a member answers, unless it turns out not to be there any more. One that counts as down
    /// already is given little time.
    ///
    /// # Errors
    /// Of `answer`; [`ApiError::Unavailable`].
    pub async fn while_up<T>(
        &self,
        name: &str,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let gone = || ApiError::Unavailable(format!("origin {name} does not answer any more"));
        if !self.is_up(name) {
            let answer = tokio::time::timeout(LAST_CHANCE, answer).await;
            return answer.unwrap_or_else(|_| Err(gone()));
        }
        tokio::select! {
            answer = answer => answer,
            () = self.until_down(name) => Err(gone()),
        }
    }

    /// Whether another member answers, and does not leave.
    pub fn is_up_to_stay(&self, name: &str) -> bool {
        self.health().is_up_to_stay(name)
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
