//! What real registries do that the one in the behaviour suite does not: tokens, and blobs that lie
//! on another host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures::TryStreamExt as _;
use http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use kraken_proto::{Digest, Namespace};

use super::{Credentials, RegistryBackend, RegistryLogin, RegistryOptions};
use crate::backend::{Backend as _, BackendError, Secret};

const BLOB: &[u8] = b"a blob";

/// A registry with a token server, and another host for its blobs.
struct Hub {
    addr: SocketAddr,
    tokens: Arc<AtomicU64>,
}

impl Hub {
    async fn start(lifetime: u64) -> Self {
        let tokens = Arc::<AtomicU64>::default();
        let store = serve(Router::new().route("/{blob}", any(from_store))).await;
        let given = Arc::clone(&tokens);
        let token = async move |RawQuery(query): RawQuery, headers: HeaderMap| {
            let query = query.unwrap_or_default();
            let of = "scope=repository%3Alibrary%2Fapp%3Apull&service=hub";
            // a:bc
            if query != of || header(&headers) != "Basic YTpiYw==" {
                return (StatusCode::UNAUTHORIZED, String::new());
            }
            let number = given.fetch_add(1, Ordering::SeqCst);
            let answer = format!("{{\"token\": \"t{number}\", \"expires_in\": {lifetime}}}");
            (StatusCode::OK, answer)
        };
        let issued = Arc::clone(&tokens);
        let blob = async move |Path(rest): Path<String>, headers: HeaderMap| {
            let issued = issued.load(Ordering::SeqCst);
            if issued == 0 || header(&headers) != format!("Bearer t{}", issued - 1) {
                let host = header_named(&headers, "host").to_string();
                let realm = format!("Bearer realm=\"http://{host}/token\",service=\"hub\"");
                return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, realm)]).into_response();
            }
            let wanted = format!("library/app/blobs/{}", Digest::of(BLOB));
            if rest != wanted {
                return StatusCode::NOT_FOUND.into_response();
            }
            let place = format!("http://{store}/{}", Digest::of(BLOB));
            (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, place)]).into_response()
        };
        let router = Router::new()
            .route("/token", get(token))
            .route("/v2/{*rest}", any(blob));
        let addr = serve(router).await;
        Self { addr, tokens }
    }

    fn backend(&self, password: Option<&str>) -> RegistryBackend {
        let credentials = password.map(|password| Credentials::Password {
            username: "a".into(),
            password: Secret::Text(password.into()),
        });
        self.backend_for(credentials)
    }

    fn backend_for(&self, credentials: Option<Credentials>) -> RegistryBackend {
        let options = RegistryOptions {
            url: format!("http://{}/", self.addr),
            repository: "{namespace}".into(),
            prefix: String::new(),
            credentials,
            ca: None,
        };
        RegistryBackend::new(options, Duration::from_secs(5)).unwrap()
    }

    fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::SeqCst)
    }
}

/// The other host must not see the token.
async fn from_store(headers: HeaderMap) -> Response {
    match headers.contains_key(AUTHORIZATION) {
        true => StatusCode::BAD_REQUEST.into_response(),
        false => BLOB.into_response(),
    }
}

fn header(headers: &HeaderMap) -> &str {
    header_named(headers, AUTHORIZATION.as_str())
}

fn header_named<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |it| it.to_str().unwrap())
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    addr
}

fn name() -> Namespace {
    "library/app".parse().unwrap()
}

