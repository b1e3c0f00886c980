//! Serving without TLS, for clients of this host: bodies that lie in a file go from the page cache
//! to the socket by `sendfile(2)`, without a copy through this process.
//!
//! A copy out of the page cache and one into the socket are most of what serving a cached blob
//! costs, and an HTTP library that only knows bytes in memory can avoid neither. So a connection
//! begins here, in a loop that answers plain `GET`s and `HEAD`s itself. Whatever else comes (a body,
//! an upgrade, HTTP/2, a head that is odd or broken) goes to hyper with the connection and all that
//! was read of it.

mod connection;
mod file;
mod head;
mod rewound;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use self::connection::Connection;
pub use self::file::FileBody;
use self::rewound::Rewound;
use super::bounded::Bounded;
use super::server::{DRAIN, tune};
use crate::gate::{Gate, Pass};

/// How long accepting pauses after the system refused: it is out of descriptors, mostly.
const REFUSED: Duration = Duration::from_millis(100);

/// Connections that may wait for a request's head; one more ends the one that waits longest, of the
/// address that has the most.
const MAX_WAITING: usize = 4096;

/// Accepts until `shutdown`, and waits until the requests are done, at most [`DRAIN`] longer.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    places: Gate,
    connections: TaskTracker,
    shutdown: CancellationToken,
) {
    let cut = CancellationToken::new();
    let waiting = Gate::new(MAX_WAITING);
    let begin = |stream, client: SocketAddr| {
        let waiting = waiting.clone();
        let served = serve(stream, client, router.clone(), waiting, shutdown.clone());
        let served = places.enter(client.ip()).hold(served);
        connections.spawn(cut.clone().run_until_cancelled_owned(served));
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => begin(stream, client),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
    // Those that the system has taken in would be reset with the socket.
    match listener.into_std() {
        Ok(listener) => rest_of(&listener).for_each(|(stream, client)| begin(stream, client)),
        Err(error) => tracing::warn!(%error, "connections that wait are not served"),
    }
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait())
        .await
        .is_err()
    {
        cut.cancel();
        connections.wait().await;
    }
}

/// The connections that wait to be accepted. The socket does not block.
fn rest_of(listener: &std::net::TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let accept = || loop {
        match listener.accept() {
            Ok((stream, client)) => {
                let ready = stream.set_nonblocking(true);
                if let Ok(stream) = ready.and_then(|()| TcpStream::from_std(stream)) {
                    return Some((stream, client));
                }
            }
            // One that its client gave up; there may be others.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(_) => return None,
        }
    };
    std::iter::from_fn(accept)
}

/// One connection, until either side ends it.
async fn serve(
    stream: TcpStream,
    client: SocketAddr,
    router: Router,
    waiting: Gate,
    shutdown: CancellationToken,
) {
    // Heads and bodies are written whole; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let gate = waiting.clone();
    let connection = Connection::new(stream, client, router.clone(), gate, shutdown.clone());
    let result = match connection.run().await {
        Ok(Some(rewound)) => {
            let pass = waiting.enter(client.ip());
            by_hyper(rewound, client, router, pass, shutdown).await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a connection ended early");
    }
}

async fn by_hyper(
    stream: Rewound,
    client: SocketAddr,
    router: Router,
    pass: Pass,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let put_out = pass.put_out();
    let pass = Mutex::new(Some(pass));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        // It has asked for something: it is no stranger any more.
        pass.lock().unwrap_or_else(PoisonError::into_inner).take();
        request.extensions_mut().insert(ConnectInfo(client));
        router.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    tune(&mut builder);
    let stream = TokioIo::new(Bounded::new(stream, None));
    let served = builder.serve_connection(stream, service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // What has been read of a request is to be answered before it is asked to end.
        biased;
        result = served.as_mut() => return result,
        () = put_out.cancelled() => return Ok(()),
        () = shutdown.cancelled() => {}
    }
    served.as_mut().graceful_shutdown();
    served.await
}

#[cfg(test)]
mod tests;
