//! Boxed twins of the traits, so that handles are not generic. One small allocation per piece is
//! nothing beside its bytes.

use std::collections::HashSet;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kraken_net::{Discovery, DiscoveryError, Frame, NetError, PeerConn, Throttle, Transport};
use kraken_proto::cache::ledger::Kept;
use kraken_proto::tracker::report::HostReport;
use kraken_proto::{
    AnnounceReply, AnnounceRequest, Bitfield, Digest, MetaInfo, Namespace, PeerId, PeerInfo,
};
#[cfg(all(feature = "http", feature = "fs"))]
use kraken_storage::UploadStore;
use kraken_storage::{BlobStatus, Goal, Need, PieceStore, StoreError};

/// [`PieceStore`], boxed.
pub(crate) trait DynStore: Send + Sync + 'static {
    fn status(&self, digest: Digest) -> BoxFuture<'_, Result<BlobStatus, StoreError>>;
    fn open(&self, meta: MetaInfo) -> BoxFuture<'_, Result<Bitfield, StoreError>>;
    fn write(
        &self,
        digest: Digest,
        piece: u32,
        data: Bytes,
    ) -> BoxFuture<'_, Result<(), StoreError>>;
    fn read(
        &self,
        digest: Digest,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>>;
    fn file(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Arc<File>>, StoreError>>;
    fn damaged(&self) -> BoxFuture<'_, Digest>;
    fn seal(&self, digest: Digest) -> BoxFuture<'_, Result<(), StoreError>>;
    fn remove(&self, digest: Digest) -> BoxFuture<'_, Result<(), StoreError>>;
    fn discard(&self, digest: Digest) -> BoxFuture<'_, Result<(), StoreError>>;
    fn list(&self) -> BoxFuture<'_, Result<Vec<Digest>, StoreError>>;
    fn victims<'a>(
        &'a self,
        need: Need<'a>,
        spared: &'a HashSet<Digest>,
    ) -> BoxFuture<'a, Result<Vec<Digest>, StoreError>>;
    fn surplus<'a>(
        &'a self,
        goal: Goal,
        spared: &'a HashSet<Digest>,
    ) -> BoxFuture<'a, Result<Vec<Digest>, StoreError>>;
    fn kept(&self, digest: Digest) -> Option<Kept>;
    #[cfg(all(feature = "http", feature = "fs"))]
    fn usage(&self) -> Option<kraken_storage::Usage>;
    fn note_uses(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

impl<T: PieceStore> DynStore for T {
    fn status(&self, digest: Digest) -> BoxFuture<'_, Result<BlobStatus, StoreError>> {
        PieceStore::status(self, digest).boxed()
    }
    fn open(&self, meta: MetaInfo) -> BoxFuture<'_, Result<Bitfield, StoreError>> {
        PieceStore::open(self, meta).boxed()
    }
    fn write(
        &self,
        digest: Digest,
        piece: u32,
        data: Bytes,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        PieceStore::write(self, digest, piece, data).boxed()
    }
    fn read(
        &self,
        digest: Digest,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        PieceStore::read(self, digest, offset, len).boxed()
    }
    fn file(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Arc<File>>, StoreError>> {
        PieceStore::file(self, digest).boxed()
    }
    fn damaged(&self) -> BoxFuture<'_, Digest> {
        PieceStore::damaged(self).boxed()
    }
    fn seal(&self, digest: Digest) -> BoxFuture<'_, Result<(), StoreError>> {
        PieceStore::seal(self, digest).boxed()
    }
    fn remove(&self, digest: Digest) -> BoxFuture<'_, Result<(), StoreError>> {
        PieceStore::remove(self, digest).boxed()
    }
    fn discard(&self, digest: Digest) -> BoxFuture<'_, Result<(), StoreError>> {
        PieceStore::discard(self, digest).boxed()
    }
    fn list(&self) -> BoxFuture<'_, Result<Vec<Digest>, StoreError>> {
        PieceStore::list(self).boxed()
    }
    fn victims<'a>(
        &'a self,
        need: Need<'a>,
        spared: &'a HashSet<Digest>,
    ) -> BoxFuture<'a, Result<Vec<Digest>, StoreError>> {
        PieceStore::victims(self, need, spared).boxed()
    }
    fn surplus<'a>(
        &'a self,
        goal: Goal,
        spared: &'a HashSet<Digest>,
    ) -> BoxFuture<'a, Result<Vec<Digest>, StoreError>> {
        PieceStore::surplus(self, goal, spared).boxed()
    }
    fn kept(&self, digest: Digest) -> Option<Kept> {
        PieceStore::kept(self, digest)
    }
    #[cfg(all(feature = "http", feature = "fs"))]
    fn usage(&self) -> Option<kraken_storage::Usage> {
        PieceStore::usage(self)
    }
    fn note_uses(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        PieceStore::note_uses(self).boxed()
    }
}

/// [`UploadStore`], boxed.
#[cfg(all(feature = "http", feature = "fs"))]
pub(crate) trait DynUploadStore: DynStore {
    fn upload_start(&self) -> BoxFuture<'_, Result<String, StoreError>>;
    fn upload_len<'a>(&'a self, upload: &'a str) -> BoxFuture<'a, Result<u64, StoreError>>;
    fn upload_append<'a>(
        &'a self,
        upload: &'a str,
        offset: u64,
        data: Bytes,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;
    fn upload_commit<'a>(
        &'a self,
        upload: &'a str,
        expected: Digest,
    ) -> BoxFuture<'a, Result<MetaInfo, StoreError>>;
    fn upload_abort<'a>(&'a self, upload: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;
}

