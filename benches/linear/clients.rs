//! Clients that read and change a few tags at random, and write down what they saw.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, StatusCode};
use kraken_benches::linearizability::{Answered, Asked, Condition, Operation, Refusal, State};
use kraken_core::Digest;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_core::net::origin::OriginClient;
use kraken_core::proto::rng::Rng;
use kraken_registry::RepoName;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::Outcome;

/// The repository of all tags.
const REPOSITORY: &str = "linear/app";

/// What all clients share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) http: HttpClient,
    /// Where each build-index answers.
    pub(crate) urls: Vec<String>,
    pub(crate) origin: String,
    pub(crate) listed: watch::Receiver<Vec<usize>>,
    /// When the run began.
    pub(crate) zero: Instant,
    pub(crate) tags: usize,
}

impl Shared {
    fn micros(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// What a client saw of which tag.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// With the number of the tag.
    pub(crate) operations: Vec<(usize, Operation)>,
    /// Answers that nothing here explains.
    pub(crate) odd: Vec<String>,
}

/// One client.
pub(crate) struct Client {
    shared: Shared,
    number: usize,
    rng: Rng,
    /// Whom it asks.
    index: usize,
    /// What it knows of each tag.
    known: Vec<State>,
    /// It asks for nothing but reads until it is answered.
    is_careful: bool,
    pushed: usize,
    seen: Seen,
}

impl Client {
    pub(crate) fn new(shared: Shared, number: usize, seed: u64) -> Self {
        Self {
            number,
            rng: Rng::seeded(seed),
            index: number % (shared.urls.len() - 1),
            known: vec![State::NEVER; shared.tags],
            is_careful: true,
            pushed: 0,
            seen: Seen::default(),
            shared,
        }
    }

    /// Works until told to stop.
    pub(crate) async fn work(mut self, mut until: watch::Receiver<bool>) -> Outcome<Seen> {
        while !*until.borrow_and_update() {
            if self.is_careful || self.rng.below(40) == 0 {
                self.move_on();
            }
            let tag = self.rng.below(self.shared.tags);
            let asked = self.draw(tag).await?;
            let patience = Duration::from_millis(500 + self.rng.below(6000) as u64);
            let is_answered = self.ask((tag, self.index), asked, patience).await?;
            self.is_careful = !is_answered;
            let pause = if is_answered { 30 } else { 300 };
            sleep(Duration::from_millis(self.rng.below(pause) as u64)).await;
        }
        Ok(self.seen)
    }

