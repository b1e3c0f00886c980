//! Where images come from: a registry, or a cluster, each of whose build-indexes has a list of what this
//! cluster lacks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_core::net::http::HttpClient;
use kraken_proto::Timestamp;
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::tags::hours::{Allowed, Plan};
use kraken_proto::tags::outbox::{Outbox, Sent};
use tokio::time::Instant;

use super::gate::Gate;
use super::mirror::Mirror;
use super::offer::{AskWaiting, PAGE, Waiting, Waits};
use super::remote::Remote;
use super::rules::{SourceKind, SourceRule};
use super::way::Way;
use super::{READ, ROOM, SendError};
use crate::link::RegisterName;
use crate::tags::chance;
use crate::tags::ring::TagRing;

/// How often a build-index there is asked what waits.
const ASK: Duration = Duration::from_millis(500);
/// The waits while it does not answer.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where images come from.
#[derive(Clone)]
pub(super) enum Supply {
    Cluster(Arc<Source>),
    Registry(Arc<Mirror>),
}

/// A cluster that images come from.
pub(super) struct Source {
    pub(super) gate: Gate,
    pub(super) remote: Arc<Remote>,
    /// One list for each of its build-indexes.
    pub(super) lists: Vec<List>,
}

/// What waits at one of its build-indexes.
pub(super) struct List {
    /// Which of them it is.
    pub(super) at: usize,
    outbox: Mutex<Outbox>,
    /// By name, since when it waits there.
    since: Mutex<HashMap<String, u64>>,
    /// It lets nothing go now.
    is_held: AtomicBool,
    /// It is to be read from its beginning.
    is_stale: AtomicBool,
}

/// How far a list is read.
pub(super) struct Reading {
    after: Option<String>,
    mark: Option<String>,
    /// When it was read to its end.
    ended: Option<Instant>,
    asked: Option<Instant>,
    /// How long it is left alone.
    wait: Duration,
    away: Backoff,
    rng: Rng,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            after: None,
            mark: None,
            ended: None,
            asked: None,
            wait: ASK,
            away: Backoff::new(AWAY.0, AWAY.1, Jitter::Equal),
            rng: Rng::seeded(chance()),
        }
    }
}

impl Supply {
    /// Where it comes from, by its rule.
    pub(super) fn new(rule: SourceRule, own: &str, http: &HttpClient) -> Self {
        match rule.kind {
            SourceKind::Cluster(build_indexes) => {
                let remote = Remote::new((rule.name, build_indexes), own, http);
                Self::Cluster(Arc::new(Source::new(remote, rule.plan)))
            }
            SourceKind::Registry(mirror) => {
                let mirror = Mirror::new(rule.name, *mirror, rule.plan);
                Self::Registry(Arc::new(mirror))
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Cluster(source) => source.remote.name(),
            Self::Registry(mirror) => mirror.there.name(),
        }
    }

    pub(super) fn gate(&self) -> &Gate {
        match self {
            Self::Cluster(source) => &source.gate,
            Self::Registry(mirror) => &mirror.gate,
        }
    }

    /// The way of a blob from there.
    pub(super) fn way(&self) -> Way {
        match self {
            Self::Cluster(source) => Way::Source(source.remote.clone()),
            Self::Registry(mirror) => Way::Mirror(mirror.clone()),
        }
    }

    /// Lets come what may come now.
    pub(super) fn regulate(&self, now: Timestamp) {
        match self {
            Self::Cluster(source) => source.regulate(now),
            Self::Registry(mirror) => mirror.regulate(now),
        };
    }

    /// All that waits is due.
    pub(super) fn hurry(&self, now: Timestamp) {
        match self {
            Self::Cluster(source) => source.hurry(now),
            Self::Registry(mirror) => mirror.hurry(now),
        }
    }
}

impl Source {
    pub(super) fn new(remote: Remote, plan: Plan) -> Self {
        let lists = (0..remote.hosts()).map(|at| List {
            at,
            outbox: Mutex::new(Outbox::new(ROOM, chance())),
            since: Mutex::default(),
            is_held: AtomicBool::new(false),
            is_stale: AtomicBool::new(true),
        });
        Self {
            lists: lists.collect(),
            gate: Gate::new(Some(remote.traffic.clone()), plan),
            remote: Arc::new(remote),
        }
    }

