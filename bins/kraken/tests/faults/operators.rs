//! What an operator is told who makes a mistake, or works on a cluster that is not well.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use futures::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use kraken::client::Registry;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken::image;
use kraken_core::Digest;
use kraken_core::net::http::{HttpServer, serve_on};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::common::{Ran, free_addr, kraken, kraken_with, until, within};

async fn cluster(dir: &Path) -> Cluster {
    let options = ClusterOptions {
        agents: 1,
        origins: 1,
        dir: dir.to_path_buf(),
        base_port: None,
    };
    Cluster::start(&options).await.unwrap()
}

/// Runs a command line, in which no word has a space.
async fn run(line: &str) -> Ran {
    kraken(&line.split(' ').collect::<Vec<_>>()).await
}

fn is_said(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(ran.stderr.contains(word), "{word}: {ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_ends_with_2_and_what_fails_with_1() {
    within(120, "exit codes", async {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("file"), "text").unwrap();
        let (here, file, none) = (at(""), at("file"), at("none"));
        let (nobody, digest) = (free_addr(), Digest::of(b"a"));
        assert!(
            run(&format!("ca init --dir {}", at("ca")))
                .await
                .status
                .success()
        );
        for line in [
            "demo --agents 0".to_owned(),
            "console --simulate 0".into(),
            format!("dev --dir {none} --base-port 65500"),
            format!("pull App:v1 {none}"),
            format!("pull app {none}"),
            format!("pull app@nonsense {none}"),
            format!("pull app:v1 {file} --agent {nobody}"),
            format!("push {file} app:v1"),
            format!("push {here} app:v1"),
            format!("blob put {here} --proxy {nobody}"),
            format!("blob put {file} --namespace Odd!"),
            format!("blob put {file} --proxy ftp://a"),
            format!("blob get {digest} --output {here} --agent {nobody}"),
            format!("preheat App:v1 --proxy {nobody}"),
            "explain sha256:12".into(),
            "health ftp://a".into(),
            "queue ls --origin ftp://a".into(),
            "drain --origin ftp://a".into(),
            "tag ls app --build-index ftp://a".into(),
            "replicate now a/b --build-index http://127.0.0.1:1".into(),
            "store gc --now --idle soon".into(),
            "store ls --cert x".into(),
            format!("profile http://{nobody} --output {here}"),
            format!(
                "ca issue --dir {} --role agent --name a/b --out {none}",
                at("ca")
            ),
            format!("ca init --dir {none} --name a/b"),
        ] {
            let ran = run(&line).await;
            assert_eq!(ran.status.code(), Some(2), "{line}: {ran:?}");
            assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{ran:?}");
        }
        for line in [
            format!("pull app:v1 {none} --agent {nobody}"),
            format!("blob put {none} --proxy {nobody}"),
            format!("blob get {digest} --output {none}/file --agent {nobody}"),
            format!("health http://{nobody}"),
            format!("queue ls --origin http://{nobody}"),
            format!("tag ls app --build-index https://{nobody} --cert {none}"),
            format!("sim {none}"),
            format!("ca issue --dir {none} --role agent --name a --out {none}"),
            format!("ca show {file}"),
            format!("runtime check --root {here}"),
            format!("run agent --config {none}"),
        ] {
            let ran = run(&line).await;
            assert_eq!(ran.status.code(), Some(1), "{line}: {ran:?}");
            assert!(ran.stderr.starts_with("kraken: "), "{ran:?}");
        }
        assert!(!Path::new(&none).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_variable_is_one_that_is_not_set() {
    within(60, "variables", async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file").display().to_string();
        let (digest, nobody) = (Digest::of(b"a").to_string(), free_addr().to_string());
        let get = [
            "blob", "get", &digest, "--output", &file, "--agent", &nobody,
        ];
        for name in [
            "KRAKEN_REGISTRY_CA",
            "KRAKEN_REGISTRY_CERT",
            "KRAKEN_REGISTRY_KEY",
            "KRAKEN_AGENT",
            "KRAKEN_LOGIN",
        ] {
            let ran = kraken_with(&[(name, "")], &get).await;
            assert_eq!(ran.status.code(), Some(1), "{name}: {ran:?}");
            is_said(&ran, &[&nobody, "does not answer"]);
        }
        let ran = kraken_with(&[("KRAKEN_LOGIN", "nobody")], &get).await;
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_could_not_be_preheated_are_named_with_the_reason() {
    within(120, "preheating", async {
        let dir = tempfile::tempdir().unwrap();
        let cluster = cluster(dir.path()).await;
        let (proxy, agent) = (cluster.proxy.addr, cluster.agents[0].registry);
        let registry = Registry::new(&proxy.to_string()).unwrap();
        let pushed = image::push_random(&registry, "team/app", "v1", 1 << 20, 1, 7, |_| ());
        pushed.await.unwrap();
        let nobody = free_addr();
        let line = format!("preheat team/app:v1 --proxy {proxy} --hosts {nobody},{agent}");
        let ran = run(&line).await;
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        is_said(&ran, &["1 of 2 hosts have it"]);
        let begin = format!("{nobody}: ");
        let told = ran.stdout.lines().find(|line| line.starts_with(&begin));
        assert!(
            told.is_some_and(|it| it.contains("does not answer")),
            "{ran:?}"
        );
        let ran = run(&format!("{line} --json")).await;
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(
            (&report["ready"], &report["failed"]),
            (&1.into(), &1.into())
        );
        let failure = &report["failures"][0];
        assert_eq!(failure["host"], nobody.to_string());
        let reason = failure["reason"].as_str().unwrap();
        assert!(reason.contains("does not answer"), "{report}");
        cluster.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_only_origin_is_not_drained() {
    within(60, "draining", async {
        let dir = tempfile::tempdir().unwrap();
        let cluster = cluster(dir.path()).await;
        let origin = format!("https://{}", cluster.origins[0].addr);
        let file = |name: &str| dir.path().join("tls").join(name).display().to_string();
        let (cert, key, ca) = (file("operator.crt"), file("operator.key"), file("ca.crt"));
        let tls = ["--cert", &cert, "--key", &key, "--ca", &ca];
        let ran = kraken(&[&["drain", "--origin", &origin][..], &tls].concat()).await;
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        is_said(&ran, &["there is no other origin"]);
        assert!(!cluster.origins[0].origin.is_leaving());
        cluster.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runtimes_are_installed_for_an_agent_that_is_not_there_yet_and_that_is_told() {
    within(60, "installing", async {
        let (root, nobody) = (tempfile::tempdir().unwrap(), free_addr());
        let at = root.path().display();
        let ran = run(&format!(
            "runtime install --root {at} --runtime podman --agent {nobody}"
        ))
        .await;
        assert!(ran.status.success(), "{ran:?}");
        is_said(
            &ran,
            &["the agent at", &nobody.to_string(), "kraken runtime check"],
        );
    })
    .await;
}

/// A registry that answers as `answer` has it.
fn registry<F>(answer: impl Fn(Request<Body>) -> F + Clone + Send + Sync + 'static) -> HttpServer
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let router = Router::new().fallback(answer);
    serve_on(socket, router, None, CancellationToken::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_tried_again_says_what_it_was_told() {
    within(60, "pushing", async {
        let pushes = Arc::new(AtomicUsize::new(0));
        let server = registry(move |request| {
            let pushes = pushes.clone();
            async move {
                if request.method() != Method::POST {
                    return Response::default();
                }
                axum::body::to_bytes(request.into_body(), 1 << 20)
                    .await
                    .unwrap();
                let (status, said) = match pushes.fetch_add(1, Ordering::SeqCst) {
                    0 => (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "two of three origins are away",
                    ),
                    _ => (StatusCode::CREATED, ""),
                };
                Response::builder()
                    .status(status)
                    .body(said.into())
                    .unwrap()
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("layer");
        fs::write(&file, "bytes").unwrap();
        let (file, digest) = (file.display(), Digest::of(b"bytes"));
        let proxy = server.local_addr();
        let ran = run(&format!(
            "blob put {file} --digest {digest} --proxy {proxy}"
        ))
        .await;
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(ran.stdout, format!("{digest}\n"));
        let words = [
            "two of three origins are away",
            "again in 2 s",
            "attempt 2 of 5",
        ];
        is_said(&ran, &words);
    })
    .await;
}

/// A registry that has a blob of ten bytes, and gives these chunks of it.
fn giving(chunks: &'static [&'static str], ends: bool) -> HttpServer {
    registry(move |_| async move {
        let given = stream::iter(chunks).map(|it| Ok::<_, std::io::Error>(Bytes::from(*it)));
        let body = match ends {
            true => Body::from_stream(given),
            false => Body::from_stream(given.chain(stream::pending())),
        };
        let answer = Response::builder().header("content-length", "10");
        answer.body(body).unwrap()
    })
}

fn names_in(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).unwrap();
    let names = files.map(|it| it.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_whole_or_not_at_all() {
    within(60, "files", async {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"0123456789").to_string();
        let file = dir.path().join("layer.tar").display().to_string();
        let get = |agent: &str| {
            let arguments = ["blob", "get", &digest, "--output", &file, "--agent", agent];
            arguments.map(str::to_owned)
        };
        for chunks in [&["012345678X"][..], &["01234"]] {
            let server = giving(chunks, true);
            let arguments = get(&server.local_addr().to_string());
            let ran = kraken(&arguments.each_ref().map(String::as_str)).await;
            assert_eq!(ran.status.code(), Some(1), "{ran:?}");
            assert_eq!(names_in(dir.path()), [""; 0]);
        }
        let server = giving(&["01234"], false);
        let mut child = Command::new(env!("CARGO_BIN_EXE_kraken"))
            .args(get(&server.local_addr().to_string()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = async || (!names_in(dir.path()).is_empty()).then_some(());
        until("the first bytes", begun).await;
        let pid = child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let status = until("its end", async || child.try_wait().unwrap()).await;
        assert_eq!(status.code(), Some(1));
        assert_eq!(names_in(dir.path()), [""; 0]);
        let server = giving(&["01234", "56789"], true);
        let arguments = get(&server.local_addr().to_string());
        let ran = kraken(&arguments.each_ref().map(String::as_str)).await;
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(names_in(dir.path()), ["layer.tar"]);
    })
    .await;
}
