//! Tokens, as container clients get and use them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Extension;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use kraken_core::net::http::TlsClient;
use kraken_registry::access::{Access, AccessRule, May, TokenConfig, TokenServerConfig};
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::PullState;
use kraken_registry::push::{self, PushState};
use regex::Regex;
use reqwest::{Client, Method, RequestBuilder, Response};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{client, error, header, serve};

/// "bc", as bcrypt hashes it, and again with other salt.
const HASHED: &str = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
const SERVICE: &str = "registry.example.com";

fn rule(repositories: &str, users: Option<&[&str]>, may: &[May]) -> AccessRule {
    let names = |users: &[&str]| users.iter().map(ToString::to_string).collect();
    AccessRule {
        repositories: Regex::new(repositories).unwrap(),
        users: users.map(names),
        may: BTreeSet::from_iter(may.iter().copied()),
    }
}

fn new_key(file: &Path) -> EcdsaKeyPair {
    let (curve, chance) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
    let der = EcdsaKeyPair::generate_pkcs8(curve, &chance).unwrap();
    let text = BASE64_STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    std::fs::write(file, pem).unwrap();
    EcdsaKeyPair::from_pkcs8(curve, der.as_ref(), &chance).unwrap()
}

fn config(keys: Vec<PathBuf>) -> TokenConfig {
    TokenConfig {
        realm: "https://registry.example.com/v2/token".into(),
        service: SERVICE.into(),
        keys,
        lifetime: Duration::from_secs(300),
        refresh: Some(Duration::from_secs(3600)),
    }
}

/// Registries that give and take the same tokens, over blobs of their own.
struct Lab {
    dir: TempDir,
    http: Client,
    base: String,
    other: String,
}

fn registry(access: Access) -> axum::Router {
    let blobs = MemoryBlobs::default();
    blobs.insert("{}");
    let pull = PullState::new(blobs.clone(), MemoryTags::default()).access(access);
    push::router(PushState::new(pull, blobs))
}

impl Lab {
    async fn start(is_open: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        new_key(&dir.path().join("key"));
        let users = dir.path().join("users");
        std::fs::write(&users, format!("ann:{HASHED}\nbob:{HASHED}\n")).unwrap();
        let access = || {
            let all = [May::Pull, May::Push, May::Delete];
            let mut rules = vec![
                rule("^team/", Some(&["ann"]), &all),
                rule("^team/", Some(&["bob", "ci"]), &[May::Pull]),
                rule("", Some(&["ann"]), &[May::Pull]),
            ];
            if is_open {
                rules.push(rule("^public/", None, &[May::Pull]));
            }
            let access = Access::new(rules, Some(users.clone())).unwrap();
            access.tokens(config(vec![dir.path().join("key")])).unwrap()
        };
        let base = serve(registry(access())).await;
        let other = serve(registry(access())).await;
        Self {
            http: client(),
            base,
            other,
            dir,
        }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        request.header("content-length", "0")
    }

    /// The answer to a question for a token by `GET`.
    async fn token_for(&self, login: Option<&str>, query: &str) -> Response {
        let request = self.http.get(format!("{}/v2/token?{query}", self.base));
        let request = match login {
            Some(name) => request.basic_auth(name, Some("bc")),
            None => request,
        };
        request.send().await.unwrap()
    }

    async fn told(&self, login: Option<&str>, query: &str) -> Value {
        let answer = self.token_for(login, query).await;
        assert_eq!(answer.status(), 200, "{query}");
        assert_eq!(header(&answer, "cache-control"), "no-store");
        answer.json().await.unwrap()
    }

    async fn form(&self, form: &[(&str, &str)]) -> Response {
        let request = self.http.post(format!("{}/v2/token", self.base));
        request.form(form).send().await.unwrap()
    }

    async fn by(&self, token: &Value, method: Method, path: &str) -> Response {
        let token = token["token"].as_str().unwrap();
        let request = self.ask(method, path).bearer_auth(token);
        request.send().await.unwrap()
    }
}

