//! Metainfo out of the origins, for all hosts that ask: each blob is followed once.
//!
//! An origin that takes a blob in says how far it is; hosts ask again and again, and each answer
//! waits until there is more to say. The more hosts wait, the longer each answer is held, so that
//! what a tracker has to do stays bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kraken_net::http::ApiError;
use kraken_net::origin::OriginCluster;
use kraken_net::trace_span;
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::{Digest, MetaInfo, Namespace};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{Instrument as _, Span};

use super::service::lock;
use crate::tasks::Tasks;

/// The memory for whole metainfo, in bytes of states.
const CACHE_BYTES: usize = 64 << 20;
/// The longest that an answer waits for more states.
const LONG_POLL: Duration = Duration::from_secs(10);
/// The least that an answer is held: states that come close together travel together.
const HOLD: Duration = Duration::from_millis(20);
/// How much longer for each host that waits: 10,000 hosts ask 10,000 times a second in all.
const HOLD_PER_HOST: Duration = Duration::from_micros(100);
/// How long a follower goes on without a word from any origin.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of the blobs that hosts ask for.
pub(super) struct MetaInfos {
    origins: OriginCluster,
    tasks: Tasks,
    state: Mutex<State>,
    /// Hosts whose answers wait.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Whole metainfo never changes: it stays until there is no room.
    whole: HashMap<Digest, MetaInfo>,
    bytes: usize,
    /// The blobs that origins are asked about, until they have a whole metainfo or none.
    followed: HashMap<Digest, watch::Receiver<Followed>>,
}

/// What the origins have said so far.
type Followed = Option<Result<MetaInfo, ApiError>>;

impl MetaInfos {
    pub(super) fn new(origins: OriginCluster, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            origins,
            tasks,
            state: Mutex::default(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// The whole metainfo, as soon as an origin has it.
    pub(super) async fn whole(
        self: &Arc<Self>,
        namespace: Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        let mut followed = match self.look(namespace, digest) {
            Ok(whole) => return Ok(whole),
            Err(followed) => followed,
        };
        answer(
            followed
                .wait_for(|said| is_enough(said, Some(u32::MAX)))
                .await,
        )
    }

    /// As much as is known; with `after`, more than so many states if they come in time.
    pub(super) async fn open(
        self: &Arc<Self>,
        namespace: Namespace,
        digest: Digest,
        after: Option<u32>,
    ) -> Result<MetaInfo, ApiError> {
        let mut followed = match self.look(namespace, digest) {
            Ok(whole) => return Ok(whole),
            Err(followed) => followed,
        };
        let waiting = Waiting::begin(&self.waiting);
        let until = Instant::now() + LONG_POLL;
        let enough = followed.wait_for(|said| is_enough(said, after));
        if timeout_at(until, enough).await.is_err() {
            // Nothing more came; the first answer is waited for however long it takes.
            return answer(followed.wait_for(Option::is_some).await);
        }
        let open = |said: &Followed| matches!(said, Some(Ok(meta)) if !meta.is_whole());
        if after.is_some() {
            // The end is told at once.
            let held = sleep_until(waiting.since + waiting.hold());
            tokio::select! {
                () = held => {}
                _ = followed.wait_for(|said| !open(said)) => {}
            }
        }
        answer(followed.wait_for(Option::is_some).await)
    }

    /// The length of a blob that hosts asked for lately, as far as it is known.
    pub(super) fn length(&self, digest: &Digest) -> Option<u64> {
        lock(&self.state).whole.get(digest).map(MetaInfo::length)
    }

    /// The whole metainfo, or what follows it.
    fn look(
        self: &Arc<Self>,
        namespace: Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, watch::Receiver<Followed>> {
        let mut state = lock(&self.state);
        if let Some(meta) = state.whole.get(&digest) {
            return Ok(meta.clone());
        }
        let followed = state.followed.entry(digest).or_insert_with(|| {
            let (said, followed) = watch::channel(None);
            // The first answer is of the trace of whoever asks first.
            let first = trace_span!("metainfo from an origin", kraken.digest = %digest);
            let following = self.clone().follow(namespace, digest, said, first);
            self.tasks.spawn(following);
            followed
        });
        Err(followed.clone())
    }

    async fn follow(
        self: Arc<Self>,
        namespace: Namespace,
        digest: Digest,
        said: watch::Sender<Followed>,
        first: Span,
    ) {
        let end = self.follow_to_end(&namespace, digest, &said, first).await;
        {
            let mut state = lock(&self.state);
            state.followed.remove(&digest);
            if let Ok(meta) = &end {
                state.keep(meta);
            }
        }
        said.send_replace(Some(end));
    }

    async fn follow_to_end(
        &self,
        namespace: &Namespace,
        digest: Digest,
        said: &watch::Sender<Followed>,
        mut span: Span,
    ) -> Result<MetaInfo, ApiError> {
        let mut backoff = Backoff::new(HOLD, Duration::from_secs(2), Jitter::Equal);
        let mut rng = Rng::seeded(0);
        let (mut known, mut heard) = (None::<MetaInfo>, Instant::now());
        // After an error everything is asked for anew: the next origin may know other states.
        let mut ask = None;
        loop {
            let asked = self.origins.open_metainfo(namespace, digest, ask.as_ref());
            let span = std::mem::replace(&mut span, Span::none());
            match asked.instrument(span).await {
                Ok(meta) if meta.is_whole() => return Ok(meta),
                Ok(meta) => {
                    let more = known.as_ref().is_none_or(|known| !known.continues(&meta));
                    if more {
                        (known, heard) = (Some(meta.clone()), Instant::now());
                        said.send_replace(Some(Ok(meta)));
                        backoff.reset();
                    }
                    ask = known.clone();
                    sleep(HOLD).await;
                }
                // What the first answer says is the answer.
                Err(error) if known.is_none() || !error.is_retryable() => return Err(error),
                Err(error) if heard.elapsed() > PATIENCE => return Err(error),
                Err(error) => {
                    tracing::debug!(%digest, %error, "a blob that comes in is lost from sight");
                    ask = None;
                    sleep(backoff.delay(&mut rng)).await;
                }
            }
        }
    }
}

impl State {
    fn keep(&mut self, meta: &MetaInfo) {
        let size = |meta: &MetaInfo| 256 + 32 * meta.piece_count() as usize;
        self.bytes += size(meta);
        if self.bytes > CACHE_BYTES {
            // Asking anew costs the origins one small request per blob.
            self.whole.clear();
            self.bytes = size(meta);
        }
        self.whole.insert(meta.digest(), meta.clone());
    }
}

/// Whether what has been said answers somebody who knows `after` states.
fn is_enough(said: &Followed, after: Option<u32>) -> bool {
    match said {
        None => false,
        Some(Err(_)) => true,
        Some(Ok(meta)) => meta.is_whole() || after.is_none_or(|after| meta.known_states() > after),
    }
}

fn answer(
    said: Result<watch::Ref<'_, Followed>, watch::error::RecvError>,
) -> Result<MetaInfo, ApiError> {
    let said = said.ok().and_then(|said| said.clone());
    said.unwrap_or_else(|| Err(ApiError::Unavailable("the tracker stops".into())))
}

/// One host that waits.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    since: Instant,
}

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        Self { count, since }
    }

    fn hold(&self) -> Duration {
        let hosts = u32::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        HOLD + HOLD_PER_HOST.saturating_mul(hosts)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