#[cfg(all(feature = "http", feature = "fs"))]
impl<T: UploadStore> DynUploadStore for T {
    fn upload_start(&self) -> BoxFuture<'_, Result<String, StoreError>> {
        UploadStore::upload_start(self).boxed()
    }
    fn upload_len<'a>(&'a self, upload: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        UploadStore::upload_len(self, upload).boxed()
    }
    fn upload_append<'a>(
        &'a self,
        upload: &'a str,
        offset: u64,
        data: Bytes,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        UploadStore::upload_append(self, upload, offset, data).boxed()
    }
    fn upload_commit<'a>(
        &'a self,
        upload: &'a str,
        expected: Digest,
    ) -> BoxFuture<'a, Result<MetaInfo, StoreError>> {
        UploadStore::upload_commit(self, upload, expected).boxed()
    }
    fn upload_abort<'a>(&'a self, upload: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        UploadStore::upload_abort(self, upload).boxed()
    }
}

/// [`PeerConn`], boxed.
pub(crate) trait DynConn: Send + Sync + 'static {
    fn peer(&self) -> PeerId;
    fn remote_addr(&self) -> SocketAddr;
    fn send(&self, frame: Frame) -> BoxFuture<'_, Result<(), NetError>>;
    fn ready(&self, bytes: usize) -> BoxFuture<'_, Result<(), NetError>>;
    fn recv(&self) -> BoxFuture<'_, Result<Frame, NetError>>;
    fn close(&self, reason: &str);
}

impl<T: PeerConn> DynConn for T {
    fn peer(&self) -> PeerId {
        PeerConn::peer(self)
    }
    fn remote_addr(&self) -> SocketAddr {
        PeerConn::remote_addr(self)
    }
    fn send(&self, frame: Frame) -> BoxFuture<'_, Result<(), NetError>> {
        PeerConn::send(self, frame).boxed()
    }
    fn ready(&self, bytes: usize) -> BoxFuture<'_, Result<(), NetError>> {
        PeerConn::ready(self, bytes).boxed()
    }
    fn recv(&self) -> BoxFuture<'_, Result<Frame, NetError>> {
        PeerConn::recv(self).boxed()
    }
    fn close(&self, reason: &str) {
        PeerConn::close(self, reason);
    }
}

/// [`Transport`], boxed.
pub(crate) trait DynTransport: Send + Sync + 'static {
    fn local_id(&self) -> PeerId;
    fn local_addr(&self) -> SocketAddr;
    fn dial(&self, peer: PeerInfo) -> BoxFuture<'_, Result<Arc<dyn DynConn>, NetError>>;
    fn accept(&self) -> BoxFuture<'_, Result<Arc<dyn DynConn>, NetError>>;
    fn throttle(&self) -> &Throttle;
    fn offload(&self) -> Option<bool>;
    fn close(&self);
}

impl<T: Transport> DynTransport for T {
    fn local_id(&self) -> PeerId {
        Transport::local_id(self)
    }
    fn local_addr(&self) -> SocketAddr {
        Transport::local_addr(self)
    }
    fn dial(&self, peer: PeerInfo) -> BoxFuture<'_, Result<Arc<dyn DynConn>, NetError>> {
        async move {
            let conn = Transport::dial(self, &peer).await?;
            Ok(Arc::new(conn) as Arc<dyn DynConn>)
        }
        .boxed()
    }
    fn accept(&self) -> BoxFuture<'_, Result<Arc<dyn DynConn>, NetError>> {
        async move { Ok(Arc::new(Transport::accept(self).await?) as Arc<dyn DynConn>) }.boxed()
    }
    fn throttle(&self) -> &Throttle {
        Transport::throttle(self)
    }
    fn offload(&self) -> Option<bool> {
        Transport::offload(self)
    }
    fn close(&self) {
        Transport::close(self);
    }
}

/// [`Discovery`], boxed.
pub(crate) trait DynDiscovery: Send + Sync + 'static {
    fn announce(
        &self,
        request: AnnounceRequest,
    ) -> BoxFuture<'_, Result<AnnounceReply, DiscoveryError>>;
    fn open_metainfo<'a>(
        &'a self,
        namespace: &'a Namespace,
        digest: Digest,
        known: Option<MetaInfo>,
    ) -> BoxFuture<'a, Result<MetaInfo, DiscoveryError>>;
    fn report(&self, report: HostReport)
    -> BoxFuture<'_, Result<Option<Duration>, DiscoveryError>>;
}

impl<T: Discovery> DynDiscovery for T {
    fn announce(
        &self,
        request: AnnounceRequest,
    ) -> BoxFuture<'_, Result<AnnounceReply, DiscoveryError>> {
        Discovery::announce(self, request).boxed()
    }
    fn open_metainfo<'a>(
        &'a self,
        namespace: &'a Namespace,
        digest: Digest,
        known: Option<MetaInfo>,
    ) -> BoxFuture<'a, Result<MetaInfo, DiscoveryError>> {
        Discovery::open_metainfo(self, namespace, digest, known).boxed()
    }
    fn report(
        &self,
        report: HostReport,
    ) -> BoxFuture<'_, Result<Option<Duration>, DiscoveryError>> {
        Discovery::report(self, report).boxed()
    }
}
