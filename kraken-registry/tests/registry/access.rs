//! Who may do what, over HTTP with names and passwords.

use std::path::Path;
use std::sync::Arc;

use kraken_registry::access::{Access, AccessRule, May};
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use kraken_registry::push::{self, PushState};
use regex::Regex;
use reqwest::{Client, Method, Response};

use crate::common::{client, error, header, serve};

/// "bc", as bcrypt hashes it.
const HASHED: &str = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";

fn rule(repositories: &str, users: Option<&[&str]>, may: &[May]) -> AccessRule {
    AccessRule {
        repositories: Regex::new(repositories).unwrap(),
        users: users.map(|users| users.iter().map(ToString::to_string).collect()),
        may: may.iter().copied().collect(),
    }
}

async fn registry(users: &Path) -> String {
    std::fs::write(users, format!("ann:{HASHED}\nbob:{HASHED}\n")).unwrap();
    let all = [May::Pull, May::Push, May::Delete];
    let rules = vec![
        rule("^team/", Some(&["ann"]), &all),
        rule("^team/", Some(&["bob"]), &[May::Pull]),
        rule("^public/", None, &[May::Pull]),
    ];
    let access = Access::new(rules, Some(users.to_path_buf())).unwrap();
    let blobs = MemoryBlobs::default();
    blobs.insert("{}");
    let pull = PullState::new(blobs.clone(), MemoryTags::default()).access(access);
    serve(push::router(PushState::new(pull, blobs))).await
}

struct Asked {
    http: Client,
    base: String,
}

impl Asked {
    async fn ask(&self, method: Method, path: &str, login: Option<(&str, &str)>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some((name, password)) = login {
            request = request.basic_auth(name, Some(password));
        }
        request.header("content-length", "0").send().await.unwrap()
    }
}

#[tokio::test]
async fn rules_grant_and_what_none_grants_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    let asked = Asked {
        http: client(),
        base: registry(&users).await,
    };
    let (ann, bob) = (Some(("ann", "bc")), Some(("bob", "bc")));
    let digest = kraken_proto::Digest::of(b"{}");
    let blob = |repo: &str| format!("/v2/{repo}/blobs/{digest}");
    let uploads = |repo: &str| format!("/v2/{repo}/blobs/uploads/");
    for (method, path, login, status) in [
        (Method::GET, "/v2/".into(), None, 200),
        (Method::GET, "/v2/".into(), ann, 200),
        (Method::GET, blob("team/app"), ann, 200),
        (Method::GET, blob("team/app"), bob, 200),
        (Method::HEAD, blob("team/app"), None, 401),
        (Method::GET, blob("public/app"), None, 200),
        (Method::GET, blob("public/app"), bob, 200),
        (Method::POST, uploads("team/app"), ann, 202),
        (Method::POST, uploads("team/app"), bob, 403),
        (Method::POST, uploads("team/app"), None, 401),
        (Method::POST, uploads("public/app"), ann, 403),
        (Method::POST, uploads("public/app"), None, 401),
        (Method::DELETE, blob("team/app"), bob, 403),
        (Method::DELETE, blob("team/app"), ann, 202),
        (Method::GET, "/v2/_catalog".into(), ann, 403),
        (Method::GET, blob("other/app"), ann, 403),
        (Method::GET, blob("team/app"), Some(("ann", "bd")), 401),
        (Method::GET, blob("team/app"), Some(("cy", "bc")), 401),
        (Method::GET, blob("public/app"), Some(("cy", "bc")), 401),
    ] {
        let answer = asked.ask(method.clone(), &path, login).await;
        assert_eq!(
            answer.status().as_u16(),
            status,
            "{method} {path} {login:?}"
        );
        let challenge = header(&answer, "www-authenticate");
        assert_eq!(!challenge.is_empty(), status == 401, "{challenge}");
    }
    // What may not be read is not mounted from there; it may be pushed all the same. (It was deleted
    // here.)
    let mount = format!("{}?mount={digest}&from=other/app", uploads("team/app"));
    assert_eq!(asked.ask(Method::POST, &mount, ann).await.status(), 202);
    let mount = format!("{}?mount={digest}&from=public/app", uploads("team/app"));
    assert_eq!(asked.ask(Method::POST, &mount, ann).await.status(), 201);
    let refused = asked.ask(Method::GET, &blob("team/app"), None).await;
    let told = error(refused, 401, "UNAUTHORIZED").await;
    assert!(told.contains("docker login"), "{told}");
}

#[tokio::test]
async fn what_replaces_the_rules_holds_from_then_on() {
    let access = Arc::new(Access::everybody());
    let blobs = MemoryBlobs::default();
    blobs.insert("{}");
    let pull = PullState::new(blobs, MemoryTags::default()).access(access.clone());
    let asked = Asked {
        http: client(),
        base: serve(pull::router(pull)).await,
    };
    let blob = format!("/v2/public/app/blobs/{}", kraken_proto::Digest::of(b"{}"));
    let status = async || asked.ask(Method::GET, &blob, None).await.status().as_u16();
    assert_eq!(status().await, 200);
    let nothing = Access::new(Vec::new(), None).unwrap();
    access.replace(Arc::new(nothing));
    assert_eq!(status().await, 403);
    let public = vec![rule("^public/", None, &[May::Pull])];
    access.replace(Arc::new(Access::new(public, None).unwrap()));
    assert_eq!(status().await, 200);
}

#[tokio::test]
async fn who_is_taken_out_of_the_file_is_unknown_and_nonsense_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    let asked = Asked {
        http: client(),
        base: registry(&users).await,
    };
    let digest = kraken_proto::Digest::of(b"{}");
    let path = format!("/v2/team/app/blobs/{digest}");
    let status = async |name: &str| {
        let answer = asked.ask(Method::GET, &path, Some((name, "bc"))).await;
        answer.status().as_u16()
    };
    assert_eq!(status("bob").await, 200);
    std::fs::write(&users, format!("ann:{HASHED}\n")).unwrap();
    for _ in 0..100 {
        if status("bob").await == 401 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(status("bob").await, 401);
    std::fs::write(&users, "nonsense").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(status("ann").await, 200);
}

#[tokio::test]
async fn without_rules_only_this_host_may_ask() {
    use axum::extract::ConnectInfo;
    use std::net::SocketAddr;
    use tower::ServiceExt as _;

    let blobs = MemoryBlobs::default();
    let pull = PullState::new(blobs.clone(), MemoryTags::default());
    let app = push::router(PushState::new(pull, blobs));
    for (addr, status) in [
        ("127.0.0.1:1", 200),
        ("[::1]:1", 200),
        ("[::ffff:127.0.0.1]:1", 200),
        ("10.0.0.1:1", 403),
        ("[2001:db8::1]:1", 403),
    ] {
        let mut request = http::Request::get("/v2/")
            .body(axum::body::Body::empty())
            .unwrap();
        let addr: SocketAddr = addr.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(addr));
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{addr}");
    }
}