async fn read(backend: &RegistryBackend) -> Result<Vec<u8>, BackendError> {
    let digest = Digest::of(BLOB);
    let stream = backend.read(&name(), digest, 0..u64::MAX).await?;
    Ok(stream.try_collect::<Vec<_>>().await?.concat())
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_stays_with_its_registry() {
    let hub = Hub::start(300).await;
    let backend = hub.backend(Some("bc"));
    let absent = backend.stat(&name(), Digest::of(b"absent")).await;
    assert_eq!(absent.unwrap(), None);
    for _ in 0..3 {
        assert_eq!(read(&backend).await.unwrap(), BLOB);
    }
    assert_eq!(hub.tokens(), 1);
    let fresh = hub.backend(Some("bc"));
    for read in futures::future::join_all((0..20).map(|_| read(&fresh))).await {
        assert_eq!(read.unwrap(), BLOB);
    }
    assert_eq!(hub.tokens(), 2, "twenty at once ask once");
}

#[tokio::test]
async fn a_token_that_ran_out_is_replaced() {
    let hub = Hub::start(0).await;
    let backend = hub.backend(Some("bc"));
    for _ in 0..2 {
        assert_eq!(read(&backend).await.unwrap(), BLOB);
    }
    assert!(hub.tokens() >= 2, "{}", hub.tokens());
    // One that the registry no longer takes, too.
    let hub = Hub::start(300).await;
    let backend = hub.backend(Some("bc"));
    assert_eq!(read(&backend).await.unwrap(), BLOB);
    hub.tokens.fetch_add(1, Ordering::SeqCst);
    assert_eq!(read(&backend).await.unwrap(), BLOB);
    assert_eq!(hub.tokens(), 3);
}

#[tokio::test]
async fn a_wrong_password_and_none_are_refused() {
    let hub = Hub::start(300).await;
    for password in [Some("bd"), None] {
        let error = read(&hub.backend(password)).await.unwrap_err();
        assert!(matches!(error, BackendError::Denied(_)), "{error}");
        assert!(!error.to_string().contains("bd"), "{error}");
    }
}

#[tokio::test]
async fn logins_come_from_dockers_own_file() {
    let hub = Hub::start(300).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let config = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"YTpiYw==\"}}}}}}",
        hub.addr
    );
    std::fs::write(&path, config).unwrap();
    let backend = hub.backend_for(Some(Credentials::DockerConfig(path)));
    assert_eq!(read(&backend).await.unwrap(), BLOB);
    let missing = Credentials::DockerConfig(dir.path().join("none"));
    let error = read(&hub.backend_for(Some(missing))).await.unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
    let helper = Credentials::Helper("no-such-helper-of-kraken".into());
    let error = read(&hub.backend_for(Some(helper))).await.unwrap_err();
    assert!(!matches!(error, BackendError::NotFound(_)), "{error}");
}

#[tokio::test]
async fn a_client_of_ones_own_keeps_what_was_granted_for_each_scope() {
    let hub = Hub::start(300).await;
    let credentials = Credentials::Password {
        username: "a".into(),
        password: Secret::Text("bc".into()),
    };
    let (url, client) = (format!("http://{}", hub.addr), super::client(None).unwrap());
    let login = RegistryLogin::new(&url, vec![credentials], client, Duration::from_secs(5));
    let login = login.unwrap();
    let [pull, push] = ["pull", "pull,push"].map(|it| format!("repository:library/app:{it}"));
    let mut refused = HeaderMap::new();
    assert!(
        login
            .answer((&pull, None), &refused)
            .await
            .unwrap()
            .is_none()
    );
    let realm = format!("Bearer realm=\"{url}/token\",service=\"hub\"");
    refused.insert(WWW_AUTHENTICATE, realm.parse().unwrap());
    assert!(login.known(&pull).await.is_none());
    let right = login.answer((&pull, None), &refused).await.unwrap();
    let right = right.unwrap();
    assert_eq!(right.header(), "Bearer t0");
    assert_eq!(login.known(&pull).await.unwrap().header(), "Bearer t0");
    // Its server gives none for this.
    let error = login.answer((&push, None), &refused).await.unwrap_err();
    let told = error.to_string();
    assert!(told.contains("answers 401 Unauthorized to a"), "{told}");
    assert!(login.known(&push).await.is_none());
    let again = login.answer((&pull, Some(&right)), &refused).await.unwrap();
    assert_eq!(again.unwrap().header(), "Bearer t1");
}

#[tokio::test]
async fn a_password_stays_here_without_tls() {
    let credentials = || Credentials::Password {
        username: "a".into(),
        password: Secret::Text("bc".into()),
    };
    let answer = async |registry: &str, realm: &str, credentials: Vec<Credentials>| {
        let client = super::client(None).unwrap();
        let login = RegistryLogin::new(registry, credentials, client, Duration::from_millis(50));
        let mut refused = HeaderMap::new();
        let realm = format!("Bearer realm=\"{realm}\"");
        refused.insert(WWW_AUTHENTICATE, realm.parse().unwrap());
        let answered = login.unwrap().answer(("x", None), &refused).await;
        answered.unwrap_err().to_string()
    };
    for realm in [
        "http://192.0.2.1/t",
        "http://localhost.example/t",
        "http://[2001:db8::1]/t",
    ] {
        let told = answer("http://192.0.2.2", realm, vec![credentials()]).await;
        assert!(told.contains("is sent no password"), "{told}");
        let told = answer("https://192.0.2.2", realm, Vec::new()).await;
        assert!(told.contains("and the registry has"), "{told}");
    }
    // Nobody answers at port 1.
    for realm in [
        "http://127.0.0.1:1/t",
        "http://[::1]:1/t",
        "http://localhost:1/t",
    ] {
        let told = answer("http://192.0.2.2", realm, vec![credentials()]).await;
        assert!(!told.contains("no password"), "{told}");
    }
}
