//! The store of an agent or an origin over HTTP: look, verify, pin, make room.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use kraken_core::net::http::ApiError;
use kraken_core::proto::cache::ledger::{Kept, Lifetimes};
use kraken_core::storage::{Goal, PieceStore as _, StoreError, Verdict};
use kraken_core::{Agent, Digest, Origin, Swept};
use serde::{Deserialize, Serialize};

use super::{Age, Disks};

/// What removes blobs, and knows which are needed.
pub(crate) trait Sweeps: Clone + Send + Sync + 'static {
    fn sweep(&self, goal: Goal) -> impl Future<Output = Result<Swept, StoreError>> + Send;
    fn rehearse(&self, goal: Goal) -> impl Future<Output = Result<Swept, StoreError>> + Send;
}

impl Sweeps for Agent {
    async fn sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
        Self::sweep(self, goal).await
    }
    async fn rehearse(&self, goal: Goal) -> Result<Swept, StoreError> {
        self.rehearse_sweep(goal).await
    }
}

impl Sweeps for Origin {
    async fn sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
        Self::sweep(self, goal).await
    }
    async fn rehearse(&self, goal: Goal) -> Result<Swept, StoreError> {
        self.rehearse_sweep(goal).await
    }
}

/// The most blobs in one answer.
const MOST: usize = 1000;

/// The answer of `GET /x/store`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobList {
    /// What the store takes, in bytes.
    pub bytes: u64,
    /// How many blobs there are, whole and partial.
    pub count: u64,
    /// What it may take, in bytes; none when there is no limit.
    pub limit: Option<u64>,
    /// Some of the blobs, by their digests.
    pub blobs: Vec<BlobInfo>,
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// The blob.
    pub digest: Digest,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// When it came, in milliseconds since 1970.
    pub born_ms: u64,
    /// When it was used last.
    pub used_ms: u64,
    /// Whether it stays whatever happens.
    pub pinned: bool,
}

impl From<Kept> for BlobInfo {
    fn from(kept: Kept) -> Self {
        Self {
            digest: kept.digest,
            bytes: kept.bytes,
            born_ms: kept.born_ms,
            used_ms: kept.used_ms,
            pinned: kept.is_pinned,
        }
    }
}

/// The answer of what removes blobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// How many went, or would.
    pub deleted: u64,
    /// What they took, in bytes.
    pub bytes: u64,
    /// How many could not be removed.
    pub errors: u64,
    /// The first thousand of them.
    pub blobs: Vec<BlobInfo>,
}

impl SweepReport {
    fn add(&mut self, swept: Swept) {
        self.deleted += swept.blobs.len() as u64;
        self.bytes += swept.bytes();
        self.errors += swept.errors;
        let room = MOST - self.blobs.len();
        self.blobs
            .extend(swept.blobs.into_iter().take(room).map(BlobInfo::from));
    }
}

/// The answer of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// What was found.
    pub verdict: VerdictInfo,
}

/// What a verification found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictInfo {
    /// The store does not have the whole blob.
    Absent,
    /// Its bytes are right.
    Right,
    /// Its bytes were wrong; it was set aside and comes anew.
    Damaged,
}

/// Where a blob's file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobFile {
    /// The file, on the process's host.
    pub path: String,
}

struct Store<S> {
    disks: Disks,
    sweeps: S,
}

impl<S: Clone> Clone for Store<S> {
    fn clone(&self) -> Self {
        Self {
            disks: self.disks.clone(),
            sweeps: self.sweeps.clone(),
        }
    }
}

/// | method and path | answer |
/// |---|---|
/// | GET `/x/store?after=DIGEST&max=N` | a [`BlobList`] |
/// | GET `/x/store/blobs/{digest}` | a [`BlobFile`], or 404 when the blob is not whole here |
/// | POST `/x/store/blobs/{digest}/verify` | [`Verified`] |
/// | PUT, DELETE `/x/store/pins/{digest}` | 204 |
/// | POST `/x/store/gc?percent=P&idle=AGE&age=AGE&dry_run=true` | a [`SweepReport`] |
/// | POST `/forcecleanup?ttl_hr=N`, `/forcecleanup/v2?target_util_percent=P` | a [`SweepReport`] |
pub(crate) fn with_store<S: Sweeps>(router: Router, disks: Disks, sweeps: S) -> Router {
    let store = Router::new()
        .route("/x/store", get(list::<S>))
        .route("/x/store/blobs/{digest}", get(file::<S>))
        .route("/x/store/blobs/{digest}/verify", post(verify::<S>))
        .route("/x/store/pins/{digest}", put(pin::<S>).delete(unpin::<S>))
        .route("/x/store/gc", post(collect::<S>))
        .route("/forcecleanup", post(clean_old::<S>))
        .route("/forcecleanup/v2", post(clean_to::<S>))
        .with_state(Store { disks, sweeps });
    router.merge(store)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<Digest>,
    max: Option<usize>,
}