    /// Reads every tag at each of these, until all have answered.
    pub(crate) async fn look(mut self, indexes: &[usize]) -> Outcome<Seen> {
        let until = Instant::now() + Duration::from_secs(60);
        for tag in 0..self.shared.tags {
            for index in indexes {
                for asked in [Asked::Read, Asked::History] {
                    while !self
                        .ask((tag, *index), asked, Duration::from_secs(10))
                        .await?
                    {
                        if Instant::now() > until {
                            return Err("the tags cannot be read in the end".into());
                        }
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        Ok(self.seen)
    }

    /// Most stay with one as long as it answers; now and then somebody asks one that is not on the list.
    fn move_on(&mut self) {
        let listed = self.shared.listed.borrow().clone();
        self.index = match self.rng.below(12) {
            0 => self.rng.below(self.shared.urls.len()),
            _ => listed[self.rng.below(listed.len())],
        };
    }

    async fn draw(&mut self, tag: usize) -> Outcome<Asked> {
        let known = self.known[tag];
        let drawn = self.rng.below(100);
        if self.is_careful || drawn < 30 {
            return Ok(Asked::Read);
        }
        let condition = match self.rng.below(10) {
            0..3 => Condition::Version(known.version),
            3..5 => Condition::Absent,
            _ => Condition::Any,
        };
        Ok(match drawn {
            30..48 => Asked::History,
            48..58 => {
                let digest = None;
                Asked::Set { digest, condition }
            }
            // What is there already, as far as it knows.
            58..64 if known.digest.is_some() => {
                let digest = known.digest;
                Asked::Set { digest, condition }
            }
            _ => {
                let digest = Some(self.push().await?);
                Asked::Set { digest, condition }
            }
        })
    }

    /// Pushes an image that nobody has pushed yet.
    async fn push(&mut self) -> Outcome<Digest> {
        self.pushed += 1;
        let origin = OriginClient::new(self.shared.origin.parse()?, self.shared.http.clone());
        let config = format!("config of client {}", self.number);
        let digest = Digest::of(config.as_bytes());
        let media_type = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": media_type, "digest": digest, "size": config.len()},
            "layers": [], "annotations": {"put": format!("{} {}", self.number, self.pushed)},
        });
        if self.pushed == 1 {
            upload(&origin, config.into()).await?;
        }
        upload(&origin, manifest.to_string().into()).await
    }

    /// Asks one build-index about one tag, and writes down what comes of it; whether it was answered.
    async fn ask(
        &mut self,
        (tag, index): (usize, usize),
        asked: Asked,
        patience: Duration,
    ) -> Outcome<bool> {
        let request = request(&self.shared.urls[index], tag, asked)?;
        let began = self.shared.micros();
        let answer = timeout(patience, sent(&self.shared.http, request)).await;
        let ended = self.shared.micros();
        let answered = match answer {
            Ok(Ok(answer)) => answered(asked, &answer).unwrap_or_else(|| {
                if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                    self.seen.odd.push(format!("{asked:?}: {answer:?}"));
                }
                Answered::Unknown
            }),
            _ => Answered::Unknown,
        };
        let is_answered = answered != Answered::Unknown;
        match (&answered, asked) {
            (Answered::Told(states), _) => self.known[tag] = states[0],
            (Answered::Done(Some(version)), Asked::Set { digest, .. }) => {
                let version = *version;
                self.known[tag] = State { version, digest };
            }
            _ => {}
        }
        // A read without an answer says nothing.
        if is_answered || matches!(asked, Asked::Set { .. }) {
            let operation = Operation {
                client: self.number,
                began,
                ended,
                asked,
                answered,
            };
            self.seen.operations.push((tag, operation));
        }
        Ok(is_answered)
    }
}

async fn upload(origin: &OriginClient, bytes: Bytes) -> Outcome<Digest> {
    let digest = Digest::of(&bytes);
    let id = origin.upload_start().await?;
    let body = Box::pin(stream::iter([Ok(bytes)]));
    origin.upload_append(&id, 0, body).await?;
    let repo: RepoName = REPOSITORY.parse()?;
    origin.upload_commit(&id, &repo.namespace(), digest).await?;
    Ok(digest)
}

fn request(url: &str, tag: usize, asked: Asked) -> Outcome<Request<HttpBody>> {
    let url = format!("{url}/tags/{}%3Av{tag}", REPOSITORY.replace('/', "%2F"));
    let (method, url) = match asked {
        Asked::Read => (Method::GET, url),
        Asked::History => (Method::GET, format!("{url}/history")),
        Asked::Set { digest: None, .. } => (Method::DELETE, url),
        Asked::Set {
            digest: Some(digest),
            ..
        } => (Method::PUT, format!("{url}/digest/{digest}")),
    };
    let request = Request::builder().method(method).uri(url);
    let condition = match asked {
        Asked::Set { condition, .. } => condition,
        _ => Condition::Any,
    };
    let request = match condition {
        Condition::Any => request,
        Condition::Version(version) => request.header("if-match", format!("\"{version}\"")),
        Condition::Absent => request.header("if-none-match", "*"),
    };
    Ok(request.body(HttpBody::Empty)?)
}

/// An answer over HTTP.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    version: Option<u64>,
    text: String,
}

async fn sent(http: &HttpClient, request: Request<HttpBody>) -> Outcome<Answer> {
    let answer = http.send(request).await?;
    let version = answer.header("kraken-tag-version");
    Ok(Answer {
        status: answer.status(),
        version: version.and_then(|it| it.parse().ok()),
        text: String::from_utf8_lossy(&answer.bytes(1 << 20).await?).into_owned(),
    })
}

/// One state in a history.
#[derive(Debug, Deserialize)]
struct Told {
    digest: Option<Digest>,
    version: String,
}

/// What an answer means; nothing when it is none of those that are expected.
fn answered(asked: Asked, answer: &Answer) -> Option<Answered> {
    let is_unknown = answer.status == StatusCode::NOT_FOUND && answer.text.contains("TAG_UNKNOWN");
    match (asked, answer.status) {
        (Asked::Read, StatusCode::OK) => {
            let (version, digest) = (answer.version?, Some(answer.text.parse().ok()?));
            Some(Answered::Told(vec![State { version, digest }]))
        }
        (Asked::Read, _) if is_unknown => {
            let (version, digest) = (answer.version?, None);
            Some(Answered::Told(vec![State { version, digest }]))
        }
        (Asked::History, StatusCode::OK) => {
            let told: Vec<Told> = serde_json::from_str(&answer.text).ok()?;
            let state = |it: Told| {
                let (version, digest) = (it.version.parse().ok()?, it.digest);
                Some(State { version, digest })
            };
            let states: Option<Vec<_>> = told.into_iter().map(state).collect();
            states.filter(|it| !it.is_empty()).map(Answered::Told)
        }
        (Asked::History, _) if is_unknown => Some(Answered::Told(vec![State::NEVER])),
        // 0 says that it is so far back that its version is not known any more.
        (Asked::Set { digest, .. }, StatusCode::OK) => {
            let version = answer.version.filter(|it| *it > 0);
            Some(Answered::Done(digest.and(version)))
        }
        (Asked::Set { digest: None, .. }, _) if is_unknown => {
            Some(Answered::Refused(Refusal::Absent))
        }
        (Asked::Set { .. }, StatusCode::PRECONDITION_FAILED) => refusal(&answer.text),
        _ => None,
    }
}

fn refusal(text: &str) -> Option<Answered> {
    let refusal = if let Some((_, version)) = text.split_once("changed at version ") {
        let digits = version.split(|it: char| !it.is_ascii_digit()).next()?;
        Refusal::Changed(digits.parse().ok()?)
    } else if text.contains("the tag exists") {
        Refusal::Exists
    } else if text.contains("the tag does not exist") {
        Refusal::Absent
    } else {
        return None;
    };
    Some(Answered::Refused(refusal))
}
