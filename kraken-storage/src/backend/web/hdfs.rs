//! HDFS over WebHDFS, Hadoop's HTTP interface.
//!
//! A name node knows names, data nodes have the bytes: a request for bytes is answered with a
//! redirect. Of several name nodes one is active; the others answer 403 or not at all.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use http::StatusCode;
use http::header::LOCATION;
use kraken_proto::{Digest, Namespace};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, Url};
use serde::Deserialize;

use super::requests::{Requests, refused};
use super::{client, client_with, resume};
use crate::backend::{Backend, BackendError, ByteStream, Layout};

/// An HDFS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WebHdfsOptions {
    /// The name nodes, such as `http://namenode-1:9870`; asked in their order, from the one that
    /// answered last.
    pub namenodes: Vec<String>,
    /// The directory that blobs lie under.
    pub root: String,
    /// The user that requests name; there is no password (simple authentication).
    #[serde(default)]
    pub user: Option<String>,
}

impl WebHdfsOptions {
    /// The name nodes, such as `http://namenode-1:9870`, and the directory that blobs lie under.
    pub fn new(namenodes: Vec<String>, root: impl Into<String>) -> Self {
        Self {
            namenodes,
            root: root.into(),
            user: None,
        }
    }
}

/// Keeps blobs in an HDFS. Clones share its connections.
#[derive(Debug, Clone)]
pub struct WebHdfsBackend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    namenodes: Vec<Url>,
    /// The name node that answered last.
    active: AtomicUsize,
    root: String,
    user: Option<String>,
    layout: Layout,
    requests: Requests,
    /// Follows no redirect: where a body goes has to be asked for first.
    direct: reqwest::Client,
}

