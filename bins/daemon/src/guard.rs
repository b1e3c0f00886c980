//! What beside the registry's own paths strangers must not use.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use kraken_registry::RepoName;
use kraken_registry::access::Access;
use kraken_registry::error::{Code, RegistryError};

/// Lets through what a registry decides about itself and what anybody may ask; of the rest, blobs of a
/// namespace as a pull from a repository of that name, and all else from this host only.
pub(crate) async fn refuse(guard: Guard, request: Request, next: Next) -> Response {
    let access = &guard.access;
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let open = ["/health", "/readiness", "/metrics", "/v2"];
    let is_open = open.contains(&path) || path.starts_with("/v2/");
    let namespace = path.strip_prefix("/namespace/");
    let namespace = namespace.and_then(|rest| rest.split('/').next());
    let repo = namespace.map(|it| it.replace("%2F", "/").replace("%2f", "/"));
    let checked = match repo.and_then(|it| it.parse::<RepoName>().ok()) {
        _ if is_open => Ok(()),
        Some(repo) => access.check_pull(&parts, &repo).await,
        // Preheating pulls whatever is named.
        None if path.starts_with("/proxy/") || path.starts_with("/registry/") => {
            access.check_pull_all(&parts).await
        }
        None => Access::check_this_host(&parts).and_then(|()| guard.check_name(&parts)),
    };
    match checked {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refused) => refused.into_response(),
    }
}

/// Who guards.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// Who may do what.
    pub(crate) access: Arc<Access>,
    /// Names are proven by TLS.
    pub(crate) is_tls: bool,
}

impl Guard {
    /// Without TLS, what is for this host only is called by an address or as `localhost`. A web page can make a
    /// name of its own lead to this host, and would be told what a browser takes for that page's.
    fn check_name(&self, parts: &Parts) -> Result<(), RegistryError> {
        if self.is_tls || is_called_plainly(parts) {
            return Ok(());
        }
        let what = "this is asked at an address or at localhost, as in http://127.0.0.1:7610";
        Err(RegistryError::new(Code::Denied, what))
    }
}

fn is_called_plainly(parts: &Parts) -> bool {
    let named = parts
        .headers
        .get(HOST)
        .map(|host| host.to_str().unwrap_or_default());
    let host = named.or_else(|| parts.uri.authority().map(|it| it.as_str()));
    host.is_none_or(|host| {
        let name = host.parse::<Authority>();
        name.is_ok_and(|it| it.host() == "localhost" || is_address(it.host()))
    })
}

fn is_address(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    bare.unwrap_or(host).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::body::Body;
    use axum::extract::ConnectInfo;
    use axum::middleware::from_fn;
    use axum::routing::any;
    use tower::ServiceExt as _;

    use super::*;

    async fn status(access: Access, from: &str, path: &str) -> u16 {
        status_at(access, (from, "127.0.0.1"), path).await
    }

    async fn status_at(access: Access, from: (&str, &str), path: &str) -> u16 {
        let access = Arc::new(access);
        let is_tls = false;
        status_by(Guard { access, is_tls }, from, path).await
    }

    async fn status_by(guard: Guard, (from, host): (&str, &str), path: &str) -> u16 {
        let app = Router::new().route("/{*all}", any(async || "done"));
        let app = app.layer(from_fn(move |request, next| {
            refuse(guard.clone(), request, next)
        }));
        let request = Request::get(path).header(HOST, host).body(Body::empty());
        let mut request = request.unwrap();
        let addr: SocketAddr = from.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(addr));
        app.oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn strangers_see_whether_it_is_well_and_no_more() {
        let (here, stranger) = ("127.0.0.1:1", "10.0.0.1:1");
        for (path, wanted) in [
            ("/health", 200),
            ("/metrics", 200),
            ("/v2/a/tags/list", 200),
            ("/forcecleanup", 403),
            ("/preload/tags/a:v1", 403),
            ("/x/store/blobs", 403),
            ("/namespace/a/blobs/x", 403),
            ("/registry/notifications", 403),
            ("/namespace/..%2Fx/blobs/x", 403),
        ] {
            assert_eq!(status(Access::this_host(), here, path).await, 200, "{path}");
            let told = status(Access::this_host(), stranger, path).await;
            assert_eq!(told, wanted, "{path}");
        }
        for (host, wanted) in [
            ("127.0.0.1:7610", 200),
            ("[::1]:7610", 200),
            ("localhost", 200),
            ("evil.example.com:7610", 403),
            ("localhost.example.com", 403),
            ("", 403),
        ] {
            let told = status_at(Access::this_host(), (here, host), "/x/store").await;
            assert_eq!(told, wanted, "{host}");
        }
        let access = Arc::new(Access::this_host());
        let guard = Guard {
            access,
            is_tls: true,
        };
        let proven = status_by(guard, (here, "host-1.example.com"), "/x/store").await;
        assert_eq!(proven, 200);
        // Pulls have names of their own.
        let pulled = status_at(Access::this_host(), (here, "hub.example.com"), "/v2/");
        assert_eq!(pulled.await, 200);
        // Whoever may pull may fetch.
        let everybody = status(Access::everybody(), stranger, "/namespace/a%2Fb/blobs/x");
        assert_eq!(everybody.await, 200);
        let everybody = status(Access::everybody(), stranger, "/registry/notifications");
        assert_eq!(everybody.await, 200);
        let everybody = status(Access::everybody(), stranger, "/forcecleanup");
        assert_eq!(everybody.await, 403);
    }
}
