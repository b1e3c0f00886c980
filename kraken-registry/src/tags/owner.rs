//! One owner of tags, as those see it who read and change them: here, or over HTTP.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /internal/tags/standing` | what this build-index is among the others, and the lists of these that it knows |
//! | `POST /internal/tags/look` | what it holds of a tag |
//! | `POST /internal/tags/prepare` | it promises, and what it holds; 409 and the later attempt |
//! | `POST /internal/tags/accept` | it has taken the state; 409 and the later attempt |
//! | `POST /internal/tags/hand-over` | a page of registers, for one that has lost its disk |
//! | `POST /internal/tags/page` | a page of tags |
//! | `POST /internal/tags/repositories` | a page of repositories |
//!
//! One that does not vote answers all but the first with 503; and so does one that has closed the list of
//! build-indexes by which it is asked.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use kraken_core::net::http::{Sent, trace_headers};
use kraken_proto::tags::list::ListId;
use kraken_proto::tags::record::TagState;
use kraken_proto::tags::register::{Ballot, Outbid, Register};
use kraken_proto::tags::rejoin::Told;
use reqwest::Client;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ring::TagRing;
use super::store::{Attempt, Listed, TagStore, TagStoreError};
use crate::link::RegisterName;
use crate::name::NameError;
use crate::web::chain;

/// How long another build-index may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUT_PAGE: Duration = Duration::from_secs(30);
/// Names or registers in one page, at most.
pub(super) const PAGE: usize = 1000;

/// Where an owner is.
#[derive(Debug, Clone)]
pub(super) enum Owner {
    Here(TagStore),
    There(Remote),
}

/// Another build-index.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    http: Client,
    url: String,
}

/// What an owner says: it did it, it was outbid, or it cannot be asked.
pub(super) type Said<T> = Result<Result<T, Outbid>, String>;

