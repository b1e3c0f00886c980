//! An origin in memory that can fail on demand.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use kraken_proto::ring::compare::Prints;
use kraken_proto::{Digest, MetaInfo, Namespace, PeerId, PeerInfo, PeerRole};
use tokio_util::sync::CancellationToken;

use crate::http::{ApiError, BaseUrl, HttpClient, HttpServer, serve};
use crate::origin::{
    BlobRead, Copies, GarbageAsked, GarbagePage, GarbageStep, Holdings, HoldingsAsked, OriginApi,
    OriginClient, Prefetch, router,
};

#[derive(Default)]
pub(super) struct Fake {
    pub(super) blobs: Mutex<BTreeMap<Digest, Bytes>>,
    pub(super) uploads: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(super) delays: Mutex<Vec<Duration>>,
    /// The sizes of the portions in which bodies came.
    pub(super) portions: Mutex<Vec<usize>>,
    pub(super) down: AtomicBool,
    /// The "backend" does not answer.
    pub(super) is_cut_off: AtomicBool,
    /// No upload may begin.
    pub(super) refuses: Mutex<Option<ApiError>>,
    /// Reads break off after half of what they should give.
    pub(super) breaks: AtomicBool,
    pub(super) reads: AtomicUsize,
    next: AtomicUsize,
}

impl Fake {
    pub(super) fn with(blob: &[u8]) -> (Arc<Self>, Digest) {
        let (fake, digest) = (Arc::new(Self::default()), Digest::of(blob));
        fake.put(blob);
        (fake, digest)
    }

    pub(super) fn put(&self, blob: &[u8]) {
        let bytes = Bytes::copy_from_slice(blob);
        self.blobs.lock().unwrap().insert(Digest::of(blob), bytes);
    }

    fn blob(&self, digest: Digest) -> Result<Bytes, ApiError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(ApiError::Unavailable("down for a test".into()));
        }
        let blobs = self.blobs.lock().unwrap();
        blobs.get(&digest).cloned().ok_or(ApiError::NotFound)
    }

    fn finish(&self, id: &str, digest: Digest) -> Result<MetaInfo, ApiError> {
        let taken = self.uploads.lock().unwrap().remove(id);
        let bytes = taken.ok_or(ApiError::NotFound)?;
        if Digest::of(&bytes) != digest {
            return Err(ApiError::BadRequest("the digest is another".into()));
        }
        self.put(&bytes);
        Ok(MetaInfo::of(&bytes))
    }
}

impl OriginApi for Fake {
    async fn write_back(
        &self,
        _: &Namespace,
        digest: Digest,
        delay: Duration,
    ) -> Result<(), ApiError> {
        self.blob(digest)?;
        self.delays.lock().unwrap().push(delay);
        Ok(())
    }

    async fn writes_back(&self, _: &Namespace, digest: Digest) -> Result<bool, ApiError> {
        Ok(digest == Digest::of(b"unwritten"))
    }

    async fn holdings(&self, asked: HoldingsAsked) -> Result<Holdings, ApiError> {
        let digests = asked.members.iter().map(|it| Digest::of(it.as_bytes()));
        Ok(Holdings {
            prints: Prints::of(digests),
            strays: 3,
            blobs: Vec::new(),
        })
    }

