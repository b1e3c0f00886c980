//! The processes of the cluster's centre, and whether they are well: asked while somebody looks on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use http::{Request, StatusCode};
use kraken_core::Digest;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_core::net::origin::OriginCluster;
use kraken_core::tracker::look::Look;
use serde::Serialize;

use super::{ConsoleConfig, Shown};

/// How often each is asked at most.
const FRESH: Duration = Duration::from_secs(2);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 10;
/// Digests that are drawn to see how the ring shares blobs out: 2 % off at most, as a rule.
const DRAWN: u32 = 1000;

/// Those who are asked.
pub(super) struct Nodes {
    listed: Vec<(Kind, String)>,
    origins: OriginCluster,
    look: Look,
    http: HttpClient,
    last: Mutex<Option<(Instant, Arc<Vec<Node>>)>>,
    asking: tokio::sync::Mutex<()>,
}

/// A process of the cluster's centre.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Node {
    kind: Kind,
    name: String,
    url: String,
    zone: Option<String>,
    version: Option<String>,
    state: State,
    /// What it, or the way to it, says is wrong.
    why: Option<String>,
    /// Which part of all blobs an origin owns, in thousandths.
    share: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Origin,
    Tracker,
    BuildIndex,
    Proxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It works.
    Ready,
    /// It answers, and something that it needs does not.
    Unready,
    /// It does not answer.
    Down,
}

impl Nodes {
    pub(super) fn new(config: &ConsoleConfig, shown: &Shown) -> Self {
        let lists = [
            (Kind::Tracker, &config.trackers),
            (Kind::BuildIndex, &config.build_indexes),
            (Kind::Proxy, &config.proxies),
        ];
        let of = |(kind, urls): (Kind, &Vec<String>)| -> Vec<_> {
            urls.iter().map(|url| (kind, url.clone())).collect()
        };
        Self {
            listed: lists.into_iter().flat_map(of).collect(),
            origins: shown.origins.clone(),
            look: shown.look.clone(),
            http: shown.http.clone(),
            last: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// All of them, as they answered a moment ago.
    pub(super) async fn all(&self) -> Arc<Vec<Node>> {
        let _asking = self.asking.lock().await;
        let fresh = |(at, _): &(Instant, Arc<Vec<Node>>)| at.elapsed() < FRESH;
        if let Some((_, nodes)) = self.last().clone().filter(fresh) {
            return nodes;
        }
        let origins = self.origin_nodes();
        let listed = self.listed.iter().map(|(kind, url)| Node {
            kind: *kind,
            name: url.clone(),
            url: url.clone(),
            zone: None,
            version: None,
            state: State::Down,
            why: None,
            share: None,
        });
        let asked = origins.into_iter().chain(listed).map(|node| self.ask(node));
        let nodes = Arc::new(join_all(asked).await);
        *self.last() = Some((Instant::now(), nodes.clone()));
        nodes
    }

    fn origin_nodes(&self) -> Vec<Node> {
        let names = self.origins.names();
        let live = self.look.live_origins();
        let mut owned = vec![0; names.len()];
        for number in 0..DRAWN {
            for owner in self.origins.owners(&Digest::of(&number.to_be_bytes())) {
                if let Some(place) = names.iter().position(|name| *name == owner) {
                    owned[place] += 1;
                }
            }
        }
        let node = |(name, owned): (String, u32)| {
            let client = self.origins.origin(&name)?;
            let zone = live.get(&name).and_then(|peer| peer.zone.clone());
            Some(Node {
                kind: Kind::Origin,
                url: client.url().to_string(),
                zone: zone.map(|zone| zone.to_string()),
                version: None,
                state: State::Down,
                why: None,
                share: Some(owned * 1000 / DRAWN),
                name,
            })
        };
        names.into_iter().zip(owned).filter_map(node).collect()
    }

    async fn ask(&self, mut node: Node) -> Node {
        let answer = match self.get(&format!("{}/readiness", node.url)).await {
            Ok(answer) => answer,
            Err(why) => {
                node.why = Some(why);
                return node;
            }
        };
        node.version = answer.header("kraken-version").map(ToString::to_string);
        node.state = match answer.status() {
            StatusCode::OK => State::Ready,
            status => {
                let body = answer.bytes(MAX_ANSWER).await.unwrap_or_default();
                node.why = Some(told(&body).unwrap_or_else(|| status.to_string()));
                State::Unready
            }
        };
        node
    }

    async fn get(&self, url: &str) -> Result<kraken_core::net::http::HttpResponse, String> {
        let request = Request::get(url).body(HttpBody::Empty);
        let request = request.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(PATIENCE, self.http.send(request)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", PATIENCE.as_millis())),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, Arc<Vec<Node>>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message in an error of ours.
fn told(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body["error"]["message"].as_str()?.to_string())
}