/// It promised, in this incarnation, and holds this.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Promise {
    pub(super) incarnation: u64,
    pub(super) register: Register,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prepare {
    name: String,
    ballot: Ballot,
    lists: Vec<ListId>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accept {
    name: String,
    attempt: Attempt,
    state: Option<TagState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandOver {
    to: String,
    incarnation: u64,
    after: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Look {
    name: String,
    lists: Vec<ListId>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: Option<String>,
    limit: usize,
    lists: Vec<ListId>,
}

impl Owner {
    pub(super) async fn standing(&self) -> Result<Told, String> {
        match self {
            Self::Here(store) => store.told().await.map_err(said),
            Self::There(remote) => {
                let url = format!("{}/internal/tags/standing", remote.url);
                let request = remote.http.get(url).timeout(TIMEOUT);
                answer(request).await?.map_err(|_| "outbid".into())
            }
        }
    }

    pub(super) async fn look(
        &self,
        name: &RegisterName,
        lists: &[ListId],
    ) -> Result<Register, String> {
        match self {
            Self::Here(store) => voting(store)?.look(name, lists).await.map_err(said),
            Self::There(remote) => {
                let (name, lists) = (name.to_string(), lists.to_vec());
                remote.plain("look", &Look { name, lists }).await
            }
        }
    }

    pub(super) async fn prepare(
        &self,
        name: &RegisterName,
        ballot: Ballot,
        lists: Vec<ListId>,
    ) -> Said<Promise> {
        match self {
            Self::Here(store) => {
                let incarnation = voting(store)?.standing().incarnation;
                let promised = store.prepare(name, ballot, lists).await.map_err(said)?;
                Ok(promised.map(|register| Promise {
                    incarnation,
                    register,
                }))
            }
            Self::There(remote) => {
                let request = Prepare {
                    name: name.to_string(),
                    ballot,
                    lists,
                };
                remote.ask("prepare", &request).await
            }
        }
    }

    pub(super) async fn accept(
        &self,
        name: &RegisterName,
        attempt: Attempt,
        state: Option<TagState>,
    ) -> Said<()> {
        match self {
            Self::Here(store) => {
                let taken = voting(store)?.accept(name, attempt, state);
                taken.await.map_err(said)
            }
            Self::There(remote) => {
                let request = Accept {
                    name: name.to_string(),
                    attempt,
                    state,
                };
                remote.ask("accept", &request).await
            }
        }
    }

    /// A page of registers behind `after`, for the new life of the build-index `to`.
    pub(super) async fn hand_over(
        &self,
        (to, incarnation): (&str, u64),
        after: &str,
    ) -> Result<Vec<(String, Register)>, String> {
        let to = to.to_owned();
        match self {
            Self::Here(store) => {
                let page = voting(store)?.hand_over((to, incarnation), after, PAGE);
                page.await.map_err(said)
            }
            Self::There(remote) => {
                let after = after.to_owned();
                let request = HandOver {
                    to,
                    incarnation,
                    after,
                };
                remote.plain("hand-over", &request).await
            }
        }
    }

    pub(super) async fn page(
        &self,
        (prefix, lists): (&str, &[ListId]),
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<Listed>, String> {
        match self {
            Self::Here(store) => {
                let page = listing(store, lists)?.page(prefix, n, after).await;
                page.map_err(said)
            }
            Self::There(remote) => {
                let window = window((prefix, lists), after, n);
                remote.plain("page", &window).await
            }
        }
    }

    pub(super) async fn repositories(
        &self,
        lists: &[ListId],
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<String>, String> {
        match self {
            Self::Here(store) => {
                let page = listing(store, lists)?.page_repositories(n, after).await;
                page.map_err(said)
            }
            Self::There(remote) => {
                let window = window(("", lists), after, n);
                remote.plain("repositories", &window).await
            }
        }
    }
}

impl Remote {
    pub(super) fn new(http: Client, url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        Self { http, url }
    }

    async fn ask<T: DeserializeOwned>(&self, what: &str, body: &impl Serialize) -> Said<T> {
        let url = format!("{}/internal/tags/{what}", self.url);
        // A page for one that comes back is written before it is sent.
        let patience = if what == "hand-over" {
            TIMEOUT_PAGE
        } else {
            TIMEOUT
        };
        let post = self.http.post(url).headers(trace_headers());
        answer(post.timeout(patience).json(body)).await
    }

    /// A question that nobody can outbid.
    async fn plain<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &impl Serialize,
    ) -> Result<T, String> {
        let said = self.ask(what, body).await?;
        said.map_err(|_| "an answer that makes no sense here".into())
    }
}

fn window((prefix, lists): (&str, &[ListId]), after: Option<&str>, limit: usize) -> Window {
    Window {
        lists: lists.to_vec(),
        prefix: prefix.to_owned(),
        after: after.map(str::to_owned),
        limit,
    }
}

async fn answer<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Said<T> {
    let response = request.send().await.map_err(|error| chain(&error))?;
    match response.status() {
        StatusCode::OK => response.json().await.map(Ok).map_err(|it| chain(&it)),
        StatusCode::CONFLICT => response.json().await.map(Err).map_err(|it| chain(&it)),
        status => {
            let text = response.text().await.unwrap_or_default();
            let text: String = text.chars().take(200).collect();
            Err(format!("{status}: {text}"))
        }
    }
}

/// The store, if it votes.
pub(super) fn voting(store: &TagStore) -> Result<&TagStore, String> {
    if store.standing().votes() {
        Ok(store)
    } else {
        Err("this build-index does not know the tags yet".into())
    }
}

/// The store, if what it lists is all, for one that asks by these lists of build-indexes.
fn listing<'a>(store: &'a TagStore, lists: &[ListId]) -> Result<&'a TagStore, String> {
    let store = voting(store)?;
    if store.allows(lists) {
        Ok(store)
    } else {
        Err(said(TagStoreError::OtherList))
    }
}

fn said(error: TagStoreError) -> String {
    super::TagError::from(error).to_string()
}

/// The routes by which the other build-indexes reach this one's registers.
pub(super) fn router(tags: &TagRing) -> Router {
    let store = tags.here().clone();
    let tags = tags.clone();
    let hand_over = move |owner: State<Owner>, request: Sent<HandOver>| {
        let is_known = tags.others().iter().any(|(name, _)| *name == request.0.to);
        hand_over(owner, request, is_known)
    };
    Router::new()
        .route("/internal/tags/standing", get(standing))
        .route("/internal/tags/look", post(look))
        .route("/internal/tags/prepare", post(prepare))
        .route("/internal/tags/accept", post(accept))
        .route("/internal/tags/hand-over", post(hand_over))
        .route("/internal/tags/page", post(page))
        .route("/internal/tags/repositories", post(repositories))
        .with_state(Owner::Here(store))
}

/// Why another build-index gets no answer.
struct Failed(StatusCode, String);

impl From<NameError> for Failed {
    fn from(error: NameError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, reason)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// A larger round would leave no room for those after it.
const MAX_ROUND: u64 = u64::MAX / 2;

fn bounded(ballot: Ballot) -> Result<Ballot, Failed> {
    if ballot.round <= MAX_ROUND {
        return Ok(ballot);
    }
    let what = "an attempt of this round would be the last one".to_owned();
    Err(Failed(StatusCode::BAD_REQUEST, what))
}

fn outcome<T: Serialize>(said: Result<T, Outbid>) -> Response {
    match said {
        Ok(done) => Json(done).into_response(),
        Err(outbid) => (StatusCode::CONFLICT, Json(outbid)).into_response(),
    }
}

async fn standing(State(owner): State<Owner>) -> Result<Response, Failed> {
    Ok(Json(owner.standing().await?).into_response())
}

async fn look(State(owner): State<Owner>, Sent(it): Sent<Look>) -> Result<Response, Failed> {
    let held = owner.look(&it.name.parse()?, &it.lists).await?;
    Ok(Json(held).into_response())
}

async fn prepare(State(owner): State<Owner>, Sent(it): Sent<Prepare>) -> Result<Response, Failed> {
    let name = it.name.parse()?;
    let promised = owner.prepare(&name, bounded(it.ballot)?, it.lists).await?;
    Ok(outcome(promised))
}

async fn accept(State(owner): State<Owner>, Sent(it): Sent<Accept>) -> Result<Response, Failed> {
    let name = it.name.parse()?;
    bounded(it.attempt.ballot)?;
    Ok(outcome(owner.accept(&name, it.attempt, it.state).await?))
}

async fn hand_over(
    State(owner): State<Owner>,
    Sent(it): Sent<HandOver>,
    is_known: bool,
) -> Result<Response, Failed> {
    if !is_known {
        let what = format!(
            "{:?} is not among the other build-indexes that are listed",
            it.to
        );
        return Err(Failed(StatusCode::FORBIDDEN, what));
    }
    let page = owner.hand_over((&it.to, it.incarnation), &it.after).await?;
    Ok(Json(page).into_response())
}

async fn page(State(owner): State<Owner>, Sent(it): Sent<Window>) -> Result<Response, Failed> {
    let limit = it.limit.min(PAGE);
    let asked = (it.prefix.as_str(), it.lists.as_slice());
    let page = owner.page(asked, limit, it.after.as_deref()).await?;
    Ok(Json(page).into_response())
}

async fn repositories(
    State(owner): State<Owner>,
    Sent(it): Sent<Window>,
) -> Result<Response, Failed> {
    let limit = it.limit.min(PAGE);
    let page = owner.repositories(&it.lists, limit, it.after.as_deref());
    let page = page.await?;
    Ok(Json(page).into_response())
}
