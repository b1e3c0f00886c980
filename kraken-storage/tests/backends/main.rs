//! The behaviour suite over every backend, against real servers that the tests start.
//!
//! The servers are found under `KRAKEN_TEST_SERVERS`, or `target/servers` of the workspace, where
//! `.ci/servers` puts them, and on the path. A test whose server is not there says so and passes;
//! with `KRAKEN_REQUIRE_SERVERS=1` it fails instead, unless `.ci/servers` noted that it could not be fetched.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod object_stores;
mod servers;
mod web;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_proto::{Digest, Namespace};
use kraken_storage::testkit::{self, FaultyProxy};
use kraken_storage::{Backend, ByteStream, OpendalBackend};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// More than any server puts on one page.
const MANY: usize = 1_100;

/// Several chunks of a backend's, and no multiple of any.
fn large() -> (Digest, Vec<u8>) {
    let bytes = testkit::bytes((9 << 20) + 12_345, 77);
    (Digest::of(&bytes), bytes)
}

fn stream(bytes: &[u8]) -> ByteStream {
    futures::stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed()
}

/// A client for what a test has to do itself.
fn client() -> reqwest::Client {
    let provider = rustls::crypto::ring::default_provider();
    let tls = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls);
    client.build().unwrap()
}

/// Writes a blob to the server and reads it through a proxy that spoils it.
async fn survives_faults<B: Backend>(server: SocketAddr, make: impl Fn(SocketAddr) -> B) {
    let (digest, bytes) = large();
    let name = Namespace::default();
    let direct = make(server);
    let written = direct.write(&name, digest, bytes.len() as u64, stream(&bytes));
    written.await.unwrap();
    let proxy = FaultyProxy::before(server).await.unwrap();
    let spoilt = make(proxy.addr());
    testkit::backend_survives_faults(&spoilt, &name, &proxy, (digest, &bytes)).await;
}

#[tokio::test]
async fn local_disk() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    let make = async || {
        next.set(next.get() + 1);
        OpendalBackend::local_disk(dir.path().join(next.get().to_string())).unwrap()
    };
    testkit::backend_conforms(make).await;
    testkit::backend_lists(&make().await, MANY).await;
}
