//! The durable tasks of an origin over HTTP: look, try again, give up.

use axum::extract::State;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::StatusCode;
use kraken_core::Origin;
use kraken_core::net::http::{ApiError, Asked, Params};
use kraken_core::storage::{QueueError, Task};
use serde::{Deserialize, Serialize};

use crate::metrics::Family;

/// Which tasks are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Those that wait or are under way.
    #[default]
    Waiting,
    /// Those that were given up.
    Dead,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    state: TaskState,
    after: Option<u64>,
    max: Option<usize>,
}

/// The most tasks in one answer.
const MOST: usize = 1000;

/// The answer of `GET /x/queue`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskList {
    /// How many tasks wait or are under way.
    pub waiting: u64,
    /// How many were given up.
    pub dead: u64,
    /// The tasks of the state that was asked for.
    pub tasks: Vec<TaskInfo>,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its id on this origin.
    pub id: u64,
    /// `write-back` or `replicate`.
    pub kind: String,
    /// Namespace and digest; for a copy, the origin that lacks it, too.
    pub key: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is due, in milliseconds since 1970.
    pub due_ms: u64,
    /// When it was due first.
    pub born_ms: u64,
}

impl From<Task> for TaskInfo {
    fn from(task: Task) -> Self {
        Self {
            id: task.id,
            kind: task.kind,
            key: task.key,
            attempts: task.attempts,
            due_ms: task.due_ms,
            born_ms: task.born_ms,
        }
    }
}

/// | method and path | answer |
/// |---|---|
/// | GET `/x/queue?state=waiting&#124;dead&after=ID&max=N` | a [`TaskList`] |
/// | POST `/x/queue/{id}/retry` | 204: the dead letter is tried again |
/// | DELETE `/x/queue/{id}` | 204: the dead letter is dropped |
pub(crate) fn with_queue(router: Router, origin: Origin) -> Router {
    let queue = Router::new()
        .route("/x/queue", get(list))
        .route("/x/queue/{id}/retry", post(retry))
        .route("/x/queue/{id}", delete(give_up))
        .with_state(origin);
    router.merge(queue)
}

/// How many tasks wait and for how long, as metrics; nothing when the queue cannot be read.
pub(crate) async fn metrics(origin: &Origin) -> String {
    let (Ok((waiting, _)), Ok(oldest)) = (origin.task_counts().await, origin.oldest_task().await)
    else {
        return String::new();
    };
    let tasks = Family::gauge(
        "kraken_queue_tasks",
        "Write-backs and copies that wait or are under way.",
    );
    let age = Family::gauge(
        "kraken_queue_oldest_seconds",
        "For how long the oldest of them has been due; 0 without any.",
    );
    let oldest = oldest.unwrap_or_default().as_secs();
    tasks.sample(&[], waiting).text() + &age.sample(&[], oldest).text()
}

async fn list(
    State(origin): State<Origin>,
    Asked(asked): Asked<Which>,
) -> Result<Json<TaskList>, ApiError> {
    let max = asked.max.unwrap_or(100).min(MOST);
    if asked.state == TaskState::Waiting && asked.after.is_some() {
        let what = "after is for dead letters: tasks that wait move, and have no page after one";
        return Err(ApiError::BadRequest(what.into()));
    }
    let tasks = match asked.state {
        TaskState::Waiting => origin.waiting_tasks(max).await,
        TaskState::Dead => origin.dead_tasks(asked.after, max).await,
    };
    let (waiting, dead) = origin.task_counts().await.map_err(unavailable)?;
    Ok(Json(TaskList {
        waiting,
        dead,
        tasks: tasks
            .map_err(unavailable)?
            .into_iter()
            .map(Into::into)
            .collect(),
    }))
}

async fn retry(
    State(origin): State<Origin>,
    Params(id): Params<u64>,
) -> Result<StatusCode, ApiError> {
    found(origin.revive_task(id).await)
}

async fn give_up(
    State(origin): State<Origin>,
    Params(id): Params<u64>,
) -> Result<StatusCode, ApiError> {
    found(origin.drop_task(id).await)
}

fn found(done: Result<bool, QueueError>) -> Result<StatusCode, ApiError> {
    match done.map_err(unavailable)? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::NotFound),
    }
}

fn unavailable(error: QueueError) -> ApiError {
    ApiError::Unavailable(error.to_string())
}
