//! What a process remembers of a blob: for `kraken explain`, and what it is doing now: for `kraken top`.

use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use futures::future::join_all;
use http::Request;
use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::{ApiError, Asked, BaseUrl, HttpBody, HttpClient, Params};
use kraken_core::origin::Fetch;
use kraken_core::proto::history::{Neighbour, Transfer};
use kraken_core::storage::PieceStore as _;
use kraken_core::tracker::OriginSeen;
use kraken_core::{Agent, Digest, Metrics, Origin};
use serde::{Deserialize, Serialize};

use crate::answers::{Answer, Answers};
use crate::store::Disks;
use crate::store::http::BlobInfo;

/// What a process remembers of a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The blob in its store, if it is there.
    pub kept: Option<BlobInfo>,
    /// How it came, the last time last.
    pub transfers: Vec<Transfer>,
    /// What clients of its registry were told, the last answers.
    #[serde(default)]
    pub answers: Vec<Answer>,
    /// Of an origin: why it fetched the blob, and from where.
    #[serde(default)]
    pub fetches: Vec<Fetch>,
    /// What the origins remember, asked by an agent.
    #[serde(default)]
    pub origins: Vec<OriginSays>,
}

/// What an origin remembers of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginSays {
    /// Its name in the ring.
    pub name: String,
    /// What it remembers.
    pub remembers: Option<Box<Explanation>>,
    /// Why that is not known.
    pub silent: Option<String>,
}

/// What a process is doing now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// The time, in milliseconds since 1970.
    pub now_ms: u64,
    /// Bytes of pieces that came from origins since it started.
    pub from_origins: u64,
    /// Bytes of pieces that came from agents.
    pub from_agents: u64,
    /// Bytes of pieces that went to peers.
    pub sent: u64,
    /// What comes in at this moment.
    pub transfers: Vec<Transfer>,
    /// Who is connected.
    pub neighbours: Vec<Neighbour>,
    /// Blobs in the store.
    pub blobs: u64,
    /// What they take, in bytes.
    pub stored: u64,
    /// What they may take, if there is a limit.
    pub limit: Option<u64>,
}

/// Who remembers transfers.
pub(crate) trait Remembers: Clone + Send + Sync + 'static {
    fn transfers(&self, digest: Digest) -> impl Future<Output = Vec<Transfer>> + Send;
    fn under_way(&self) -> impl Future<Output = (Vec<Transfer>, Vec<Neighbour>)> + Send;
    fn counts(&self) -> &Metrics;
    fn fetches(&self, digest: Digest) -> Vec<Fetch>;
}

impl Remembers for Agent {
    async fn transfers(&self, digest: Digest) -> Vec<Transfer> {
        Self::transfers(self, digest).await
    }
    async fn under_way(&self) -> (Vec<Transfer>, Vec<Neighbour>) {
        Self::under_way(self).await
    }
    fn counts(&self) -> &Metrics {
        self.metrics()
    }
    fn fetches(&self, _: Digest) -> Vec<Fetch> {
        Vec::new()
    }
}

impl Remembers for Origin {
    async fn transfers(&self, digest: Digest) -> Vec<Transfer> {
        Self::transfers(self, digest).await
    }
    async fn under_way(&self) -> (Vec<Transfer>, Vec<Neighbour>) {
        Self::under_way(self).await
    }
    fn counts(&self) -> &Metrics {
        self.metrics()
    }
    fn fetches(&self, digest: Digest) -> Vec<Fetch> {
        Self::fetches(self, digest)
    }
}

/// How an agent asks the origins.
#[derive(Clone)]
pub(crate) struct Others {
    pub(crate) http: HttpClient,
    pub(crate) trackers: TrackerClient,
}

/// How long a tracker or an origin may think; they look into their memory.
const PATIENCE: Duration = Duration::from_secs(3);
/// Origins that are asked.
const MOST_ORIGINS: usize = 16;
/// The longest answer that is read of one, in bytes.
const ANSWER: usize = 2 << 20;

#[derive(Clone)]
struct Told<R> {
    remembers: R,
    disks: Disks,
    answers: Answers,
    others: Option<Others>,
}

