//! Serving a router: plain, or with TLS for holders of a certificate of the cluster.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::middleware::AddExtension;
use axum::response::IntoResponse;
use axum::routing::get;
use axum_server::Handle;
use axum_server::accept::Accept;
use axum_server::service::SendService;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bounded::{Bounded, room};
use super::caller::Members;
use super::error::shaped;
use super::patience;
use super::plain::run as run_plain;
use crate::gate::Gate;
use crate::identity::{Identity, IdentityError};

/// How long requests may go on after the shutdown began; then their connections are cut.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes that may run at once; one more ends the oldest of the address that has the most.
const MAX_HANDSHAKES: usize = 1024;
/// How long the head of a request may take.
pub(super) const HEAD: Duration = Duration::from_secs(30);
/// Bytes of the longest head of a request over HTTP/1, and of a body that are read at once.
const HTTP1_BUFFER: usize = 64 << 10;
/// Bytes of one HTTP/2 request's body on their way; HTTP/2's own 64 KiB throttle an upload.
const HTTP2_WINDOW: u32 = 4 << 20;
/// Bytes of an answer that wait for the client, of each of a connection's requests.
const HTTP2_WAITING: usize = 128 << 10;

/// A server that runs until its token is cancelled, also when this is dropped.
#[derive(Debug)]
pub struct HttpServer {
    addr: SocketAddr,
    open: Open,
    task: JoinHandle<std::io::Result<()>>,
}

/// Who knows the open connections.
#[derive(Debug)]
enum Open {
    Tls(Handle<SocketAddr>),
    Plain(TaskTracker),
}

impl HttpServer {
    /// Where it listens; the port is the real one even if zero was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        match &self.open {
            Open::Tls(handle) => handle.connection_count(),
            Open::Plain(tasks) => tasks.len(),
        }
    }

    /// Waits until it has drained, after the token that [`serve`] was given is cancelled.
    ///
    /// # Errors
    /// The listener broke.
    pub async fn stopped(self) -> Result<(), ServeError> {
        let addr = self.addr;
        let source = match self.task.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(source)) => source,
            Err(panic) => std::io::Error::other(panic),
        };
        Err(ServeError::Broken { addr, source })
    }
}

/// Serves `router` at `addr` until `shutdown` is cancelled and the requests are done, at most
/// [`DRAIN`] later.
///
/// With an identity, TLS 1.3 is required, and a client certificate of the cluster; requests carry a
/// [`Caller`](super::Caller), and [`admit`](super::admit) says which of them may do what. Without one
/// everything is plain: for clients of this host, a lab, or behind something else that does the
/// TLS. Then a response may name the file that its body is in, see [`FileBody`](super::FileBody).
///
/// # Errors
/// The address cannot be had, the identity cannot be used, or no tokio runtime is entered.
pub fn serve(
    addr: SocketAddr,
    router: Router,
    identity: Option<&Identity>,
    shutdown: CancellationToken,
) -> Result<HttpServer, ServeError> {
    let listener = TcpListener::bind(addr).map_err(|source| ServeError::Bind { addr, source })?;
    serve_on(listener, router, identity, shutdown)
}

/// As [`serve`], at a socket that listens already, such as one that outlives this process.
///
/// # Errors
/// The socket or the identity cannot be used.
pub fn serve_on(
    listener: TcpListener,
    router: Router,
    identity: Option<&Identity>,
    shutdown: CancellationToken,
) -> Result<HttpServer, ServeError> {
    serve_at_most(room(), listener, router, identity, shutdown)
}

/// The same with at most so many connections at once: one more ends the oldest of the address that has the most.
pub(super) fn serve_at_most(
    room: usize,
    listener: TcpListener,
    router: Router,
    identity: Option<&Identity>,
    shutdown: CancellationToken,
) -> Result<HttpServer, ServeError> {
    within_runtime()?;
    let bound = listener.local_addr();
    let bound = bound.map_err(|source| ServeError::Socket { source })?;
    let cannot = |source| ServeError::Bind {
        addr: bound,
        source,
    };
    listener.set_nonblocking(true).map_err(cannot)?;
    let router = patience::bound(router);
    let places = Gate::new(room);
    let (open, task) = match identity {
        None => plain(listener, router, places, shutdown).map_err(cannot)?,
        Some(identity) => {
            let config = identity.server_config(&[b"h2", b"http/1.1"])?;
            let members = Members {
                tls: acceptor(RustlsConfig::from_config(Arc::new(config))),
                identity: identity.clone(),
            };
            tls(listener, router, members, places, shutdown).map_err(cannot)?
        }
    };
    Ok(HttpServer {
        addr: bound,
        open,
        task,
    })
}

/// The same with TLS by another acceptor, which may tell the router more of a client.
pub(super) fn serve_by<A>(
    listener: TcpListener,
    router: Router,
    acceptor: A,
    shutdown: CancellationToken,
) -> Result<HttpServer, ServeError>
where
    A: Accepts,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send,
    A::Service: SendService<Request<Incoming>> + Send,
    A::Future: Send + 'static,
{
    within_runtime()?;
    let addr = listener.local_addr();
    let addr = addr.map_err(|source| ServeError::Socket { source })?;
    let cannot = |source| ServeError::Bind { addr, source };
    listener.set_nonblocking(true).map_err(cannot)?;
    let router = patience::bound(router);
    let places = Gate::new(room());
    let (open, task) = tls(listener, router, acceptor, places, shutdown).map_err(cannot)?;
    Ok(HttpServer { addr, open, task })
}

