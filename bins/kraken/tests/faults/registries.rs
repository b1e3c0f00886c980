//! Images that go to another registry, the one of the Docker project, while it and ours are killed.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_registry::access::{Access, AccessRule, May, TokenConfig};
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Lab, ask, free_addr, random, until, within};
use crate::replicate::{
    INDEX, MANIFEST, describe, image, push_blob, push_index, push_manifest, referrers_at, tag_at,
    until_tag,
};

/// "bc", as bcrypt hashes it.
const HASHED: &str = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
/// The name `a` with that password.
const BASIC: &str = "Basic YTpiYw==";
const ACCEPT: &str =
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";

/// A docker-registry. It dies with this.
pub(crate) struct DockerRegistry {
    dir: TempDir,
    program: PathBuf,
    pub(crate) addr: SocketAddr,
    process: Child,
}

impl DockerRegistry {
    /// Starts one that lets in by `auth`; none, after saying so, when it is not installed.
    pub(crate) async fn start(auth: impl Fn(&TempDir) -> Value) -> Option<Self> {
        let path = env::var("PATH").unwrap_or_default();
        let path = format!("{path}:/usr/sbin:/sbin");
        let found = env::split_paths(&path).map(|dir| dir.join("docker-registry"));
        let Some(program) = found.into_iter().find(|file| file.is_file()) else {
            let line = "images that go to another registry: docker-registry is not installed";
            let required = env::var("KRAKEN_REQUIRE_CLIENTS").as_deref() == Ok("1");
            assert!(!required, "KRAKEN_REQUIRE_CLIENTS=1 forbids to skip {line}");
            let _ = writeln!(std::io::stderr(), "SKIPPED: {line}");
            return None;
        };
        let (dir, addr) = (tempfile::tempdir().unwrap(), free_addr());
        let config = json!({
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": dir.path().join("data")},
                "delete": {"enabled": true},
            },
            // What an upload is known by outlives the process.
            "http": {"addr": addr, "secret": "s"},
            "auth": auth(&dir),
        });
        fs::write(dir.path().join("config.yml"), config.to_string()).unwrap();
        let process = Self::spawn(&program, &dir);
        let mut registry = Self {
            dir,
            program,
            addr,
            process,
        };
        registry.answers().await;
        Some(registry)
    }

    fn spawn(program: &PathBuf, dir: &TempDir) -> Child {
        let log = dir.path().join("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(dir.path().join("config.yml"));
        let errors = log.try_clone().unwrap();
        let command = command.stdin(Stdio::null()).stdout(log).stderr(errors);
        command.spawn().unwrap()
    }

    async fn answers(&mut self) {
        until("the registry answers", async || {
            let stream = tokio::net::TcpStream::connect(self.addr).await;
            stream.ok().map(drop)
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.process = Self::spawn(&self.program, &self.dir);
        self.answers().await;
    }

    /// How often it was asked for something, according to its log.
    fn asked(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines().filter(|line| line.contains(what)).count()
    }

    /// An answer for a client that may read there.
    pub(crate) async fn get(&self, what: &str) -> Option<(Option<Digest>, Bytes)> {
        let request = Request::get(format!("http://{}/v2/mirror/{what}", self.addr));
        let request = request
            .header("accept", ACCEPT)
            .header("authorization", BASIC);
        let client = HttpClient::new(None).unwrap();
        let answer = client.send(request.body(HttpBody::Empty).unwrap()).await;
        let answer = answer.ok()?;
        let digest = answer.headers().get("docker-content-digest");
        let digest = digest.map(|it| it.to_str().unwrap().parse().unwrap());
        let is_there = answer.status() == StatusCode::OK;
        let bytes = answer.bytes(64 << 20).await.ok()?;
        is_there.then_some((digest, bytes))
    }

    pub(crate) async fn until_tag(&self, name: &str, digest: Option<Digest>) {
        let (repo, tag) = name.split_once(':').unwrap();
        let what = format!("{repo}/manifests/{tag}");
        until(&format!("{name} is {digest:?}"), async || {
            let found = self.get(&what).await.and_then(|(digest, _)| digest);
            (found == digest).then_some(())
        })
        .await;
    }

    async fn referrers(&self, repo: &str, subject: Digest) -> BTreeSet<String> {
        let what = format!("{repo}/manifests/sha256-{}", subject.hex());
        let Some((_, bytes)) = self.get(&what).await else {
            return BTreeSet::new();
        };
        let list: Value = serde_json::from_slice(&bytes).unwrap();
        let listed = list["manifests"].as_array().unwrap().iter();
        let digest = |it: &Value| it["digest"].as_str().unwrap().to_owned();
        listed.map(digest).collect()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn password(dir: &TempDir) -> Value {
    let users = dir.path().join("users");
    fs::write(&users, format!("a:{HASHED}\n")).unwrap();
    json!({"htpasswd": {"realm": "r", "path": users}})
}

/// A cluster that sends what begins with `team/` there.
pub(crate) async fn sending_to(
    registry: &DockerRegistry,
    (user, limit): (&str, Option<&str>),
) -> Lab {
    Lab::start_with(2, 0, |role, config| {
        if role == "build-index" {
            let login = json!({"username": user, "password": {"text": "bc"}});
            config["remotes"] = json!([{
                "name": "other", "tags": ["^team/"], "limit": limit,
                "registry": {
                    "url": format!("http://{}", registry.addr),
                    "repository": "mirror/{namespace}",
                    "credentials": {"password": login},
                },
            }]);
        }
    })
    .await
}

pub(crate) async fn status(lab: &Lab) -> Option<Value> {
    let status = lab.get_json("build-index", "/replicate/status").await?;
    Some(status["remotes"][0].clone())
}

async fn until_nothing_waits(lab: &Lab) {
    until("nothing waits", async || {
        (status(lab).await?["waiting"] == 0).then_some(())
    })
    .await;
}

async fn delete(proxy: &str, repo: &str, reference: &str) {
    let url = format!("http://{proxy}/v2/{repo}/manifests/{reference}");
    let removed = ask(Method::DELETE, &url, HttpBody::Empty).await;
    assert_eq!(removed.status(), StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_to_another_registry_with_all_they_need_and_are_removed_there() {
    within(240, "another registry", async {
        let Some(registry) = DockerRegistry::start(password).await else {
            return;
        };
        let lab = sending_to(&registry, ("a", None)).await;
        let proxy = lab.host("proxy");
        let (v1, needed) = push_index(&proxy, "team/app", "v1", 1).await;
        push_index(&proxy, "other/app", "v1", 50).await;
        registry.until_tag("team/app:v1", Some(v1)).await;
        for digest in needed {
            let kinds = ["blobs", "manifests"].map(|kind| format!("team/app/{kind}/{digest}"));
            let [blob, manifest] = kinds;
            assert!(
                registry
                    .get(&blob)
                    .await
                    .or(registry.get(&manifest).await)
                    .is_some()
            );
        }
        // What is about it is listed where clients look, also when it comes later.
        let subject = json!({"mediaType": INDEX, "digest": v1, "size": 1});
        let mut signatures = BTreeSet::new();
        for seed in [90, 91] {
            let (signature, _) = image(&proxy, "team/app", seed, Some(subject.clone())).await;
            let digest = Digest::of(signature.to_string().as_bytes()).to_string();
            push_manifest(&proxy, "team/app", &digest, &signature).await;
            signatures.insert(digest);
        }
        until("the signatures are listed", async || {
            (registry.referrers("team/app", v1).await == signatures).then_some(())
        })
        .await;
        let gone = signatures.pop_first().unwrap();
        delete(&proxy, "team/app", &gone).await;
        until("one is removed", async || {
            (registry.referrers("team/app", v1).await == signatures).then_some(())
        })
        .await;
        let gone = format!("team/app/manifests/{gone}");
        until("and its manifest", async || {
            registry.get(&gone).await.is_none().then_some(())
        })
        .await;
        // Set to something else; two tags of one image, of which one is removed.
        let (v2, _) = push_index(&proxy, "team/app", "v1", 2).await;
        registry.until_tag("team/app:v1", Some(v2)).await;
        let (same, _) = push_index(&proxy, "team/app", "stable", 2).await;
        assert_eq!(same, v2);
        registry.until_tag("team/app:stable", Some(v2)).await;
        delete(&proxy, "team/app", "v1").await;
        registry.until_tag("team/app:v1", None).await;
        registry.until_tag("team/app:stable", Some(v2)).await;
        // Another repository shares the blobs.
        let (copy, _) = push_index(&proxy, "team/copy", "v1", 2).await;
        registry.until_tag("team/copy:v1", Some(copy)).await;
        assert!(registry.asked("/v2/mirror/team/copy/blobs/uploads/?mount=") > 0);
        assert_eq!(registry.asked("PUT /v2/mirror/team/copy/blobs/uploads/"), 0);
        assert_eq!(registry.get("other/app/manifests/v1").await, None);
        until_nothing_waits(&lab).await;
        let state = lab
            .get_json("build-index", "/remotes/tags/team%2Fapp%3Astable")
            .await;
        let state = state.unwrap()[0].clone();
        assert_eq!(
            (&state["is_there"], &state["there"]),
            (&json!(true), &json!(v2))
        );
    })
    .await;
}

/// An image of one large layer.
pub(crate) async fn push_large(proxy: &str, repo: &str, seed: u64) -> Digest {
    let (config, layer) = (Bytes::from("{}"), random(30 << 20, seed));
    push_blob(proxy, repo, &config).await;
    push_blob(proxy, repo, &layer).await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": describe("application/x.config", &config),
        "layers": [describe("application/x.layer", &layer)],
    });
    push_manifest(proxy, repo, "v1", &manifest).await
}

pub(crate) async fn until_sent(lab: &Lab, bytes: u64) {
    until(&format!("{bytes} bytes are on their way"), async || {
        (status(lab).await?["sent_bytes"].as_u64()? >= bytes).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_goes_on_where_it_was_when_it_was_paused_and_arrives_when_both_ends_die() {
    within(240, "a large blob to another registry", async {
        let Some(mut registry) = DockerRegistry::start(password).await else {
            return;
        };
        let mut lab = sending_to(&registry, ("a", Some("9MB"))).await;
        let proxy = lab.host("proxy");
        let digest = push_large(&proxy, "team/paused", 1).await;
        until_sent(&lab, 10 << 20).await;
        lab.post("build-index", "/replicate/other/pause", &json!({}))
            .await;
        let before = status(&lab).await.unwrap()["sent_bytes"].clone();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            status(&lab).await.unwrap()["sent_bytes"],
            before,
            "it stops at once"
        );
        lab.kill("build-index");
        registry.kill();
        registry.restart().await;
        lab.restart("build-index").await;
        lab.post("build-index", "/replicate/other/resume", &json!({}))
            .await;
        registry.until_tag("team/paused:v1", Some(digest)).await;
        let begun = "POST /v2/mirror/team/paused/blobs/uploads/ HTTP/1.1\" 202";
        let begun = registry.asked(begun);
        assert_eq!(begun, 2, "each blob was begun once");

        let digest = push_large(&proxy, "team/killed", 2).await;
        let sent = status(&lab).await.unwrap()["sent_bytes"].as_u64().unwrap();
        until_sent(&lab, sent + (9 << 20)).await;
        registry.kill();
        registry.restart().await;
        until_sent(&lab, sent + (18 << 20)).await;
        lab.kill("build-index");
        lab.restart("build-index").await;
        registry.until_tag("team/killed:v1", Some(digest)).await;
        until_nothing_waits(&lab).await;
    })
    .await;
}

/// A registry of ours stands for those that keep lists of referrers and remove tags by their names.
#[tokio::test(flavor = "multi_thread")]
async fn images_go_to_a_registry_that_lists_referrers_and_removes_tags_itself() {
    within(180, "a registry with lists of referrers", async {
        let there = Lab::start(2, 0).await;
        let other = there.host("proxy");
        let lab = Lab::start_with(2, 0, |role, config| {
            if role == "build-index" {
                let registry = json!({
                    "url": format!("http://{other}"), "repository": "copy/{namespace}", "prefix": "team/",
                });
                config["remotes"] =
                    json!([{"name": "other", "tags": ["^team/"], "registry": registry}]);
            }
        })
        .await;
        let proxy = lab.host("proxy");
        let large = push_large(&proxy, "team/large", 1).await;
        until_tag(&other, ("copy/large", "v1"), Some(large)).await;
        let subject = json!({"mediaType": MANIFEST, "digest": large, "size": 1});
        let (signature, _) = image(&proxy, "team/large", 2, Some(subject)).await;
        let digest = Digest::of(signature.to_string().as_bytes()).to_string();
        push_manifest(&proxy, "team/large", &digest, &signature).await;
        until("the signature is listed", async || {
            let listed = referrers_at(&other, "copy/large", large).await;
            (listed == [digest.clone()]).then_some(())
        })
        .await;
        // No tag of a list was made.
        let list = format!("sha256-{}", large.hex());
        assert_eq!(tag_at(&other, "copy/large", &list).await, None);
        delete(&proxy, "team/large", &digest).await;
        until("it is listed no more", async || {
            let listed = referrers_at(&other, "copy/large", large).await;
            listed.is_empty().then_some(())
        })
        .await;
        delete(&proxy, "team/large", "v1").await;
        until_tag(&other, ("copy/large", "v1"), None).await;
        // What somebody else has set there under a tag that was removed here stays, and that is told.
        let (theirs, _) = push_index(&other, "copy/large", "v1", 7).await;
        let name = "/remotes/tags/team%2Flarge%3Av1";
        lab.post("build-index", name, &json!({})).await;
        until("it is told", async || {
            let refused = status(&lab).await?["refused"][0].clone();
            refused["reason"].as_str()?.contains("which it never was here").then_some(())
        })
        .await;
        assert_eq!(tag_at(&other, "copy/large", "v1").await, Some(theirs));
        // A tag that is set wins.
        let (ours, _) = push_index(&proxy, "team/large", "v1", 8).await;
        until_tag(&other, ("copy/large", "v1"), Some(ours)).await;
    })
    .await;
}

/// A token server, by which `writer` may write what begins with `mirror/team/app`.
async fn token_server(dir: &TempDir) -> (String, PathBuf) {
    let path = |name: &str| dir.path().join(name);
    let (cert, key) = CertAuthority::create().unwrap().to_pem();
    fs::write(path("users"), format!("writer:{HASHED}\na:{HASHED}\n")).unwrap();
    fs::write(path("cert"), cert).unwrap();
    fs::write(path("key"), key).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("http://{}/v2/token", listener.local_addr().unwrap());
    let rule = AccessRule {
        repositories: "^mirror/team/app".parse().unwrap(),
        users: Some(["writer".to_owned()].into()),
        may: [May::Pull, May::Push, May::Delete].into(),
    };
    let config = TokenConfig {
        realm: realm.clone(),
        service: "other".into(),
        keys: vec![path("key")],
        lifetime: Duration::from_secs(120),
        refresh: None,
    };
    let access = Access::new(vec![rule], Some(path("users"))).unwrap();
    let registry = PullState::new(MemoryBlobs::default(), MemoryTags::default());
    let app = pull::router(registry.access(access.tokens(config).unwrap()));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (realm, path("cert"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_and_what_they_do_not_grant_is_told() {
    within(120, "another registry with tokens", async {
        let keys = tempfile::tempdir().unwrap();
        let (realm, cert) = token_server(&keys).await;
        let token = json!({"token": {
            "realm": realm, "service": "other", "issuer": "other", "rootcertbundle": cert,
        }});
        let Some(registry) = DockerRegistry::start(|_| token.clone()).await else {
            return;
        };
        let lab = sending_to(&registry, ("writer", None)).await;
        let proxy = lab.host("proxy");
        for repo in ["team/app", "team/app-2"] {
            let (digest, _) = push_index(&proxy, repo, "v1", 1).await;
            let name = format!("{repo}:v1").replace('/', "%2F").replace(':', "%3A");
            until(&format!("{repo} is there"), async || {
                let path = format!("/remotes/tags/{name}");
                let state = lab.get_json("build-index", &path).await?[0].clone();
                (state["there"] == json!(digest)).then_some(())
            })
            .await;
        }
        assert_eq!(
            registry.asked("PUT /v2/mirror/team/app-2/blobs/uploads/"),
            0
        );
        delete(&proxy, "team/app", "v1").await;
        until_nothing_waits(&lab).await;
        push_index(&proxy, "team/closed", "v1", 2).await;
        until("it is told that this may not be written", async || {
            let error = status(&lab).await?["last_error"].as_str()?.to_owned();
            (error.contains("team/closed:v1") && error.contains("401")).then_some(())
        })
        .await;
        // It holds up nothing else.
        push_index(&proxy, "team/app", "v2", 3).await;
        until("all but that is there", async || {
            (status(&lab).await?["waiting"] == 1).then_some(())
        })
        .await;
    })
    .await;
}
