//! With programs and a dockerd that tell what they were asked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tower::ServiceExt as _;

use super::*;

const AGENT: &str = "127.0.0.1:7610";

fn image(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn words(config: PreloadConfig, namespace: Option<&str>) -> String {
    let preloader = Preloader::new(config, AGENT.into()).unwrap();
    let namespace = namespace.map(|it| it.parse().unwrap());
    let (program, arguments) = preloader.command(&image("team/app:v1"), namespace.as_ref());
    let arguments = arguments.iter().map(|it| it.to_str().unwrap());
    let all: Vec<_> = std::iter::once(program.to_str().unwrap())
        .chain(arguments)
        .collect();
    all.join(" ")
}

#[test]
fn programs_are_told_who_to_ask() {
    let config = PreloadConfig::of(Puller::Containerd);
    assert_eq!(
        words(config.clone(), None),
        "ctr --address /run/containerd/containerd.sock --namespace k8s.io images pull \
         --plain-http 127.0.0.1:7610/team/app:v1"
    );
    let mirrored = PreloadConfig {
        registry: Some("registry.corp.example".to_owned().try_into().unwrap()),
        snapshotter: Some("native".parse().unwrap()),
        ..config
    };
    assert_eq!(
        words(mirrored, Some("other")),
        "ctr --address /run/containerd/containerd.sock --namespace other images pull \
         --snapshotter native --hosts-dir /etc/containerd/certs.d registry.corp.example/team/app:v1"
    );
    let podman = PreloadConfig::of(Puller::Podman);
    assert_eq!(
        words(podman.clone(), None),
        "podman pull --quiet --tls-verify=false 127.0.0.1:7610/team/app:v1"
    );
    let mirrored = PreloadConfig {
        registry: Some("registry.corp.example".to_owned().try_into().unwrap()),
        ..podman
    };
    assert_eq!(
        words(mirrored, None),
        "podman pull --quiet registry.corp.example/team/app:v1"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let of = PreloadConfig::of;
    let wrong = |config: PreloadConfig| {
        let found = Preloader::new(config, AGENT.into()).unwrap_err();
        found.to_string()
    };
    let socket = Some(PathBuf::from("/run/x.sock"));
    let podman = PreloadConfig {
        socket,
        ..of(Puller::Podman)
    };
    let told = wrong(podman);
    assert!(
        told.contains("socket: this means nothing to podman"),
        "{told}"
    );
    let docker = PreloadConfig {
        namespace: Some("k8s.io".parse().unwrap()),
        ..of(Puller::Docker)
    };
    let told = wrong(docker);
    assert!(
        told.contains("namespace: this means nothing to docker"),
        "{told}"
    );
    let none = PreloadConfig {
        at_once: 0,
        ..of(Puller::Docker)
    };
    assert!(wrong(none).contains("between 1 and 16"));
    for text in ["", "-x", "a..b", "a b", "k8s.io;", &"a".repeat(77)] {
        assert!(text.parse::<Word>().is_err(), "{text:?}");
    }
    for text in ["team/app", "-x:v1", "team/app:-v1", "team/app@v1", "A/b:v1"] {
        assert!(text.parse::<ImageName>().is_err(), "{text:?}");
    }
    assert_eq!(reachable(([0, 0, 0, 0], 7610).into()), AGENT);
    assert_eq!(reachable("[::]:7610".parse().unwrap()), "[::1]:7610");
}

/// A program that does what its lines say.
/// A program of its own. Another process writes it: what this one has open to write, a program that another
/// test starts at that moment has open too, and nothing can be run that is open to write (`ETXTBSY`).
fn program(dir: &Path, lines: &str) -> PathBuf {
    let (text, file) = (dir.join("text"), dir.join("program"));
    fs::write(&text, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    let copied = Command::new("cp").arg("-p").args([&text, &file]).status();
    assert!(copied.unwrap().success());
    file
}

fn podman(dir: &TempDir, lines: &str) -> Preloader {
    let config = PreloadConfig {
        program: Some(program(dir.path(), lines)),
        ..PreloadConfig::of(Puller::Podman)
    };
    Preloader::new(config, AGENT.into()).unwrap()
}

async fn ask(preloader: Option<Preloader>, path: &str, header: Option<&str>) -> (u16, String) {
    let app = with_preload(Router::new(), preloader);
    let mut request = Request::get(path);
    if let Some(header) = header {
        request = request.header(header, "cross-site");
    }
    let answer = app.oneshot(request.body(Body::empty()).unwrap()).await;
    let answer = answer.unwrap();
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
    (status, String::from_utf8(body.unwrap().into()).unwrap())
}

#[tokio::test]
async fn a_runtime_pulls_and_its_errors_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let well = || podman(&dir, "exit 0");
    for path in [
        "/preload/tags/team/app:v1",
        "/preload/tags/team%2Fapp:v1?runtime=podman",
    ] {
        let (status, said) = ask(Some(well()), path, None).await;
        assert_eq!(
            (status, said.as_str()),
            (200, "127.0.0.1:7610/team/app:v1\n")
        );
    }
    let broken = || {
        podman(
            &dir,
            "head -c 100000 /dev/zero | tr '\\0' x >&2; echo no such thing >&2; exit 3",
        )
    };
    let (status, said) = ask(Some(broken()), "/preload/tags/team/app:v1", None).await;
    assert_eq!(status, 500);
    assert!(
        said.contains("xxno such thing") && said.len() < 5000,
        "{said}"
    );
    for (path, wanted) in [
        ("/preload/tags/team/app", 400),
        ("/preload/tags/team/app:v1?runtime=docker", 400),
        ("/preload/tags/team/app:v1?runtime=rkt", 400),
        ("/preload/tags/team/app:v1?namespace=k8s.io", 400),
        ("/preload/tags/team/app:v1?namespace=-x", 400),
        ("/preload/tags/-x:v1", 400),
    ] {
        let (status, said) = ask(Some(well()), path, None).await;
        assert_eq!(status, wanted, "{path}: {said}");
    }
    let page = ask(
        Some(well()),
        "/preload/tags/team/app:v1",
        Some("sec-fetch-site"),
    );
    assert_eq!(page.await.0, 403);
    let (status, said) = ask(None, "/preload/tags/team/app:v1", None).await;
    assert!(status == 409 && said.contains("write `preload`"), "{said}");
    let config = PreloadConfig {
        program: Some(dir.path().join("nothing")),
        ..PreloadConfig::of(Puller::Containerd)
    };
    let absent = Preloader::new(config, AGENT.into()).unwrap();
    let (status, said) = ask(Some(absent), "/preload/tags/team/app:v1", None).await;
    assert!(status == 503 && said.contains("No such file"), "{said}");
}

#[tokio::test]
async fn few_are_pulled_at_once_and_not_too_many_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    // Says that it runs, and goes on when it is let.
    let lines = format!("echo >>{path}/begun; while [ ! -e {path}/go ]; do sleep 0.01; done");
    let preloader = Arc::new(podman(&dir, &lines));
    let pulls: Vec<_> = (0..2 + WAITING)
        .map(|_| {
            let preloader = preloader.clone();
            tokio::spawn(async move { preloader.pull(&image("team/app:v1"), None).await })
        })
        .collect();
    let begun = || {
        fs::read_to_string(dir.path().join("begun"))
            .unwrap_or_default()
            .len()
    };
    while begun() < 2 || preloader.places.available_permits() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let more = preloader.pull(&image("team/app:v1"), None).await;
    assert!(matches!(more, Err(PreloadError::Busy)));
    assert_eq!(begun(), 2);
    fs::write(dir.path().join("go"), "").unwrap();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(begun(), 2 + WAITING);
}

#[tokio::test]
async fn what_takes_too_long_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let lines = format!(
        "echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000",
        pid.display()
    );
    let config = PreloadConfig {
        program: Some(program(dir.path(), &lines)),
        timeout: Some(crate::store::Age(Duration::from_millis(500))),
        ..PreloadConfig::of(Puller::Podman)
    };
    let preloader = Preloader::new(config, AGENT.into()).unwrap();
    let pulled = preloader.pull(&image("team/app:v1"), None).await;
    assert!(matches!(pulled, Err(PreloadError::Late(_))), "{pulled:?}");
    let Ok(pid) = fs::read_to_string(&pid) else {
        return; // It was ended before it did anything.
    };
    let process = PathBuf::from(format!("/proc/{}/cmdline", pid.trim()));
    // What was killed has no command line, and is reaped later.
    while fs::read(&process).is_ok_and(|line| !line.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A dockerd that notes what it is asked and gives this answer.
fn dockerd(
    dir: &TempDir,
    status: StatusCode,
    body: &'static str,
) -> (Preloader, Arc<Mutex<String>>) {
    let socket = dir.path().join(format!("{}.sock", body.len()));
    let listener = UnixListener::bind(&socket).unwrap();
    let noted = Arc::new(Mutex::new(String::new()));
    let noting = noted.clone();
    let app = Router::new().fallback(async move |request: Request| -> Response {
        *noting.lock().unwrap() = format!("{} {}", request.method(), request.uri());
        (status, body).into_response()
    });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let config = PreloadConfig {
        socket: Some(socket),
        ..PreloadConfig::of(Puller::Docker)
    };
    (Preloader::new(config, AGENT.into()).unwrap(), noted)
}

#[tokio::test]
async fn dockerd_is_asked_over_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (docker, noted) = dockerd(
        &dir,
        StatusCode::OK,
        "{\"status\":\"Pulling\"}\r\n{\"status\":\"Done\",\"id\":\"v1\"}\r\n",
    );
    let name = docker.pull(&image("team/app:v1"), None).await.unwrap();
    assert_eq!(name, "127.0.0.1:7610/team/app:v1");
    assert_eq!(
        noted.lock().unwrap().as_str(),
        "POST /images/create?fromImage=127.0.0.1:7610%2Fteam%2Fapp&tag=v1"
    );
    let digest = format!("sha256:{}", "a".repeat(64));
    docker
        .pull(&image(&format!("team/app@{digest}")), None)
        .await
        .unwrap();
    let tag = format!("&tag=sha256:{}", "a".repeat(64));
    assert!(noted.lock().unwrap().ends_with(&tag));

    // It fails behind a head that says it works, also in the last line.
    let said = "{\"status\":\"x\"}\n{\"errorDetail\":{\"message\":\"manifest unknown\"},\"error\":\"manifest unknown\"}";
    let (docker, _) = dockerd(&dir, StatusCode::OK, said);
    let error = docker.pull(&image("team/app:v1"), None).await.unwrap_err();
    assert!(
        error.to_string().ends_with("says: manifest unknown"),
        "{error}"
    );
    let (docker, _) = dockerd(
        &dir,
        StatusCode::NOT_FOUND,
        "{\"message\":\"no such image\"}",
    );
    let error = docker.pull(&image("team/app:v1"), None).await.unwrap_err();
    assert!(
        error.to_string().contains("404 Not Found: no such image"),
        "{error}"
    );
    let config = PreloadConfig {
        socket: Some(dir.path().join("none.sock")),
        ..PreloadConfig::of(Puller::Docker)
    };
    let docker = Preloader::new(config, AGENT.into()).unwrap();
    let error = docker.pull(&image("team/app:v1"), None).await.unwrap_err();
    assert!(matches!(error, PreloadError::Away { .. }), "{error}");
}