    /// Lets come what may come now. Whether that is anything: one that holds it back there does so for all.
    pub(super) fn regulate(&self, now: Timestamp) -> bool {
        let is_held = |list: &List| list.is_held.load(Ordering::Relaxed);
        let (is_any, is_new) = self.gate.regulate(self.lists.iter().any(is_held));
        if is_new {
            self.hurry(now);
        }
        is_any
    }

    /// All that waits is due.
    pub(super) fn hurry(&self, now: Timestamp) {
        for list in &self.lists {
            list.outbox().hurry(now);
            list.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// Asks what waits, when it is time to, as far as there is room.
    ///
    /// # Errors
    /// It does not say.
    pub(super) async fn read(
        &self,
        list: &List,
        reading: &mut Reading,
        (now, ring): (Timestamp, &TagRing),
    ) -> Result<(), SendError> {
        let is_early = reading.asked.is_some_and(|at| at.elapsed() < reading.wait);
        if is_early || self.gate.allowed() == Allowed::Nothing {
            return Ok(());
        }
        reading.asked = Some(Instant::now());
        let said = self.read_on(list, reading, (now, ring)).await;
        reading.wait = match &said {
            Ok(()) => {
                reading.away.reset();
                ASK
            }
            Err(_) => {
                // One that says nothing does not hold the others back.
                list.is_held.store(false, Ordering::Relaxed);
                reading.away.delay(&mut reading.rng)
            }
        };
        said
    }

    async fn read_on(
        &self,
        list: &List,
        reading: &mut Reading,
        (now, ring): (Timestamp, &TagRing),
    ) -> Result<(), SendError> {
        let is_old = reading.ended.is_none_or(|at| at.elapsed() >= READ);
        if reading.after.is_none() && (list.is_stale.swap(false, Ordering::Relaxed) || is_old) {
            reading.mark = None;
        }
        while list.outbox().room() > 0 {
            let asked = AskWaiting {
                after: reading.after.clone(),
                mark: reading.mark.clone(),
            };
            let said: Waiting = self.remote.ask_one(list.at, "waiting", &asked).await?;
            self.remote.is_other(Some(&said.cluster))?;
            list.is_held.store(said.is_held, Ordering::Relaxed);
            if said.is_held || said.is_unchanged {
                return Ok(());
            }
            if reading.after.is_none() {
                reading.mark = said.mark;
            }
            let count = said.names.len();
            let taken = list.take(said.names, reading, (now, ring));
            // One that does not go on would be asked for ever.
            if taken == count && (count < PAGE || reading.after <= asked.after) {
                reading.after = None;
                reading.ended = Some(Instant::now());
                return Ok(());
            }
        }
        Ok(())
    }
}

impl List {
    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first to have waited, in milliseconds since 1970.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.since().values().min().copied()
    }

    /// Takes as many names as there is room for; how many. It is read on behind the last.
    fn take(
        &self,
        names: Vec<Waits>,
        reading: &mut Reading,
        (now, ring): (Timestamp, &TagRing),
    ) -> usize {
        let mut taken = 0;
        for Waits {
            name,
            since_ms,
            rank,
        } in names
        {
            let register = name.parse::<RegisterName>();
            let own = register.map_or(0, |it| ring.rank(it.repo().as_str()));
            if !self.outbox().add(now, &name, rank.saturating_add(own)) {
                break;
            }
            self.since().entry(name.clone()).or_insert(since_ms);
            reading.after = Some(name);
            taken += 1;
        }
        taken
    }

    /// How an attempt has ended; it waits there on when it is not the same any more.
    pub(super) fn ended(&self, now: Timestamp, name: &str, (sent, is_same): (Sent, bool)) {
        let mut outbox = self.outbox();
        let before = outbox.len();
        outbox.ended(now, name, sent);
        // It was done, or others wait for its place.
        if outbox.len() < before {
            self.since().remove(name);
        }
        if !is_same {
            self.is_stale.store(true, Ordering::Relaxed);
        }
    }
}
