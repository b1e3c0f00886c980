//! Serving: health, drain and errors.

use axum::Router;
use axum::routing::get;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::server::serve_at_most;
use super::{ApiError, HttpBody, HttpClient, ServeError, admit, serve, with_health};
use crate::Identity;
use crate::roles::{Role, RoleNames};
use crate::testing::Issuer;

async fn status(url: String) -> StatusCode {
    let request = Request::get(url).body(HttpBody::Empty).unwrap();
    let client = HttpClient::new(None).unwrap();
    client.send(request).await.unwrap().status()
}

#[tokio::test]
async fn health_and_readiness() {
    let ready = CancellationToken::new();
    let asked = ready.clone();
    let router = with_health(Router::new(), move || {
        let ready = asked.is_cancelled();
        async move {
            if ready {
                Ok(())
            } else {
                Err("the store is still opening".to_string())
            }
        }
    });
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, router, None, CancellationToken::new()).unwrap();
    let url = |path: &str| format!("http://{}{path}", server.local_addr());
    assert_eq!(status(url("/health")).await, StatusCode::OK);
    let not_yet = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(status(url("/readiness")).await, not_yet);
    ready.cancel();
    // An answer is given again for a second.
    while status(url("/readiness")).await == not_yet {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(status(url("/readiness")).await, StatusCode::OK);
}

#[test]
fn outside_of_a_runtime_nothing_is_served() {
    let any = "127.0.0.1:0".parse().unwrap();
    for identity in [None, Some(Issuer::new().identity("proxy"))] {
        let server = serve(
            any,
            Router::new(),
            identity.as_ref(),
            CancellationToken::new(),
        );
        assert!(matches!(server, Err(ServeError::NoRuntime)));
    }
}

#[tokio::test]
async fn a_running_request_is_let_end() {
    let (began, go_on) = (CancellationToken::new(), CancellationToken::new());
    let (tell, wait) = (began.clone(), go_on.clone());
    let slow = async move || {
        tell.cancel();
        wait.cancelled().await;
        "done"
    };
    let router = Router::new().route("/slow", get(slow));
    let (any, stop) = ("127.0.0.1:0".parse().unwrap(), CancellationToken::new());
    let server = serve(any, router, None, stop.clone()).unwrap();
    let request = tokio::spawn(status(format!("http://{}/slow", server.local_addr())));
    began.cancelled().await;
    stop.cancel();
    go_on.cancel();
    assert_eq!(request.await.unwrap(), StatusCode::OK);
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, Router::new(), None, CancellationToken::new()).unwrap();
    let taken = server.local_addr();
    let error = serve(taken, Router::new(), None, CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}

/// A server of a tracker, and a client of it that keeps its connection.
struct Hop {
    url: String,
    _stop: tokio_util::sync::DropGuard,
}

impl Hop {
    fn to(identity: &Identity, router: Router) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let stop = CancellationToken::new();
        let server = serve(any, router, Some(identity), stop.clone()).unwrap();
        Self {
            url: format!("https://{}", server.local_addr()),
            _stop: stop.drop_guard(),
        }
    }

    async fn ask(&self, client: &HttpClient, path: &str) -> Result<StatusCode, ApiError> {
        let request = Request::get(format!("{}{path}", self.url));
        let answer = client.ask(request.body(HttpBody::Empty).unwrap()).await;
        answer.map(|answer| answer.status())
    }
}

fn open() -> Router {
    Router::new().route("/health", get(async || "OK")).route(
        "/namespace/{ns}/blobs/{digest}/metainfo",
        get(async || "meta"),
    )
}

const META: &str = "/namespace/a/blobs/d/metainfo";

#[tokio::test]
async fn a_client_believes_nobody_without_the_right_certificate() {
    let mut issuer = Issuer::new();
    let bad = issuer.bad("tracker", "proxy");
    let http = HttpClient::new(Some(&issuer.identity("agent"))).unwrap();
    let tracked = http.calling(&[Role::Tracker]).unwrap();
    let good = Hop::to(&issuer.identity("tracker"), open());
    assert_eq!(good.ask(&tracked, META).await, Ok(StatusCode::OK));
    for (what, identity) in bad {
        let hop = Hop::to(&identity, open());
        let error = hop.ask(&tracked, META).await.unwrap_err();
        assert!(error.is_retryable(), "{what}: {error}");
        let told = error.to_string();
        assert_eq!(
            told.contains("of role tracker is needed"),
            what.ends_with("role"),
            "{told}"
        );
        // The role alone does not matter to who asks for none.
        let trusting = hop.ask(&http, META).await;
        assert_eq!(
            trusting.is_ok(),
            what.ends_with("role"),
            "{what}: {trusting:?}"
        );
    }
}