/// An error instead of tokio's panic.
fn within_runtime() -> Result<(), ServeError> {
    let entered = tokio::runtime::Handle::try_current();
    entered.map(drop).map_err(|_| ServeError::NoRuntime)
}

type Running = (Open, JoinHandle<std::io::Result<()>>);

fn plain(
    listener: TcpListener,
    router: Router,
    places: Gate,
    shutdown: CancellationToken,
) -> std::io::Result<Running> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let connections = TaskTracker::new();
    let open = Open::Plain(connections.clone());
    let task = tokio::spawn(async move {
        run_plain(listener, router, places, connections, shutdown).await;
        Ok(())
    });
    Ok((open, task))
}

/// A handshake of TLS, in bounded time.
pub(super) fn acceptor(config: RustlsConfig) -> RustlsAcceptor {
    RustlsAcceptor::new(config).handshake_timeout(HANDSHAKE)
}

/// What accepts connections for a router that is told where they come from.
pub(super) trait Accepts:
    Accept<TcpStream, AddExtension<Router, ConnectInfo<SocketAddr>>> + Clone + Send + Sync + 'static
{
}

impl<A> Accepts for A where
    A: Accept<TcpStream, AddExtension<Router, ConnectInfo<SocketAddr>>>
        + Clone
        + Send
        + Sync
        + 'static
{
}

fn tls<A>(
    listener: TcpListener,
    router: Router,
    acceptor: A,
    places: Gate,
    shutdown: CancellationToken,
) -> std::io::Result<Running>
where
    A: Accepts,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send,
    A::Service: SendService<Request<Incoming>> + Send,
    A::Future: Send + 'static,
{
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle.clone())
        .first_request_timeout(HEAD);
    tune(server.http_builder());
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let acceptor = Gated {
        acceptor,
        handshakes: Gate::new(MAX_HANDSHAKES),
        places,
    };
    let task = tokio::spawn(server.acceptor(acceptor).serve(service));
    let drain = handle.clone();
    tokio::spawn(async move {
        shutdown.cancelled().await;
        drain.graceful_shutdown(Some(DRAIN));
    });
    Ok((Open::Tls(handle), task))
}

/// Lets so many clients in, and fewer shake hands at a time.
#[derive(Clone)]
struct Gated<A> {
    acceptor: A,
    handshakes: Gate,
    places: Gate,
}

type Accepted<A, S> = std::io::Result<(
    Bounded<<A as Accept<TcpStream, S>>::Stream>,
    <A as Accept<TcpStream, S>>::Service,
)>;

impl<A, S> Accept<TcpStream, S> for Gated<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = Bounded<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = Accepted<A, S>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let enter = |addr: SocketAddr| {
            let place = self.places.enter(addr.ip());
            (self.handshakes.enter(addr.ip()), place)
        };
        let passes = stream.peer_addr().map(enter);
        let accepting = self.acceptor.accept(stream, service);
        Box::pin(async move {
            let (handshake, place) = passes?;
            let accepted = handshake.hold(accepting).await;
            let gone = std::io::ErrorKind::ConnectionAborted;
            let (stream, service) = accepted.ok_or(gone)??;
            Ok((Bounded::new(stream, Some(place)), service))
        })
    }
}

/// Sets hyper's bounds to ours.
pub(super) fn tune(http: &mut Builder<TokioExecutor>) {
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HTTP1_BUFFER);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(4 * HTTP2_WINDOW)
        .max_send_buf_size(HTTP2_WAITING)
        .max_concurrent_streams(256);
}

/// Adds `GET /health`, which answers as long as the process does, and `GET /readiness`, which asks
/// `ready`, at most once a second: 200, or 503 with the reasons in words. Both tell the version in the header
/// `kraken-version`.
pub fn with_health<F, R>(router: Router, ready: F) -> Router
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    // Whoever asks, and however often: what is behind it may ask others.
    let last = Arc::new(Mutex::new(None::<(Instant, Result<(), String>)>));
    let readiness = move || {
        let (last, ready) = (last.clone(), ready.clone());
        async move {
            let mut last = last.lock().await;
            let known = last.take().filter(|(at, _)| at.elapsed() < READINESS);
            let (at, answer) = match known {
                Some(known) => known,
                None => (Instant::now(), ready().await),
            };
            *last = Some((at, answer.clone()));
            drop(last);
            let answer = match answer {
                Ok(()) => "OK\n".into_response(),
                Err(why) => shaped(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY", &why),
            };
            (VERSION, answer)
        }
    };
    router
        .route("/health", get(async || (VERSION, "OK\n")))
        .route("/readiness", get(readiness))
}

/// How old an answer about readiness may be.
const READINESS: Duration = Duration::from_secs(1);

const VERSION: [(&str, &str); 1] = [("kraken-version", env!("CARGO_PKG_VERSION"))];

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A server runs within a tokio runtime.
    #[error("serving needs a tokio runtime: enter one first")]
    NoRuntime,
    /// The address is taken, or not one of this host.
    #[error("cannot listen on TCP {addr}: {source}")]
    Bind {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A socket that was handed over is not one.
    #[error("a socket that was handed over cannot be used: {source}")]
    Socket {
        /// Why.
        source: std::io::Error,
    },
    /// The certificate or the key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The listener broke while it served.
    #[error("the server on TCP {addr} broke: {source}")]
    Broken {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}