fn blob(repo: &str) -> String {
    let digest = kraken_proto::Digest::of(b"{}");
    format!("/v2/{repo}/blobs/{digest}")
}

fn uploads(repo: &str) -> String {
    format!("/v2/{repo}/blobs/uploads/")
}

/// What a token says, without a look at its signature.
fn said(token: &Value) -> Value {
    let token = token["token"].as_str().unwrap();
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_that_is_refused_is_told_where_to_get_which_token() {
    let lab = Lab::start(true).await;
    let start =
        format!("Bearer realm=\"https://registry.example.com/v2/token\",service=\"{SERVICE}\"");
    for (method, path, scope) in [
        (Method::GET, "/v2/".into(), None),
        (
            Method::GET,
            blob("team/app"),
            Some("repository:team/app:pull"),
        ),
        (
            Method::POST,
            uploads("team/app"),
            Some("repository:team/app:pull,push"),
        ),
        (
            Method::DELETE,
            blob("team/app"),
            Some("repository:team/app:delete"),
        ),
        (
            Method::GET,
            "/v2/_catalog".into(),
            Some("registry:catalog:*"),
        ),
    ] {
        let answer = lab.ask(method, &path).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{path}");
        let wanted = scope.map(|scope| format!(",scope=\"{scope}\""));
        let wanted = format!("{start}{}", wanted.unwrap_or_default());
        assert_eq!(header(&answer, "www-authenticate"), wanted);
    }
    // What everybody may needs none, and names with passwords do without.
    let open = lab.ask(Method::GET, &blob("public/app")).send().await;
    assert_eq!(open.unwrap().status(), 200);
    let ann = lab.ask(Method::POST, &uploads("team/app"));
    let ann = ann.basic_auth("ann", Some("bc")).send().await.unwrap();
    assert_eq!(ann.status(), 202);
    let wrong = lab.ask(Method::GET, "/v2/");
    let wrong = wrong.basic_auth("ann", Some("bd")).send().await.unwrap();
    assert_eq!(wrong.status(), 401);
}

#[tokio::test]
async fn a_token_grants_what_was_asked_for_and_the_rules_grant() {
    let lab = Lab::start(true).await;
    let query = format!(
        "service={SERVICE}&scope=repository:team/app:pull,push&scope=repository:other:*+registry:catalog:*&account=ann"
    );
    let ann = lab.told(Some("ann"), &query).await;
    assert_eq!(ann["expires_in"], 300);
    assert_eq!(ann["access_token"], ann["token"]);
    assert!(ann["issued_at"].as_str().unwrap().ends_with('Z'), "{ann}");
    assert_eq!(ann.get("refresh_token"), None);
    let claims = said(&ann);
    assert_eq!(
        (&claims["sub"], &claims["aud"]),
        (&json!("ann"), &json!(SERVICE))
    );
    assert_eq!(
        claims["access"],
        json!([
            {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
            {"type": "repository", "name": "other", "actions": ["pull"]},
            {"type": "registry", "name": "catalog", "actions": ["*"]},
        ])
    );
    let bob = lab
        .told(Some("bob"), &query.replace("account=ann", ""))
        .await;
    assert_eq!(bob["scope"], "repository:team/app:pull");
    for (token, method, path, status) in [
        (&ann, Method::GET, "/v2/".to_owned(), 200),
        (&ann, Method::GET, blob("team/app"), 200),
        (&ann, Method::POST, uploads("team/app"), 202),
        (&ann, Method::GET, "/v2/_catalog".into(), 200),
        // The rules grant it, the token does not.
        (&ann, Method::DELETE, blob("team/app"), 401),
        (&ann, Method::GET, blob("team/more"), 401),
        (&bob, Method::GET, blob("team/app"), 200),
        (&bob, Method::GET, blob("public/app"), 200),
        // No other token would help.
        (&bob, Method::POST, uploads("team/app"), 403),
        (&bob, Method::GET, "/v2/_catalog".into(), 403),
    ] {
        let answer = lab.by(token, method.clone(), &path).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        let challenge = header(&answer, "www-authenticate");
        let is_more = challenge.contains("error=\"insufficient_scope\"");
        assert_eq!(is_more, status == 401, "{challenge}");
    }
    // Any registry of the cluster takes it.
    let there = format!("{}{}", lab.other, blob("team/app"));
    let there = lab
        .http
        .get(there)
        .bearer_auth(ann["token"].as_str().unwrap());
    assert_eq!(there.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn nobody_gets_a_token_for_what_everybody_may_and_no_token_where_that_is_nothing() {
    let lab = Lab::start(true).await;
    let query = "scope=repository:public/app:pull,push&scope=repository:team/app:pull";
    let nobody = lab.told(None, query).await;
    assert_eq!(nobody["scope"], "repository:public/app:pull");
    for (method, path, status) in [
        (Method::GET, "/v2/".to_owned(), 200),
        (Method::GET, blob("public/app"), 200),
        (Method::POST, uploads("public/app"), 401),
        (Method::GET, blob("team/app"), 401),
    ] {
        let answer = lab.by(&nobody, method, &path).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
    let lab = Lab::start(false).await;
    let answer = lab.token_for(None, query).await;
    assert!(header(&answer, "www-authenticate").starts_with("Basic "));
    error(answer, 401, "UNAUTHORIZED").await;
}

#[tokio::test]
async fn requests_for_tokens_that_make_no_sense_are_refused_in_words() {
    let lab = Lab::start(true).await;
    let huge = format!("scope=repository:{}:pull", "a/".repeat(5000));
    let many = "scope=repository:a:pull&".repeat(40);
    for (query, word) in [
        ("service=other", "other"),
        ("scope=nonsense", "nonsense"),
        ("scope=repository:UPPER:pull", "UPPER"),
        ("scope=repository:a:pull;push", "pull;push"),
        ("scope=%ff", "scope"),
        ("account=bob", "account"),
        (&huge, "bytes at most"),
        (&many, "at most"),
    ] {
        let told = error(lab.token_for(Some("ann"), query).await, 400, "UNSUPPORTED").await;
        assert!(told.contains(word), "{query}: {told}");
    }
    let wrong = lab.http.get(format!("{}/v2/token", lab.base));
    let wrong = wrong.basic_auth("ann", Some("bd")).send().await.unwrap();
    assert!(header(&wrong, "www-authenticate").starts_with("Basic "));
    error(wrong, 401, "UNAUTHORIZED").await;
    let put = lab.ask(Method::PUT, "/v2/token").send().await.unwrap();
    assert_eq!(header(&put, "allow"), "GET, POST");
    error(put, 405, "UNSUPPORTED").await;
    for form in [
        &[("scope", "")][..],
        &[("grant_type", "magic")],
        &[("grant_type", "password"), ("username", "ann")],
        &[("grant_type", "refresh_token")],
    ] {
        error(lab.form(form).await, 400, "UNSUPPORTED").await;
    }
    let long = "x".repeat(20 << 10);
    error(lab.form(&[("password", &long)]).await, 400, "UNSUPPORTED").await;
    let post = lab.http.post(format!("{}/v2/token", lab.base));
    error(
        post.json(&json!({})).send().await.unwrap(),
        400,
        "UNSUPPORTED",
    )
    .await;
    // A registry that gives none has no such path.
    let without = serve(registry(Access::everybody())).await;
    let answer = lab.http.get(format!("{without}/v2/token")).send().await;
    assert_eq!(answer.unwrap().status(), 404);
}

#[tokio::test]
async fn what_is_no_token_of_ours_is_refused_and_another_one_may_help() {
    let lab = Lab::start(true).await;
    let huge = "x".repeat(40 << 10);
    for token in ["", "nonsense", "a.b.c", &huge] {
        let asked = lab.ask(Method::GET, &blob("public/app")).bearer_auth(token);
        let answer = asked.send().await.unwrap();
        let challenge = header(&answer, "www-authenticate");
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        error(answer, 401, "UNAUTHORIZED").await;
    }
}

#[tokio::test]
async fn a_refresh_token_stands_for_a_login_until_the_password_changes() {
    let lab = Lab::start(true).await;
    let scope = ("scope", "repository:team/app:pull,push");
    let login = [
        ("grant_type", "password"),
        ("username", "ann"),
        ("password", "bc"),
        scope,
    ];
    let plain: Value = lab.form(&login).await.json().await.unwrap();
    assert_eq!(plain["scope"], "repository:team/app:pull,push");
    assert_eq!(plain.get("refresh_token"), None);
    let wrong = [
        ("grant_type", "password"),
        ("username", "ann"),
        ("password", "b"),
    ];
    error(lab.form(&wrong).await, 401, "UNAUTHORIZED").await;

    let offline = [&login[..], &[("access_type", "offline")]].concat();
    let by_form: Value = lab.form(&offline).await.json().await.unwrap();
    let by_header = lab.told(Some("ann"), "offline_token=true").await;
    for told in [by_form, by_header] {
        let refresh = told["refresh_token"].as_str().unwrap();
        let again = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh),
            scope,
        ];
        let again = lab.form(&again).await;
        assert_eq!(again.status(), 200);
        let again: Value = again.json().await.unwrap();
        assert_eq!(again["scope"], "repository:team/app:pull,push");
        assert_eq!(again["refresh_token"], refresh);
        let pushed = lab.by(&again, Method::POST, &uploads("team/app")).await;
        assert_eq!(pushed.status(), 202);
        // Neither does for the other.
        let as_access = json!({"token": refresh});
        let refused = lab.by(&as_access, Method::GET, &blob("team/app")).await;
        assert_eq!(refused.status(), 401);
        let access = again["token"].as_str().unwrap();
        let form = [("grant_type", "refresh_token"), ("refresh_token", access)];
        error(lab.form(&form).await, 401, "UNAUTHORIZED").await;
    }
    let told = lab.told(Some("bob"), "offline_token=true").await;
    let refresh = told["refresh_token"].as_str().unwrap().to_owned();
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", &*refresh),
    ];
    assert_eq!(lab.form(&form).await.status(), 200);
    let other = HASHED.replace("$05$3", "$05$4");
    let users = lab.dir.path().join("users");
    std::fs::write(
        users,
        format!("ann:{HASHED}\nbob:{other}\n# another length\n"),
    )
    .unwrap();
    for _ in 0..100 {
        if lab.form(&form).await.status() == 401 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    error(lab.form(&form).await, 401, "UNAUTHORIZED").await;
}

#[tokio::test]
async fn a_certificate_is_a_login() {
    let dir = tempfile::tempdir().unwrap();
    new_key(&dir.path().join("key"));
    let rules = || vec![rule("^team/", Some(&["ci"]), &[May::Pull])];
    let plain = Access::new(rules(), None).unwrap();
    let tokens = Access::new(rules(), None).unwrap();
    let tokens = tokens.tokens(config(vec![dir.path().join("key")])).unwrap();
    let http = client();
    let token: Value = {
        let named = registry(tokens).layer(Extension(TlsClient::named("ci")));
        let base = serve(named).await;
        let url = format!("{base}/v2/token?scope=repository:team/app:*&offline_token=true");
        http.get(url).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(token["scope"], "repository:team/app:pull");
    assert_eq!(
        token.get("refresh_token"),
        None,
        "the certificate does that"
    );
    for (name, status) in [("ci", 200), ("bob", 403), ("", 403)] {
        let who = match name {
            "" => TlsClient::default(),
            name => TlsClient::named(name),
        };
        let access = Access::new(rules(), None).unwrap();
        let base = serve(registry(access).layer(Extension(who))).await;
        let answer = http.get(format!("{base}{}", blob("team/app"))).send().await;
        assert_eq!(answer.unwrap().status().as_u16(), status, "{name}");
        let ping = http.get(format!("{base}/v2/")).send().await.unwrap();
        assert_eq!(ping.status().is_success(), !name.is_empty());
    }
    let base = serve(registry(plain).layer(Extension(TlsClient::named("ci")))).await;
    let pushed = http.post(format!("{base}{}", uploads("team/app")));
    let pushed = pushed.header("content-length", "0").send().await.unwrap();
    let told = error(pushed, 403, "DENIED").await;
    assert!(told.starts_with("ci may not"), "{told}");
}

/// A token of somebody else's server.
fn foreign(pair: &EcdsaKeyPair, access: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(&json!({"typ": "JWT", "alg": "ES256"}));
    let claims = json!({
        "iss": "auth.example.com", "aud": SERVICE, "sub": "zed", "exp": 4_102_444_800_u64,
        "access": access,
    });
    let message = format!("{head}.{}", part(&claims));
    let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    format!(
        "{message}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref())
    )
}

fn jwks(pair: &EcdsaKeyPair) -> String {
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    json!({"keys": [{"kty": "EC", "crv": "P-256", "x": part(x), "y": part(y)}]}).to_string()
}

#[tokio::test]
async fn another_server_grants_what_its_tokens_say_as_long_as_its_key_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (
        new_key(&dir.path().join("a")),
        new_key(&dir.path().join("b")),
    );
    let keys = dir.path().join("keys.json");
    std::fs::write(&keys, jwks(&first)).unwrap();
    let server = TokenServerConfig {
        realm: "https://auth.example.com/token".into(),
        service: SERVICE.into(),
        issuer: "auth.example.com".into(),
        keys: vec![keys.clone()],
    };
    let rules = vec![rule("^public/", None, &[May::Pull])];
    let access = Access::new(rules, None)
        .unwrap()
        .token_server(server)
        .unwrap();
    let (base, http) = (serve(registry(access)).await, client());
    let ask = async |token: Option<&str>, method: Method, path: &str| {
        let request = http.request(method, format!("{base}{path}"));
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.header("content-length", "0").send().await.unwrap()
    };
    let grants = json!([
        {"type": "repository", "name": "team/app", "actions": ["pull"]},
        {"type": "repository", "class": "image", "name": "team/more", "actions": ["*"]},
    ]);
    let token = foreign(&first, &grants);
    for (token, method, path, status) in [
        (None, Method::GET, "/v2/".to_owned(), 401),
        (Some(&token), Method::GET, "/v2/".into(), 200),
        (Some(&token), Method::GET, blob("team/app"), 200),
        (Some(&token), Method::POST, uploads("team/app"), 401),
        (Some(&token), Method::POST, uploads("team/more"), 202),
        (Some(&token), Method::DELETE, blob("team/more"), 202),
        (Some(&token), Method::GET, "/v2/_catalog".into(), 401),
        (Some(&token), Method::GET, blob("public/app"), 200),
        (None, Method::GET, blob("public/app"), 200),
        (None, Method::GET, blob("team/app"), 401),
    ] {
        let answer = ask(token.map(String::as_str), method.clone(), &path).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        let challenge = header(&answer, "www-authenticate");
        let is_there = challenge.starts_with("Bearer realm=\"https://auth.example.com/token\"");
        assert_eq!(is_there, status == 401, "{challenge}");
    }
    // Nobody gets one here.
    assert_eq!(ask(None, Method::GET, "/v2/token").await.status(), 404);
    // The server changes its key.
    let newer = foreign(&second, &grants);
    let refused = ask(Some(&newer), Method::GET, &blob("team/app")).await;
    assert_eq!(refused.status(), 401);
    std::fs::write(&keys, format!("{} ", jwks(&second))).unwrap();
    for _ in 0..100 {
        let answer = ask(Some(&newer), Method::GET, &blob("team/app")).await;
        if answer.status() == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let taken = ask(Some(&newer), Method::GET, &blob("team/app")).await;
    assert_eq!(taken.status(), 200);
    let refused = ask(Some(&token), Method::GET, &blob("team/app")).await;
    assert_eq!(refused.status(), 401);
}