    async fn holds(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, ApiError> {
        let held = digests
            .into_iter()
            .filter(|digest| self.blob(*digest).is_ok());
        Ok(held.collect())
    }

    async fn garbage(&self, asked: GarbageAsked) -> Result<Vec<Digest>, ApiError> {
        // It gives nothing up.
        Ok(match asked.step {
            GarbageStep::Release => asked.digests,
            _ => Vec::new(),
        })
    }

    async fn garbage_page(&self, _: GarbagePage) -> Result<Vec<Digest>, ApiError> {
        Ok(Vec::new())
    }

    fn places(&self, namespaces: &[Namespace]) -> Vec<Option<usize>> {
        namespaces.iter().map(|_| Some(0)).collect()
    }

    fn peer(&self) -> PeerInfo {
        PeerInfo {
            id: PeerId::from_bytes([9; 32]),
            addr: "10.0.0.9:7600".parse().unwrap(),
            role: PeerRole::Origin,
            zone: None,
        }
    }

    async fn locations(&self, _digest: Digest) -> Result<Vec<String>, ApiError> {
        Ok(vec!["https://one:1".into(), "https://two:2".into()])
    }

    async fn stat(
        &self,
        _namespace: &Namespace,
        digest: Digest,
        copies: Copies,
    ) -> Result<Option<u64>, ApiError> {
        match self.blob(digest) {
            Ok(blob) => Ok(Some(blob.len() as u64)),
            // The "backend" holds one blob that the "disk" does not.
            Err(ApiError::NotFound) if copies != Copies::Here => {
                if self.is_cut_off.load(Ordering::Relaxed) {
                    let what = "the backend sleeps".into();
                    return Err(ApiError::Behind { what, wait: None });
                }
                Ok((digest == Digest::of(b"backend")).then_some(7))
            }
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn metainfo(&self, _namespace: &Namespace, digest: Digest) -> Result<MetaInfo, ApiError> {
        Ok(MetaInfo::of(&self.blob(digest)?))
    }

    async fn read(
        &self,
        _namespace: &Namespace,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, ApiError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let blob = self.blob(digest)?;
        let length = blob.len() as u64;
        let range = range.unwrap_or(0..length);
        let part = blob.slice(range.start as usize..range.end as usize);
        let mut chunks: Vec<_> = part
            .chunks(1000)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        if self.breaks.load(Ordering::Relaxed) {
            chunks.truncate(chunks.len() / 2);
            chunks.push(Err(io::Error::other("broken for a test")));
        }
        Ok(BlobRead {
            length,
            body: futures::stream::iter(chunks).boxed(),
        })
    }

    async fn prefetch(&self, _namespace: &Namespace, digest: Digest) -> Result<Prefetch, ApiError> {
        if digest == Digest::of(b"backend") {
            return Ok(Prefetch::Started);
        }
        self.blob(digest).map(|_| Prefetch::Present)
    }

    fn check_uploads(&self) -> Result<(), ApiError> {
        self.refuses.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn upload_start(&self) -> Result<String, ApiError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(ApiError::Unavailable("down for a test".into()));
        }
        let id = format!("upload-{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.uploads.lock().unwrap().insert(id.clone(), Vec::new());
        Ok(id)
    }

    async fn upload_len(&self, id: &str) -> Result<u64, ApiError> {
        let uploads = self.uploads.lock().unwrap();
        let upload = uploads.get(id).ok_or(ApiError::NotFound)?;
        Ok(upload.len() as u64)
    }

    async fn upload_append(&self, id: &str, offset: u64, bytes: Bytes) -> Result<u64, ApiError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(ApiError::Unavailable("down for a test".into()));
        }
        let mut uploads = self.uploads.lock().unwrap();
        let upload = uploads.get_mut(id).ok_or(ApiError::NotFound)?;
        let len = upload.len() as u64;
        if offset != len {
            return Err(ApiError::RangeInvalid { len });
        }
        self.portions.lock().unwrap().push(bytes.len());
        upload.extend_from_slice(&bytes);
        Ok(upload.len() as u64)
    }

    async fn upload_commit(
        &self,
        id: &str,
        _namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        self.finish(id, digest)
    }

    async fn upload_commit_replica(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
        write_back_delay: Duration,
    ) -> Result<(), ApiError> {
        assert_eq!(namespace.as_str(), "library/busybox");
        self.delays.lock().unwrap().push(write_back_delay);
        self.finish(id, digest).map(drop)
    }

    async fn upload_abort(&self, id: &str) -> Result<(), ApiError> {
        let taken = self.uploads.lock().unwrap().remove(id);
        taken.map(drop).ok_or(ApiError::NotFound)
    }

    async fn remove(&self, digest: Digest) -> Result<(), ApiError> {
        if digest == Digest::of(b"needed") {
            return Err(ApiError::Conflict("not written back yet".into()));
        }
        let taken = self.blobs.lock().unwrap().remove(&digest);
        taken.map(drop).ok_or(ApiError::NotFound)
    }
}

/// An origin that listens.
pub(super) struct Origin {
    pub(super) fake: Arc<Fake>,
    pub(super) url: BaseUrl,
    pub(super) client: OriginClient,
    stop: CancellationToken,
    server: HttpServer,
}

impl Origin {
    pub(super) fn start(fake: Arc<Fake>) -> Self {
        let (any, stop) = ("127.0.0.1:0".parse().unwrap(), CancellationToken::new());
        let server = serve(any, router(fake.clone()), None, stop.clone()).unwrap();
        let url: BaseUrl = format!("http://{}", server.local_addr()).parse().unwrap();
        Self {
            fake,
            client: OriginClient::new(url.clone(), HttpClient::new(None).unwrap()),
            url,
            stop,
            server,
        }
    }

    pub(super) async fn kill(self) {
        self.stop.cancel();
        self.server.stopped().await.unwrap();
    }
}

pub(super) fn namespace() -> Namespace {
    "library/busybox".parse().unwrap()
}

pub(super) fn blob(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

pub(super) async fn collect(read: BlobRead) -> io::Result<Vec<u8>> {
    let mut stream = read.body;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}
