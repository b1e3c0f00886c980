//! Images on their way to other clusters, as the build-indexes tell of them.

use bytes::Bytes;
use comfy_table::Table;
use kraken_core::net::http::{ApiError, HttpResponse};
use kraken_daemon::Tls;
use kraken_registry::name::TagName;
use kraken_registry::replicate::{Direction, RemoteStatus};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::caller::silence;
use crate::operator::Operator;

/// A page of JSON has at most so many bytes.
const MOST: usize = 4 << 20;

/// So much of an error is in a table; all of it in JSON.
const WIDTH: usize = 120;

/// All build-indexes of a cluster.
#[derive(Debug)]
pub struct Indexes(Vec<(String, Operator)>);

/// What one build-index says of one other cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Its base URL.
    pub build_index: String,
    /// What it says.
    #[serde(flatten)]
    pub remote: RemoteStatus,
}

#[derive(Debug, Deserialize)]
struct Statuses {
    remotes: Vec<RemoteStatus>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Debug, Deserialize)]
struct Reason {
    message: String,
}

#[derive(Debug, Deserialize)]
struct Sending {
    remotes: usize,
}

impl Indexes {
    /// Clients of these base URLs.
    ///
    /// # Errors
    /// A URL or the certificate makes no sense.
    pub fn new(urls: &[String], tls: &Tls) -> Result<Self, Failure> {
        let operator = |url: &String| Ok((url.clone(), Operator::new(url, tls)?));
        urls.iter()
            .map(operator)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What each says of each other cluster; and which do not say.
    pub async fn status(&self) -> (Vec<Part>, Vec<Failure>) {
        let (mut parts, mut silent) = (Vec::new(), Vec::new());
        for (url, index) in &self.0 {
            match read::<Statuses>(url, index.send("GET", "/replicate/status").await).await {
                Ok(said) => parts.extend(said.remotes.into_iter().map(|remote| Part {
                    build_index: url.clone(),
                    remote,
                })),
                Err(failure) => silent.push(failure),
            }
        }
        (parts, silent)
    }

    /// Tells all of them to `pause`, to `resume`, to try all that waits `now`, or to send all `again`.
    ///
    /// # Errors
    /// Some do not answer, or know no such cluster; the others have done it.
    pub async fn tell(&self, remote: &str, what: &str) -> Result<(), Failure> {
        let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        if remote.is_empty() || !remote.chars().all(is_plain) {
            let what = format!("{remote:?} is neither a tag such as team/app:v1 nor a cluster");
            return Err(Failure::Argument(what));
        }
        let mut failures = Vec::new();
        for (url, index) in &self.0 {
            let path = format!("/replicate/{remote}/{what}");
            let told = index.post_for(&path, &()).await;
            if let Err(failure) = accepted(url, told).await {
                failures.push(failure);
            }
        }
        all(failures)
    }

    /// Has a tag sent to all clusters that a rule sends it to; how many these are.
    ///
    /// # Errors
    /// No build-index does it.
    pub async fn send_now(&self, tag: &TagName) -> Result<usize, Failure> {
        let name = tag.to_string().replace('/', "%2F").replace(':', "%3A");
        let path = format!("/remotes/tags/{name}");
        let mut failure = Failure::Argument("name a build-index".into());
        for (url, index) in &self.0 {
            let told = index.post_for(&path, &()).await;
            match accepted(url, told).await {
                Ok(bytes) => return parse::<Sending>(url, &bytes).map(|it| it.remotes),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

async fn read<T: serde::de::DeserializeOwned>(
    url: &str,
    said: Result<HttpResponse, ApiError>,
) -> Result<T, Failure> {
    let said = said.map_err(|error| failed(url, &error))?;
    let bytes = said.bytes(MOST).await;
    parse(url, &bytes.map_err(|error| failed(url, &error))?)
}

fn parse<T: serde::de::DeserializeOwned>(url: &str, bytes: &[u8]) -> Result<T, Failure> {
    let read = serde_json::from_slice(bytes);
    read.map_err(|error| Failure::Registry(format!("{url}: {error}")))
}

/// What was answered, if that says that it was done; otherwise what the build-index says is wrong.
async fn accepted(url: &str, said: Result<HttpResponse, ApiError>) -> Result<Bytes, Failure> {
    let said = said.map_err(|error| failed(url, &error))?;
    let status = said.status();
    let bytes = said.bytes(MOST).await;
    let bytes = bytes.map_err(|error| failed(url, &error))?;
    if status.is_success() {
        return Ok(bytes);
    }
    let refusal = parse::<Refusal>(url, &bytes);
    let reason = refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error.message);
    Err(Failure::Registry(format!("{url}: {reason}")))
}

fn failed(url: &str, error: &ApiError) -> Failure {
    let said = silence(&error.to_string());
    let what = match said.starts_with(url) {
        true => said,
        false => format!("{url}: {said}"),
    };
    if error.is_retryable() {
        Failure::Away(what)
    } else {
        Failure::Registry(what)
    }
}

/// One line for each build-index and cluster.
pub fn table(parts: &[Part]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "CLUSTER",
        "BUILD-INDEX",
        "WAITING",
        "SINCE",
        "SENT",
        "LAST ERROR",
    ]);
    for Part {
        build_index,
        remote,
    } in parts
    {
        let direction = match remote.direction {
            Direction::FetchedThere => Some("it fetches"),
            Direction::FetchedHere => Some("fetched from there"),
            _ => None,
        };
        let state = match (remote.is_paused, remote.is_closed) {
            (true, _) => Some("paused"),
            (false, true) => Some("outside its hours"),
            (false, false) => None,
        };
        let notes: Vec<_> = direction.into_iter().chain(state).collect();
        let notes = match notes.is_empty() {
            true => String::new(),
            false => format!(" ({})", notes.join(", ")),
        };
        let refused = remote
            .refused
            .iter()
            .map(|it| format!("{}: {}", it.name, it.reason));
        let errors = refused.chain(remote.last_error.clone());
        let errors: Vec<String> = errors.map(|it| it.chars().take(WIDTH).collect()).collect();
        table.add_row([
            format!("{}{notes}", remote.name),
            build_index.clone(),
            remote.waiting.to_string(),
            format!("{} s", remote.oldest_seconds),
            format!(
                "{} blobs, {}",
                remote.sent_blobs,
                bytesize::ByteSize(remote.sent_bytes)
            ),
            errors.join("\n"),
        ]);
    }
    table
}

/// Whether all was taken, and all answered.
///
/// # Errors
/// Something was refused, or a build-index does not answer.
pub fn check(parts: &[Part], silent: Vec<Failure>) -> Result<(), Failure> {
    all(silent)?;
    let refused: usize = parts.iter().map(|part| part.remote.refused.len()).sum();
    if refused == 0 {
        return Ok(());
    }
    let what = format!("{refused} were refused, see what is said of each");
    Err(Failure::Registry(what))
}

fn all(failures: Vec<Failure>) -> Result<(), Failure> {
    if failures.is_empty() {
        return Ok(());
    }
    let reasons: Vec<_> = failures.iter().map(ToString::to_string).collect();
    let reasons = reasons.join("; ");
    match failures.iter().any(|it| matches!(it, Failure::Away(_))) {
        true => Err(Failure::Away(reasons)),
        false => Err(Failure::Registry(reasons)),
    }
}
