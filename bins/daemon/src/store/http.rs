//! The store of an agent or an origin over HTTP: look, verify, pin, make room.

use std::collections::HashSet;
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use kraken_core::net::http::{ApiError, Asked, Params};
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
    Asked(page): Asked<Page>,
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
    Params(digest): Params<Digest>,
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
    Params(digest): Params<Digest>,
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
    Params(digest): Params<Digest>,
) -> Result<StatusCode, ApiError> {
    store.disks.pin(digest, true).await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpin<S: Sweeps>(
    State(store): State<Store<S>>,
    Params(digest): Params<Digest>,
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
    Asked(asked): Asked<Collect>,
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
    Asked(Hours { ttl_hr }): Asked<Hours>,
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
    /// Known to scripts; what is pinned stays either way.
    #[serde(default, rename = "respect_eviction_ban")]
    _respect_eviction_ban: Option<bool>,
}

async fn clean_to<S: Sweeps>(
    State(store): State<Store<S>>,
    Asked(target): Asked<Target>,
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
        let (mut report, mut seen) = (SweepReport::default(), HashSet::new());
        for goal in goals {
            let swept = match dry_run {
                true => self.sweeps.rehearse(*goal).await,
                false => self.sweeps.sweep(*goal).await,
            };
            let mut swept = swept.map_err(failed)?;
            // What goes for its age does not go once more for the room.
            swept.blobs.retain(|kept| seen.insert(kept.digest));
            report.add(swept);
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use kraken_core::MetaInfo;
    use kraken_core::storage::{FsStore, UploadStore as _};
    use tower::ServiceExt as _;

    use super::*;
    use crate::store::{EvictionConfig, StoreLimit};

    /// Writes down what it was asked for.
    #[derive(Clone, Default)]
    struct Asks(Arc<Mutex<Vec<(bool, Goal)>>>);

    impl Sweeps for Asks {
        async fn sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
            self.0.lock().unwrap().push((true, goal));
            Ok(Swept::default())
        }
        async fn rehearse(&self, goal: Goal) -> Result<Swept, StoreError> {
            self.0.lock().unwrap().push((false, goal));
            Ok(Swept::default())
        }
    }

    struct Lab {
        disks: Disks,
        asks: Asks,
        router: Router,
    }

    impl Lab {
        async fn new(dir: &Path, limit: Option<StoreLimit>) -> Self {
            let eviction = EvictionConfig::default();
            let disks = crate::store::open(dir.join("store"), &[], limit, &eviction)
                .await
                .unwrap();
            let asks = Asks::default();
            let router = with_store(Router::new(), disks.clone(), asks.clone());
            Self {
                disks,
                asks,
                router,
            }
        }

        async fn call(&self, method: &str, path: &str) -> (StatusCode, String) {
            let request = Request::builder().method(method).uri(path);
            let request = request.body(Body::empty()).unwrap();
            let answer = self.router.clone().oneshot(request).await.unwrap();
            let status = answer.status();
            let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        }

        async fn push(&self, bytes: &'static [u8]) -> Digest {
            let digest = MetaInfo::of(bytes).digest();
            let id = self.disks.upload_start().await.unwrap();
            self.disks
                .upload_append(&id, 0, bytes.into())
                .await
                .unwrap();
            self.disks.upload_commit(&id, digest).await.unwrap();
            digest
        }
    }

    #[tokio::test]
    async fn blobs_are_listed_pinned_verified_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::new(dir.path(), None).await;
        let digest = lab.push(b"some bytes").await;
        let pin = format!("/x/store/pins/{digest}");
        assert_eq!(lab.call("PUT", &pin).await.0, StatusCode::NO_CONTENT);
        let (_, body) = lab.call("GET", "/x/store?max=5").await;
        let list: BlobList = serde_saphyr::from_str(&body).unwrap();
        assert_eq!((list.bytes, list.count, list.limit), (10, 1, None));
        assert!(list.blobs[0].digest == digest && list.blobs[0].pinned);
        assert_eq!(lab.call("DELETE", &pin).await.0, StatusCode::NO_CONTENT);
        let (_, body) = lab.call("GET", &format!("/x/store?after={digest}")).await;
        assert!(body.contains(r#""blobs":[]"#), "{body}");
        let (_, body) = lab.call("GET", &format!("/x/store/blobs/{digest}")).await;
        let file: BlobFile = serde_saphyr::from_str(&body).unwrap();
        assert_eq!(std::fs::read(&file.path).unwrap(), b"some bytes");
        let verify = format!("/x/store/blobs/{digest}/verify");
        assert!(lab.call("POST", &verify).await.1.contains("right"));
        let other = Digest::of(b"other");
        let (status, _) = lab.call("GET", &format!("/x/store/blobs/{other}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let absent = lab
            .call("POST", &format!("/x/store/blobs/{other}/verify"))
            .await;
        assert!(absent.1.contains("absent"));
    }

    #[tokio::test]
    async fn what_is_to_go_is_said_in_parts_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::new(dir.path(), Some(StoreLimit::Bytes(1000))).await;
        for path in [
            "/x/store/gc?dry_run=true",
            "/x/store/gc?idle=6h&percent=50",
            "/forcecleanup?ttl_hr=0",
            "/forcecleanup/v2?target_util_percent=0",
        ] {
            let (status, body) = lab.call("POST", path).await;
            assert_eq!(status, StatusCode::OK, "{body}");
        }
        let asked = lab.asks.0.lock().unwrap().clone();
        let kinds = asked.iter().map(|(done, goal)| {
            let kind = match goal {
                Goal::Marks => "marks".to_string(),
                Goal::Percent(percent) => percent.to_string(),
                Goal::Lifetimes { lifetimes, .. } => format!("{lifetimes:?}"),
            };
            (*done, kind)
        });
        let kinds: Vec<_> = kinds.collect();
        assert_eq!(kinds[0], (false, "marks".to_string()));
        assert!(
            kinds[1].0 && kinds[1].1.contains("to_idle: Some(21600s)"),
            "{kinds:?}"
        );
        assert_eq!(kinds[2], (true, "50".to_string()));
        assert!(kinds[3].1.contains("to_live: Some(0ns)"), "{kinds:?}");
        assert_eq!(kinds[4], (true, "0".to_string()));
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::new(dir.path(), None).await;
        for (method, path, says) in [
            ("POST", "/x/store/gc?percent=50", "set store_limit"),
            ("POST", "/x/store/gc?percent=101", "more than all"),
            ("POST", "/x/store/gc?keep=3", "dry_run"),
            ("POST", "/x/store/gc?idle=soon", "such as 30s"),
            ("POST", "/forcecleanup", "ttl_hr"),
            ("POST", "/forcecleanup/v2?target_util_percent=-1", "invalid"),
            ("PUT", "/x/store/pins/sha256:12", "64 hexadecimal digits"),
            ("GET", "/x/store?before=1", "after"),
        ] {
            let (status, body) = lab.call(method, path).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}");
            assert!(
                body.contains(says) && body.contains("BAD_REQUEST"),
                "{path}: {body}"
            );
        }
        assert!(lab.asks.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_volume_is_named_once_and_one_takes_blobs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let volume = |name: &str, weight: f64| crate::store::VolumeConfig {
            path: dir.path().join(name),
            weight: weight.try_into().unwrap(),
            limit: None,
        };
        let eviction = EvictionConfig::default();
        let open = async |volumes: &[crate::store::VolumeConfig]| {
            let opened = crate::store::open("/nowhere".into(), volumes, None, &eviction).await;
            opened
                .map(|disks| disks.each().map(FsStore::clone).count())
                .map_err(|it| it.to_string())
        };
        assert_eq!(open(&[volume("a", 1.0), volume("b", 0.0)]).await, Ok(2));
        let twice = open(&[volume("a", 1.0), volume("a", 1.0)])
            .await
            .unwrap_err();
        assert!(twice.contains("volumes[0] already"), "{twice}");
        let lost = open(&[volume("a", 1.0), volume("d", 1.0)])
            .await
            .unwrap_err();
        assert!(lost.contains("is its disk mounted?"), "{lost}");
        let none = open(&[volume("c", 0.0)]).await.unwrap_err();
        assert!(none.contains("weight above 0"), "{none}");
    }
}