/// Where blobs are written before they get their names.
const UPLOADS: &str = "_uploads";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StatusAnswer {
    file_status: FileStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListAnswer {
    file_statuses: Statuses,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statuses {
    file_status: Vec<FileStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileStatus {
    length: u64,
    path_suffix: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RemoteAnswer {
    remote_exception: RemoteException,
}

#[derive(Deserialize)]
struct RemoteException {
    exception: String,
    message: String,
}

/// Why a name node refuses.
enum Refusal {
    /// Another is active.
    Standby,
    /// It will refuse again.
    Denied(BackendError),
    /// It may not later.
    Passing(BackendError),
}

#[derive(Deserialize)]
struct Done {
    boolean: bool,
}

impl WebHdfsBackend {
    /// A request's answer, and each part of a body, may take `timeout`.
    ///
    /// # Errors
    /// No name node is given, or one's URL is none.
    pub fn new(
        options: WebHdfsOptions,
        layout: Layout,
        timeout: Duration,
    ) -> Result<Self, BackendError> {
        let wrong = |why: String| BackendError::Denied(format!("webhdfs: {why}"));
        if options.namenodes.is_empty() {
            return Err(wrong("namenodes: name at least one".into()));
        }
        let parse = |text: &String| {
            Url::parse(text).map_err(|error| wrong(format!("namenodes: {text:?}: {error}")))
        };
        let namenodes: Result<Vec<_>, _> = options.namenodes.iter().map(parse).collect();
        let root = options.root.trim_end_matches('/');
        if !root.is_empty() && !root.starts_with('/') {
            return Err(wrong(format!("root: {root:?} does not begin with a slash")));
        }
        Ok(Self(Arc::new(Inner {
            namenodes: namenodes?,
            active: AtomicUsize::new(0),
            root: root.to_string(),
            user: options.user,
            layout,
            requests: Requests::new(client(None)?, timeout),
            direct: client_with(None, Policy::none())?,
        })))
    }
}

impl Inner {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn url(&self, namenode: &Url, path: &str, pairs: &[(&str, &str)]) -> Url {
        let mut url = namenode.clone();
        let base = namenode.path().trim_end_matches('/');
        url.set_path(&format!("{base}/webhdfs/v1{path}"));
        let mut query = url.query_pairs_mut();
        query.extend_pairs(pairs);
        if let Some(user) = &self.user {
            query.append_pair("user.name", user);
        }
        drop(query);
        url
    }

    /// Asks the name nodes in turn until one is active.
    async fn ask(
        &self,
        (client, method): (&reqwest::Client, Method),
        path: &str,
        pairs: &[(&str, &str)],
    ) -> Result<Response, BackendError> {
        let first = self.active.load(Ordering::Relaxed);
        let mut failed = None;
        for step in 0..self.namenodes.len() {
            let at = (first + step) % self.namenodes.len();
            let url = self.url(&self.namenodes[at], path, pairs);
            let make = |_: &reqwest::Client| client.request(method.clone(), url.clone());
            match self.requests.send(make).await {
                Ok(response) if response.status() == StatusCode::FORBIDDEN => {
                    match self.told(response).await {
                        Refusal::Standby => {}
                        Refusal::Denied(error) => return Err(error),
                        Refusal::Passing(error) => failed = failed.or(Some(error)),
                    }
                }
                Ok(response) => {
                    self.active.store(at, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed
            .unwrap_or_else(|| BackendError::Unavailable("all name nodes are standbys".into())))
    }

    /// What a 403 means: name nodes say so to nearly everything that is wrong with them.
    async fn told(&self, response: Response) -> Refusal {
        let bare = refused(&response);
        let Ok(answer) = self.requests.json::<RemoteAnswer>(response).await else {
            return Refusal::Denied(bare);
        };
        let RemoteException { exception, message } = answer.remote_exception;
        let text = format!("{exception}: {message}");
        match exception.as_str() {
            "StandbyException" => Refusal::Standby,
            "AccessControlException" | "AuthorizationException" | "SecurityException" => {
                Refusal::Denied(BackendError::Denied(text))
            }
            _ => Refusal::Passing(BackendError::Unavailable(text)),
        }
    }

    async fn command(
        &self,
        method: Method,
        path: &str,
        pairs: &[(&str, &str)],
    ) -> Result<bool, BackendError> {
        let asked = self.ask((&self.requests.client, method), path, pairs);
        let response = asked.await?;
        if !response.status().is_success() {
            return Err(refused(&response));
        }
        let done: Done = self.requests.json(response).await?;
        Ok(done.boolean)
    }

    async fn status(&self, path: &str) -> Result<Option<FileStatus>, BackendError> {
        let pairs = [("op", "GETFILESTATUS")];
        let asked = self.ask((&self.requests.client, Method::GET), path, &pairs);
        let response = asked.await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let answer: StatusAnswer = self.requests.json(response).await?;
                Ok(Some(answer.file_status))
            }
            _ => Err(refused(&response)),
        }
    }

    async fn names(&self, path: &str) -> Result<Vec<FileStatus>, BackendError> {
        let pairs = [("op", "LISTSTATUS")];
        let asked = self.ask((&self.requests.client, Method::GET), path, &pairs);
        let response = asked.await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            status if status.is_success() => {
                let answer: ListAnswer = self.requests.json(response).await?;
                Ok(answer.file_statuses.file_status)
            }
            _ => Err(refused(&response)),
        }
    }

    async fn open(&self, digest: Digest, range: Range<u64>) -> Result<ByteStream, BackendError> {
        let path = self.path(&self.layout.path(digest));
        let (offset, length) = (
            range.start.to_string(),
            (range.end - range.start).to_string(),
        );
        let pairs = [("op", "OPEN"), ("offset", &offset), ("length", &length)];
        let asked = self.ask((&self.requests.client, Method::GET), &path, &pairs);
        let response = asked.await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(BackendError::NotFound(digest)),
            status if status.is_success() => Ok(self.requests.body(response)),
            _ => Err(refused(&response)),
        }
    }

    /// Writes a file under a name of its own.
    async fn create(
        &self,
        path: &str,
        (digest, length): (Digest, u64),
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let pairs = [("op", "CREATE"), ("overwrite", "true")];
        let response = self.ask((&self.direct, Method::PUT), path, &pairs).await?;
        let place = response.headers().get(LOCATION);
        let place = place.and_then(|place| Url::parse(place.to_str().ok()?).ok());
        let Some(place) = place.filter(|_| response.status() == StatusCode::TEMPORARY_REDIRECT)
        else {
            return Err(refused(&response));
        };
        let seen = Arc::new(Seen::default());
        let body = counted(bytes, length, Arc::clone(&seen));
        // In chunks: of a body with a length nobody looks at what comes behind it.
        let request = self.direct.put(place);
        let sent = self
            .requests
            .stream(request.body(reqwest::Body::wrap_stream(body)));
        let sent = self.while_it_moves(sent, &seen).await;
        // What is wrong with the bytes counts, not that the connection broke for it.
        if let Some(error) = seen.failure() {
            return Err(error);
        }
        let (found, ended) = seen.so_far();
        if found > length || (ended && found < length) {
            return Err(BackendError::Length {
                digest,
                expected: length,
                found,
            });
        }
        let response = sent?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(refused(&response)),
        }
    }

    /// Waits for an upload as long as bytes are taken of it.
    async fn while_it_moves(
        &self,
        sent: impl Future<Output = Result<Response, BackendError>>,
        seen: &Seen,
    ) -> Result<Response, BackendError> {
        let mut sent = std::pin::pin!(sent);
        loop {
            let before = seen.so_far();
            match tokio::time::timeout(self.requests.patience(), &mut sent).await {
                Ok(sent) => return sent,
                Err(_) if seen.so_far() != before => {}
                Err(_) => {
                    let told = "a data node takes no more bytes".to_string();
                    return Err(BackendError::Unavailable(told));
                }
            }
        }
    }

    /// Gives the file `from` the name `to`.
    async fn rename(&self, from: &str, to: &str, length: u64) -> Result<(), BackendError> {
        let dir = to.rsplit_once('/').map_or("/", |(dir, _)| dir);
        self.command(Method::PUT, dir, &[("op", "MKDIRS")]).await?;
        let pairs = [("op", "RENAME"), ("destination", to)];
        for _ in 0..2 {
            if self.command(Method::PUT, from, &pairs).await? {
                return Ok(());
            }
            // HDFS renames over nothing. What has the right length is the blob, by another's hand.
            match self.status(to).await? {
                Some(there) if there.length == length => {
                    self.remove(from).await?;
                    return Ok(());
                }
                _ => self.remove(to).await?,
            }
        }
        let told = format!("{from} cannot be renamed to {to}");
        Err(BackendError::Other(told))
    }

    async fn remove(&self, path: &str) -> Result<(), BackendError> {
        let deleted = self.command(Method::DELETE, path, &[("op", "DELETE")]);
        deleted.await.map(drop)
    }
}

/// What was taken of a body.
#[derive(Debug, Default)]
struct Seen(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    bytes: u64,
    ended: bool,
    failure: Option<BackendError>,
}

impl Seen {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes, and whether they are all that there are.
    fn so_far(&self) -> (u64, bool) {
        let taken = self.taken();
        (taken.bytes, taken.ended)
    }

    fn failure(&self) -> Option<BackendError> {
        self.taken().failure.take()
    }
}

/// The bytes as a body, ended by an error where they end by one or are too many.
fn counted(
    bytes: ByteStream,
    length: u64,
    seen: Arc<Seen>,
) -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static {
    let end = Arc::clone(&seen);
    let bytes = bytes.map(move |chunk| {
        let mut taken = seen.taken();
        match chunk {
            Ok(chunk) => {
                taken.bytes += chunk.len() as u64;
                match taken.bytes > length {
                    true => Err(std::io::Error::other("more bytes than were promised")),
                    false => Ok(chunk),
                }
            }
            Err(error) => {
                let told = error.to_string();
                taken.failure = Some(error);
                Err(std::io::Error::other(told))
            }
        }
    });
    let ended = futures::stream::poll_fn(move |_| {
        end.taken().ended = true;
        std::task::Poll::Ready(None)
    });
    bytes.chain(ended)
}

impl Backend for WebHdfsBackend {
    async fn stat(&self, _: &Namespace, digest: Digest) -> Result<Option<u64>, BackendError> {
        let path = self.0.path(&self.0.layout.path(digest));
        let status = self.0.status(&path).await?;
        Ok(status.map(|status| status.length))
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let length = self.stat(namespace, digest).await?;
        let length = length.ok_or(BackendError::NotFound(digest))?;
        let inner = Arc::clone(&self.0);
        let open = move |range| {
            let inner = Arc::clone(&inner);
            async move { inner.open(digest, range).await }.boxed()
        };
        resume::resuming(range, length, Box::new(open)).await
    }

    async fn write(
        &self,
        _: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let upload = uuid::Uuid::now_v7();
        let upload = self.0.path(&format!("{UPLOADS}/{upload}"));
        let to = self.0.path(&self.0.layout.path(digest));
        let written = self.0.create(&upload, (digest, length), bytes).await;
        let named = match written {
            Ok(()) => self.0.rename(&upload, &to, length).await,
            Err(error) => Err(error),
        };
        if named.is_err()
            && let Err(error) = self.0.remove(&upload).await
        {
            tracing::warn!(%error, upload, "what was written of a blob cannot be removed");
        }
        named
    }

    async fn delete(&self, _: &Namespace, digest: Digest) -> Result<(), BackendError> {
        let path = self.0.path(&self.0.layout.path(digest));
        self.0.remove(&path).await?;
        if let (Some((dir, _)), true) = (path.rsplit_once('/'), self.0.layout != Layout::Identity) {
            // Its own directory stands for it in lists. One that is not empty stays.
            let removed = self.0.remove(dir).await;
            if let Err(error @ BackendError::Unavailable(_)) = removed {
                tracing::debug!(%error, dir, "a blob's directory stays");
            }
        }
        Ok(())
    }

    async fn list(
        &self,
        _: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        let layout = self.0.layout;
        let first = after.map(|after| layout.path(after));
        let mut found = Vec::new();
        for shard in layout.shards() {
            let is_over = |path: &String| shard < *path && !path.starts_with(&shard);
            if first.as_ref().is_some_and(is_over) {
                continue;
            }
            let path = self.0.path(&shard);
            let names = self.0.names(path.trim_end_matches('/')).await?;
            let kept = match layout {
                Layout::Identity => "FILE",
                Layout::Sharded | Layout::DockerRegistry => "DIRECTORY",
            };
            let names = names.iter().filter(|name| name.kind == kept);
            let digests =
                names.filter_map(|name| layout.digest_of_entry(&shard, &name.path_suffix));
            let mut digests: Vec<_> = digests
                .filter(|digest| after.is_none_or(|after| *digest > after))
                .collect();
            digests.sort_unstable();
            found.extend(digests);
            if found.len() >= most {
                found.truncate(most);
                break;
            }
        }
        Ok(found)
    }

    async fn ready(&self) -> Result<(), BackendError> {
        match self.0.status("/").await? {
            Some(_) => Ok(()),
            None => Err(BackendError::Denied(
                "nothing is at the name nodes' URLs: are they those of WebHDFS?".into(),
            )),
        }
    }
}