#[tokio::test]
async fn a_server_admits_nobody_without_the_right_certificate() {
    let mut issuer = Issuer::new();
    let bad = issuer.bad("agent", "proxy");
    let identity = issuer.identity("tracker");
    let hop = Hop::to(&identity, admit(open(), Role::Tracker));
    let client = |identity: &Identity| HttpClient::new(Some(identity)).unwrap();
    let agent = client(&issuer.identity("agent"));
    assert_eq!(hop.ask(&agent, META).await, Ok(StatusCode::OK));
    for (what, identity) in bad {
        let client = client(&identity);
        let error = hop.ask(&client, META).await.unwrap_err();
        let health = hop.ask(&client, "/health").await;
        if what.ends_with("role") {
            assert!(matches!(error, ApiError::Forbidden(_)), "{what}: {error}");
            let told = error.to_string();
            assert!(
                told.contains("of role agent, origin, operator is needed"),
                "{told}"
            );
            assert_eq!(health, Ok(StatusCode::OK), "{what}");
        } else {
            assert!(error.is_retryable() && health.is_err(), "{what}: {error}");
        }
    }
    assert_eq!(identity.status().wrong_roles, 2);
    // Nor anybody without TLS.
    let any = "127.0.0.1:0".parse().unwrap();
    let plain = admit(open(), Role::Tracker);
    let server = serve(any, plain, None, CancellationToken::new()).unwrap();
    let url = format!("http://{}{META}", server.local_addr());
    assert_eq!(status(url).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn roles_are_not_asked_for_where_they_are_unchecked() {
    let issuer = Issuer::new();
    let identity = Identity::unchecked_with(&issuer.pem("tracker"), RoleNames::Unchecked);
    let hop = Hop::to(&identity, admit(open(), Role::Tracker));
    let stranger = HttpClient::new(Some(&issuer.identity("stranger"))).unwrap();
    assert_eq!(hop.ask(&stranger, META).await, Ok(StatusCode::OK));
    let caller = Identity::unchecked_with(&issuer.pem("agent"), RoleNames::Unchecked);
    let caller = HttpClient::new(Some(&caller)).unwrap();
    let caller = caller.calling(&[Role::Origin]).unwrap();
    assert_eq!(hop.ask(&caller, META).await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn who_is_revoked_is_refused_on_the_connection_it_has() {
    let mut issuer = Issuer::new();
    let (own, theirs) = (issuer.pem("tracker"), issuer.pem("agent"));
    let identity = Identity::unchecked(&own);
    let hop = Hop::to(&identity, admit(open(), Role::Tracker));
    let agent = HttpClient::new(Some(&Identity::unchecked(&theirs))).unwrap();
    assert_eq!(hop.ask(&agent, META).await, Ok(StatusCode::OK));
    identity.take(&issuer.revoke(&theirs.cert, &own)).unwrap();
    // On the connection that it has, and on another.
    let error = hop.ask(&agent, META).await.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    let error = hop.ask(&agent, META).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(identity.status().revoked, 1);
    let other = HttpClient::new(Some(&issuer.identity("agent"))).unwrap();
    assert_eq!(hop.ask(&other, META).await, Ok(StatusCode::OK));
}

/// Clients come with a connection each, five more than there is room; the first of them goes on, by another connection.
async fn a_crowd(identity: Option<&Identity>) {
    const ROOM: usize = 3;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stop = CancellationToken::new();
    let server = serve_at_most(ROOM, listener, open(), identity, stop).unwrap();
    let scheme = identity.map_or("http", |_| "https");
    let url = format!("{scheme}://{}/health", server.local_addr());
    let ask = async |client: &HttpClient| {
        let request = Request::get(&url).body(HttpBody::Empty).unwrap();
        client.ask(request).await.unwrap().status()
    };
    let clients = [(); ROOM + 5].map(|()| HttpClient::new(identity).unwrap());
    for client in &clients {
        assert_eq!(ask(client).await, StatusCode::OK);
    }
    while server.connections() > ROOM {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&clients[0]).await, StatusCode::OK);
}

#[tokio::test]
async fn a_port_holds_so_many_connections() {
    a_crowd(None).await;
    a_crowd(Some(&Issuer::new().identity("tracker"))).await;
}

#[tokio::test]
async fn the_head_of_a_request_is_bounded() {
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, open(), None, CancellationToken::new()).unwrap();
    let ask = async |len: usize| {
        let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
        let long = "a".repeat(len);
        let request =
            format!("GET /health HTTP/1.1\r\nhost: a\r\nx: {long}\r\nconnection: close\r\n\r\n");
        // A server that refuses it does not read all of it.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert_eq!(ask(60 << 10).await, "HTTP/1.1 200");
    assert_eq!(ask(80 << 10).await, "HTTP/1.1 431");
}
