//! Collecting garbage: now and then, and when somebody asks for it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::routing::post;
use axum::{Json, Router};
use kraken_core::net::http::ApiError;
use kraken_registry::garbage::{Collected, Collector, GarbageError, GarbageOptions};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::store::Age;

/// When garbage is collected, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GarbageConfig {
    /// How often.
    #[serde(default = "a_day")]
    pub every: Age,
    /// How long nobody may have asked about a blob before it goes.
    #[serde(default = "a_day")]
    pub grace: Age,
    /// Whether it goes from the storage behind the origins as well: only where no other cluster or tool
    /// keeps blobs there.
    #[serde(default)]
    pub stored: bool,
}

fn a_day() -> Age {
    Age(Duration::from_secs(24 * 3600))
}

impl GarbageConfig {
    pub(crate) fn options(self) -> GarbageOptions {
        GarbageOptions {
            grace_seconds: self.grace.0.as_secs(),
            stored: self.stored,
            dry_run: false,
        }
    }
}

#[derive(Debug, Clone)]
struct Collecting {
    collector: Collector,
    turn: Arc<Mutex<()>>,
}

impl Collecting {
    async fn run(&self, options: GarbageOptions) -> Result<Collected, ApiError> {
        let Ok(_turn) = self.turn.try_lock() else {
            let what = "garbage is being collected: wait until that is done";
            return Err(ApiError::Conflict(what.into()));
        };
        let collected = self.collector.run(options).await;
        let collected = collected.map_err(|error| match error {
            GarbageError::Grace { .. } => ApiError::BadRequest(error.to_string()),
            error => ApiError::Unavailable(error.to_string()),
        })?;
        tracing::info!(?collected, "garbage collected");
        Ok(collected)
    }
}

/// | method and path | answer |
/// |---|---|
/// | POST `/x/garbage` | [`GarbageOptions`] to [`Collected`], when it is done |
///
/// Gives what collects now and then as well, if that is configured.
pub(crate) fn with_garbage(
    router: Router,
    collector: Collector,
    config: Option<GarbageConfig>,
) -> (Router, impl Future<Output = ()> + Send + 'static) {
    let collecting = Collecting {
        collector,
        turn: Arc::default(),
    };
    let regular = collecting.clone();
    let regularly = async move {
        let Some(config) = config else { return };
        loop {
            tokio::time::sleep(config.every.0).await;
            if let Err(error) = regular.run(config.options()).await {
                tracing::warn!(%error, "garbage stays until the next time");
            }
        }
    };
    let routes = Router::new()
        .route("/x/garbage", post(collect))
        .with_state(collecting);
    (router.merge(routes), regularly)
}

async fn collect(
    State(collecting): State<Collecting>,
    options: Result<Json<GarbageOptions>, JsonRejection>,
) -> Result<Json<Collected>, ApiError> {
    let options = options.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    // In a task of its own: who hangs up leaves nothing half done.
    let running = tokio::spawn(async move { collecting.run(options.0).await });
    let stopped = |_| ApiError::Unavailable("the build-index stops".into());
    running.await.map_err(stopped)?.map(Json)
}
