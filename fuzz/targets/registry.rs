//! Bytes to the port of a registry that takes pushes: HTTP in any state of repair, names, digests,
//! ranges, manifests, chunks. Nothing panics, and nothing that a client sends is answered with the
//! blame on the server (5xx).

#![no_main]

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use kraken_net::http::{self, HttpServer};
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::PullState;
use kraken_registry::push::{self, PushState};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Longer than any answer takes that does not wait for the client, whose side is closed.
const PATIENCE: Duration = Duration::from_secs(10);

thread_local! {
    static FACE: RefCell<Option<Face>> = const { RefCell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    FACE.with_borrow_mut(|face| face.get_or_insert_with(Face::begin).send(bytes));
});

struct Face {
    runtime: Runtime,
    server: HttpServer,
    registry: Arc<Mutex<Router>>,
}

/// A registry that holds nothing.
fn empty() -> Router {
    let blobs = MemoryBlobs::default();
    let pulls = PullState::new(blobs.clone(), MemoryTags::default());
    push::router(PushState::new(pulls, blobs))
}

impl Face {
    fn begin() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let registry = Arc::new(Mutex::new(empty()));
        let current = registry.clone();
        let answer =
            move |request: Request| answer(current.lock().expect("whole").clone(), request);
        let router = Router::new().fallback(answer);
        let server = runtime.block_on(async {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            http::serve(addr, router, None, CancellationToken::new()).expect("a port is free")
        });
        Self {
            runtime,
            server,
            registry,
        }
    }

    /// Sends the bytes as all that a client ever says, to a registry of its own.
    fn send(&mut self, bytes: &[u8]) {
        *self.registry.lock().expect("whole") = empty();
        let addr = self.server.local_addr();
        let conversation = async {
            let mut stream = TcpStream::connect(addr).await.expect("it listens");
            // The server may close before it has read everything.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let done = async { tokio::time::timeout(PATIENCE, conversation).await };
        let done = self.runtime.block_on(done);
        done.expect("it answers, or closes the connection");
    }
}

async fn answer(registry: Router, request: Request) -> Response {
    let asked = format!("{} {}", request.method(), request.uri());
    let Ok(response) = registry.oneshot(request).await;
    let status = response.status();
    assert!(
        !status.is_server_error(),
        "{asked} is answered with {status}"
    );
    response
}