async fn list<S: Sweeps>(
    State(store): State<Store<S>>,
    Query(page): Query<Page>,
) -> Result<Json<BlobList>, ApiError> {
    let usage = store.disks.usage();
    let usage = usage.ok_or_else(|| ApiError::Internal("the store does not count".into()))?;
    let max = page.max.unwrap_or(MOST).min(MOST);
    let blobs = store.disks.page(page.after, max);
    Ok(Json(BlobList {
        bytes: usage.bytes,
        count: usage.blobs,
        limit: usage.ceiling.map(|ceiling| ceiling.most()),
        blobs: blobs.into_iter().map(BlobInfo::from).collect(),
    }))
}

async fn file<S: Sweeps>(
    State(store): State<Store<S>>,
    Path(digest): Path<Digest>,
) -> Result<Json<BlobFile>, ApiError> {
    let path = store.disks.path(digest).await.map_err(failed)?;
    let path = path.ok_or(ApiError::NotFound)?;
    let path = std::path::absolute(path).map_err(|error| ApiError::Internal(error.to_string()))?;
    let no_text = |_| ApiError::Internal("the store's directory has a name that is no text".into());
    let path = path.into_os_string().into_string().map_err(no_text)?;
    Ok(Json(BlobFile { path }))
}

async fn verify<S: Sweeps>(
    State(store): State<Store<S>>,
    Path(digest): Path<Digest>,
) -> Result<Json<Verified>, ApiError> {
    let verdict = match store.disks.verify(digest).await.map_err(failed)? {
        Verdict::Absent => VerdictInfo::Absent,
        Verdict::Right => VerdictInfo::Right,
        Verdict::Damaged => VerdictInfo::Damaged,
    };
    Ok(Json(Verified { verdict }))
}

async fn pin<S: Sweeps>(
    State(store): State<Store<S>>,
    Path(digest): Path<Digest>,
) -> Result<StatusCode, ApiError> {
    store.disks.pin(digest, true).await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpin<S: Sweeps>(
    State(store): State<Store<S>>,
    Path(digest): Path<Digest>,
) -> Result<StatusCode, ApiError> {
    store.disks.pin(digest, false).await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is to go: what is unused or old, and then what is above a part of the limit. Nothing of it
/// means the marks.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Collect {
    percent: Option<u8>,
    idle: Option<Age>,
    age: Option<Age>,
    #[serde(default)]
    dry_run: bool,
}

async fn collect<S: Sweeps>(
    State(store): State<Store<S>>,
    Query(asked): Query<Collect>,
) -> Result<Json<SweepReport>, ApiError> {
    let lifetimes = Lifetimes {
        to_live: asked.age.map(|age| age.0),
        to_idle: asked.idle.map(|idle| idle.0),
    };
    let mut goals = Vec::new();
    if lifetimes.is_bounded() {
        goals.push(over(lifetimes)?);
    }
    match asked.percent {
        Some(percent) => goals.push(store.part(percent)?),
        None if goals.is_empty() => goals.push(Goal::Marks),
        None => {}
    }
    store.run(&goals, asked.dry_run).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hours {
    ttl_hr: u32,
}

/// As in the API that operators know: what came more than so many hours ago goes.
async fn clean_old<S: Sweeps>(
    State(store): State<Store<S>>,
    Query(Hours { ttl_hr }): Query<Hours>,
) -> Result<Json<SweepReport>, ApiError> {
    let lifetimes = Lifetimes {
        to_live: Some(Duration::from_secs(u64::from(ttl_hr) * 3600)),
        to_idle: None,
    };
    store.run(&[over(lifetimes)?], false).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    target_util_percent: u8,
}

async fn clean_to<S: Sweeps>(
    State(store): State<Store<S>>,
    Query(target): Query<Target>,
) -> Result<Json<SweepReport>, ApiError> {
    let goal = store.part(target.target_util_percent)?;
    store.run(&[goal], false).await
}

impl<S: Sweeps> Store<S> {
    fn part(&self, percent: u8) -> Result<Goal, ApiError> {
        let is_limited = self
            .disks
            .usage()
            .is_some_and(|usage| usage.ceiling.is_some());
        match percent {
            0..=100 if is_limited => Ok(Goal::Percent(percent)),
            0..=100 => Err(ApiError::BadRequest(
                "a part of the limit needs one: set store_limit".into(),
            )),
            _ => Err(ApiError::BadRequest(format!(
                "{percent} % is more than all"
            ))),
        }
    }

    async fn run(&self, goals: &[Goal], dry_run: bool) -> Result<Json<SweepReport>, ApiError> {
        let mut report = SweepReport::default();
        for goal in goals {
            let swept = match dry_run {
                true => self.sweeps.rehearse(*goal).await,
                false => self.sweeps.sweep(*goal).await,
            };
            report.add(swept.map_err(failed)?);
        }
        Ok(Json(report))
    }
}

fn over(lifetimes: Lifetimes) -> Result<Goal, ApiError> {
    let now = std::time::UNIX_EPOCH.elapsed();
    let now = now.map_err(|_| ApiError::Internal("the clock is before 1970".into()))?;
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Ok(Goal::Lifetimes { lifetimes, now_ms })
}

fn failed(error: StoreError) -> ApiError {
    ApiError::Unavailable(error.to_string())
}