/// | method and path | answer |
/// |---|---|
/// | GET `/x/explain/{digest}` | an [`Explanation`] |
/// | GET `/x/answers?repository=R&tag=T` | the last [`Answer`]s about a tag |
/// | GET `/x/top` | the [`Activity`] |
pub(crate) fn with_explain<R: Remembers>(
    router: Router,
    (remembers, disks): (R, Disks),
    answers: Answers,
    others: Option<Others>,
) -> Router {
    let state = Told {
        remembers,
        disks,
        answers,
        others,
    };
    let explain = Router::new()
        .route("/x/explain/{digest}", get(explain::<R>))
        .route("/x/answers", get(tag::<R>))
        .route("/x/top", get(top::<R>))
        .with_state(state);
    router.merge(explain)
}

async fn explain<R: Remembers>(
    State(told): State<Told<R>>,
    Params(digest): Params<Digest>,
) -> Json<Explanation> {
    let origins = async {
        match &told.others {
            Some(others) => others.ask(digest).await,
            None => Vec::new(),
        }
    };
    let (transfers, origins) = tokio::join!(told.remembers.transfers(digest), origins);
    Json(Explanation {
        kept: told.disks.kept(digest).map(BlobInfo::from),
        transfers,
        answers: told.answers.of(digest),
        fetches: told.remembers.fetches(digest),
        origins,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfTag {
    repository: String,
    tag: String,
}

async fn tag<R: Remembers>(
    State(told): State<Told<R>>,
    Asked(of): Asked<OfTag>,
) -> Json<Vec<Answer>> {
    Json(told.answers.of_tag(&of.repository, &of.tag))
}

async fn top<R: Remembers>(State(told): State<Told<R>>) -> Json<Activity> {
    let (transfers, neighbours) = told.remembers.under_way().await;
    let counts = told.remembers.counts();
    let usage = told.disks.usage();
    let usage = usage.as_ref();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    Json(Activity {
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        from_origins: counts.bytes_from_origins(),
        from_agents: counts.bytes_from_agents(),
        sent: counts.bytes_sent(),
        transfers,
        neighbours,
        blobs: usage.map_or(0, |usage| usage.blobs),
        stored: usage.map_or(0, |usage| usage.bytes),
        limit: usage.and_then(|usage| usage.ceiling.as_ref().map(|ceiling| ceiling.most())),
    })
}

impl Others {
    /// What the origins remember of a blob, as far as they remember anything.
    async fn ask(&self, digest: Digest) -> Vec<OriginSays> {
        let mut origins = Vec::new();
        for tracker in self.trackers.urls() {
            if let Ok(list) = origins_at(&self.http, &tracker).await {
                origins = list;
                break;
            }
        }
        let asks = origins.into_iter().take(MOST_ORIGINS).map(async |origin| {
            let url = format!("{}/x/explain/{digest}", origin.url);
            let said = match origin.peer {
                Some(_) => self.get::<Explanation>(url).await,
                None => Err(ApiError::Unavailable(
                    "it does not answer the tracker".into(),
                )),
            };
            let (remembers, silent) = match said {
                Ok(said) => (Some(Box::new(said)), None),
                Err(error) => (None, Some(error.to_string())),
            };
            OriginSays {
                name: origin.name,
                remembers,
                silent,
            }
        });
        let mut said = join_all(asks).await;
        let nothing = Explanation::default();
        said.retain(|it| it.remembers.as_deref() != Some(&nothing));
        said
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: String) -> Result<T, ApiError> {
        get_json(&self.http, url).await
    }
}

/// The origins that a tracker knows.
pub(crate) async fn origins_at(
    http: &HttpClient,
    tracker: &BaseUrl,
) -> Result<Vec<OriginSeen>, ApiError> {
    get_json(http, format!("{tracker}/x/origins")).await
}

async fn get_json<T: serde::de::DeserializeOwned>(
    http: &HttpClient,
    url: String,
) -> Result<T, ApiError> {
    let request = Request::get(url).body(HttpBody::Empty);
    let request = request.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let answer = http.send_within(request, PATIENCE).await?;
    answer.successful().await?.json(ANSWER).await
}
