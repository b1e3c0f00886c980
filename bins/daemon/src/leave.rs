//! An origin that hands its share over before it goes.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use kraken_core::Origin;
use kraken_core::net::http::ApiError;
use serde::{Deserialize, Serialize};

/// The answer of `/x/leave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Whether the origin hands its share over.
    pub leaving: bool,
    /// How many blobs it holds that others own, or will: with none, it can be stopped.
    pub blobs: usize,
    /// How many of the first thousand of them are still to be written to the storage, or copied to an owner.
    #[serde(default)]
    pub unfinished: usize,
    /// The other origins that do not answer: nothing is let go before they do, or are taken off the
    /// lists.
    pub away: Vec<String>,
}

/// | method and path | answer |
/// |---|---|
/// | GET `/x/leave` | [`Leaving`] |
/// | POST `/x/leave` | the same; the origin begins to hand its share over. 409 when no other origin can take it |
/// | DELETE `/x/leave` | the same; it takes its share back |
pub(crate) fn with_leave(router: Router, origin: Origin) -> Router {
    let leave = Router::new()
        .route("/x/leave", get(look).post(leave).delete(stay))
        .with_state(origin);
    router.merge(leave)
}

async fn look(State(origin): State<Origin>) -> Result<Json<Leaving>, ApiError> {
    let left = origin.left_to_hand_over().await?;
    Ok(Json(Leaving {
        leaving: origin.is_leaving(),
        blobs: left.blobs,
        unfinished: left.unfinished,
        away: origin.away(),
    }))
}

async fn leave(State(origin): State<Origin>) -> Result<Json<Leaving>, ApiError> {
    // It would be waited for without an end.
    if origin.heirs().is_empty() {
        return Err(ApiError::Conflict(
            "there is no other origin that could take its blobs: none is on its list of origins, or all of them hand \
             theirs over as well. Add one (docs/healing.md), or stop it as it is: what is not in the storage behind it \
             is gone with it then"
                .into(),
        ));
    }
    origin.leave_ring(true);
    look(State(origin)).await
}

async fn stay(State(origin): State<Origin>) -> Result<Json<Leaving>, ApiError> {
    origin.leave_ring(false);
    look(State(origin)).await
}
