//! Who calls: the member of the cluster behind a connection, and what it may.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::extract::Request;
use axum::middleware::{self, AddExtension, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use axum_server::accept::Accept;
use axum_server::tls_rustls::RustlsAcceptor;
use http::{HeaderValue, header};
use kraken_proto::{PeerId, PeerInfo, PeerRole};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tower::Layer as _;

use super::error::ApiError;
use crate::identity::{Identity, peer_id_of};
use crate::roles::{Bearer, Role, callers};

/// Who has connected, by the certificate that the handshake verified: an extension of the requests
/// that a server with an [`Identity`] gets.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    id: PeerId,
    bearer: Bearer,
    chain: Vec<CertificateDer<'static>>,
    since: UnixTime,
    /// The lists of revoked certificates that it was last looked for on, and whether it is on them.
    looked: AtomicU64,
    is_revoked: AtomicBool,
}

impl Caller {
    fn of(identity: &Identity, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = chain.first()?;
        Some(Self(Arc::new(Inner {
            id: peer_id_of(leaf).ok()?,
            bearer: identity.bearer(leaf),
            chain: chain.iter().map(|cert| cert.clone().into_owned()).collect(),
            identity: identity.clone(),
            since: UnixTime::now(),
            // A list that came during the handshake is looked at with the first request.
            looked: AtomicU64::new(u64::MAX),
            is_revoked: AtomicBool::new(false),
        })))
    }

    /// The identity that its certificate proves.
    pub fn id(&self) -> PeerId {
        self.0.id
    }

    /// Whom its certificate is for.
    pub fn bearer(&self) -> &Bearer {
        &self.0.bearer
    }

    /// Whether its certificate was revoked while it is connected.
    fn is_revoked(&self) -> bool {
        let lists = self.0.identity.lists();
        if self.0.looked.load(Ordering::Acquire) != lists {
            let is_revoked = self.0.identity.has_revoked(&self.0.chain, self.0.since);
            self.0.is_revoked.store(is_revoked, Ordering::Release);
            self.0.looked.store(lists, Ordering::Release);
        }
        self.0.is_revoked.load(Ordering::Acquire)
    }

    fn check(&self, at: Role, method: &str, path: &str) -> Result<(), ApiError> {
        let identity = &self.0.identity;
        if self.is_revoked() {
            identity.counts().revoked.fetch_add(1, Ordering::Relaxed);
            return Err(ApiError::Forbidden(
                "the certificate has been revoked".into(),
            ));
        }
        let wanted = callers(at, method, path);
        if wanted.include(self.0.bearer.role) || !identity.checks_roles() {
            return Ok(());
        }
        let found = self.0.bearer.told();
        let what = format!(
            "{method} {path} at {at}: a certificate {found}, where one of role {wanted} is needed"
        );
        identity.refuse(self.0.id, &what);
        Err(ApiError::Forbidden(what))
    }

    /// Announces and reports are of the host that sends them, by what it is, and of the zone in its
    /// certificate if there is one.
    pub(crate) fn check_peer(&self, peer: &PeerInfo) -> Result<(), ApiError> {
        let zone = self.0.bearer.zone.as_ref();
        let what = if peer.id != self.0.id {
            format!(
                "{:?} announces {:?}: a host announces itself only",
                self.0.id, peer.id
            )
        } else if peer.role == PeerRole::Origin && self.0.bearer.role != Some(Role::Origin) {
            let found = self.0.bearer.told();
            format!("it announces an origin, with a certificate {found}")
        } else if zone.is_some() && zone != peer.zone.as_ref() {
            let name = |zone: Option<&kraken_proto::Zone>| {
                zone.map_or_else(|| "no zone".to_owned(), |zone| format!("zone {zone}"))
            };
            let (found, wanted) = (name(peer.zone.as_ref()), name(zone));
            format!("it announces {found}, and its certificate is for {wanted}")
        } else {
            return Ok(());
        };
        self.0.identity.refuse(self.0.id, &what);
        Err(ApiError::Forbidden(what))
    }
}

/// Lets a router of a process of role `at` be called by those only whom [`callers`] names, and by
/// nobody whose certificate was revoked since it connected. Who is refused gets 403 with the reason,
/// and so does everybody without TLS.
pub fn admit(router: Router, at: Role) -> Router {
    router.layer(middleware::from_fn(move |request, next| {
        check(at, request, next)
    }))
}

/// A caller whom [`admit`] has let pass; it may announce itself only.
#[derive(Debug, Clone)]
pub(crate) struct Admitted(pub(crate) Caller);

async fn check(at: Role, mut request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let Some(caller) = caller else {
        let what = "whoever calls here shows a certificate of the cluster";
        return ApiError::Forbidden(what.into()).into_response();
    };
    match caller.check(at, request.method().as_str(), request.uri().path()) {
        Ok(()) => {
            if caller.0.identity.checks_roles() {
                request.extensions_mut().insert(Admitted(caller));
            }
            next.run(request).await
        }
        Err(refused) => {
            let mut response = refused.into_response();
            if caller.is_revoked() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }
    }
}

/// Accepts members of the cluster, and tells the router which one each is.
#[derive(Clone)]
pub(super) struct Members {
    pub(super) tls: RustlsAcceptor,
    pub(super) identity: Identity,
}

type Stream = <RustlsAcceptor as Accept<TcpStream, ()>>::Stream;
type Service<S> = AddExtension<<RustlsAcceptor as Accept<TcpStream, S>>::Service, Caller>;
type Accepted<S> = std::io::Result<(Stream, Service<S>)>;

impl<S: Send + 'static> Accept<TcpStream, S> for Members {
    type Stream = Stream;
    type Service = Service<S>;
    type Future = Pin<Box<dyn Future<Output = Accepted<S>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepting = self.tls.accept(stream, service);
        let identity = self.identity.clone();
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let (_, session) = stream.get_ref();
            let chain = session.peer_certificates().unwrap_or_default();
            let unknown = || std::io::Error::other("its certificate cannot be read");
            let caller = Caller::of(&identity, chain).ok_or_else(unknown)?;
            Ok((stream, Extension(caller).layer(service)))
        })
    }
}
