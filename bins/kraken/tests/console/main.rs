//! The console in a real browser: every page, clicked through.
//!
//! Without Chromium these tests print `SKIPPED:`; with `KRAKEN_REQUIRE_CLIENTS=1` they fail instead. With
//! `KRAKEN_SCREENSHOTS=docs/images` they leave pictures there.

#![expect(clippy::unwrap_used, reason = "in a test, also in what it is made of")]
#![expect(clippy::print_stdout, reason = "frame times, and what is skipped")]

mod browser;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use browser::Browser;
use http::Request;
use kraken::client::{Checked, Registry};
use kraken::cluster::{Cluster, ClusterOptions};
use kraken::crowd::Crowd;
use kraken::image;
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_core::{Digest, Limits};
use kraken_registry::Manifest;
use serde_json::Value;
use tempfile::TempDir;

const IMAGE: &str = "library/app";
const TAG: &str = "v1";
const AGENTS: u16 = 12;
/// The image, and what an agent may receive: slow enough to be looked at.
const SIZE: u64 = 160 << 20;
const DOWNLOAD: u64 = 5 << 20;
/// What an origin may send meanwhile: most has to come from other agents, as in a large cluster.
const SEED: u64 = 4 << 20;

/// What the console answers to a question.
async fn ask(console: SocketAddr, question: &str) -> Value {
    let request = Request::get(format!("http://{console}/console/api/{question}"));
    let request = request.body(HttpBody::Empty).unwrap();
    let answer = HttpClient::new(None).unwrap().ask(request).await.unwrap();
    answer.json(1 << 20).await.unwrap()
}

/// Asks again and again until the answer is as it should be.
async fn until(console: SocketAddr, question: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = ask(console, question).await;
        if is_right(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "{question}: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_tell_the_console_what_they_pulled_and_from_whom() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(&dir, (3, None)).await;
    let console = cluster.tracker.console.unwrap();
    until(console, "cluster", |it| it["reporting"] == 3).await;
    let proxy = Registry::new(&cluster.proxy.addr.to_string()).unwrap();
    image::push_random(&proxy, IMAGE, TAG, 24 << 20, 1, 1, |_| {})
        .await
        .unwrap();
    for agent in &cluster.agents {
        pull(agent.registry).await;
    }
    let of = format!("rollout?of={IMAGE}:{TAG}");
    let rollout = until(console, &of, |it| it["rollouts"][0]["ready"] == 3).await;
    let blobs = rollout["rollouts"][0]["blobs"].as_array().unwrap();
    let layer = blobs
        .iter()
        .max_by_key(|blob| blob["length"].as_u64())
        .unwrap();
    let digest = layer["digest"].as_str().unwrap();
    let received = |it: &Value| {
        let bytes = |of: &str| it["moved"][of].as_u64().unwrap();
        bytes("from_agents") + bytes("from_origins")
    };
    let all = 3 * layer["length"].as_u64().unwrap();
    let swarm = until(console, &format!("swarms/{digest}"), |it| {
        received(it) == all
    })
    .await;
    assert_eq!(swarm["namespace"], IMAGE);
    let members = ask(console, &format!("swarms/{digest}/members?order=name")).await;
    for (place, member) in members["members"].as_array().unwrap().iter().enumerate() {
        assert_eq!(member["name"], format!("agent-{}", place + 1));
        let sources = member["sources"].as_array().unwrap();
        let sum: u64 = sources.iter().map(|it| it["bytes"].as_u64().unwrap()).sum();
        assert_eq!(sum * 3, all, "all its bytes have a source");
        for source in sources {
            let name = source["name"].as_str().unwrap();
            let role = if source["is_origin"] == true {
                "origin-"
            } else {
                "agent-"
            };
            assert!(name.starts_with(role), "{name}");
        }
    }
    until(console, "throughput", |it| {
        let steps = it["steps"].as_array().unwrap().iter();
        let moved = steps.map(|step| received(&serde_json::json!({"moved": step[1]})));
        moved.sum::<u64>() >= all
    })
    .await;
    cluster.stop().await;
}

/// Drives a browser on a thread of its own while the cluster goes on.
async fn drive(test: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(test).await.unwrap();
}

async fn cluster(dir: &TempDir, (agents, download): (u16, Option<u64>)) -> Cluster {
    let options = ClusterOptions {
        agents,
        origins: 3,
        dir: dir.path().to_path_buf(),
        base_port: None,
    };
    let cluster = Cluster::start(&options).await.unwrap();
    while cluster.tracker.tracker.live_origins() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for origin in cluster.origins.iter().filter(|_| download.is_some()) {
        let mut limits = Limits::NONE;
        limits.upload = NonZeroU64::new(SEED);
        origin.origin.set_limits(limits);
    }
    for agent in &cluster.agents {
        let mut limits = Limits::NONE;
        limits.download = download.and_then(NonZeroU64::new);
        agent.agent.set_limits(limits);
    }
    cluster
}

/// Pulls an image as a container runtime does.
async fn pull(agent: SocketAddr) {
    let registry = Registry::new(&agent.to_string()).unwrap();
    let (_, manifest) = registry.manifest(IMAGE, TAG).await.unwrap();
    let manifest = Manifest::parse(&manifest).unwrap();
    let blobs = manifest
        .blobs()
        .map(|blob| pull_blob(&registry, blob.digest));
    futures::future::join_all(blobs).await;
}

async fn pull_blob(registry: &Registry, digest: Digest) {
    use futures::StreamExt as _;
    let (_, mut body) = registry.blob(IMAGE, digest).await.unwrap();
    let mut checked = Checked::new(digest);
    while let Some(chunk) = body.next().await {
        checked.update(&chunk.unwrap());
    }
    checked.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_shows_a_running_swarm_without_an_error() {
    let Some(program) = browser::program() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(&dir, (AGENTS, Some(DOWNLOAD))).await;
    let console = cluster.tracker.console.unwrap();
    let proxy = Registry::new(&cluster.proxy.addr.to_string()).unwrap();
    image::push_random(&proxy, IMAGE, TAG, SIZE, 2, 1, |_| {})
        .await
        .unwrap();
    // First of all: what takes long to start would find the swarm at its end.
    let browser = tokio::task::spawn_blocking(move || Browser::start(&program));
    let mut browser = browser.await.unwrap();
    let pulls = cluster.agents.iter().enumerate().map(|(number, agent)| {
        let (registry, wait) = (agent.registry, Duration::from_millis(400 * number as u64));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            pull(registry).await;
        })
    });
    let pulls: Vec<_> = pulls.collect();
    drive(move || click_through(&mut browser, console)).await;
    for pull in pulls {
        pull.await.unwrap();
    }
    cluster.stop().await;
}

fn click_through(browser: &mut Browser, console: SocketAddr) {
    browser.go(&format!("http://{console}/"));
    let ready = "document.querySelectorAll('td .dot.ready').length";
    // Each origin stands in two tables, the others in one.
    browser.until("all processes are ready", &format!("{ready} === 9"));
    browser.until(
        "hosts report",
        &holds(".card .more", &format!("{AGENTS} report")),
    );

    visit(browser, "swarms", "Swarms");
    browser.until("bytes flow", &holds("td", "/s"));
    browser.shoot("swarms");
    // The manifest moves, too, and has no more than one piece.
    let layer = "[...document.querySelectorAll('tbody tr')].find((it) => it.textContent.includes('80.0 MiB'))?.querySelector('a').title";
    browser.until("a layer is there", layer);
    let digest = browser.eval(layer);
    browser.click(&format!("td a[title={digest}]"));
    browser.until(
        "the graph is painted",
        "JSON.parse(document.querySelector('canvas.graph')?.dataset.frames ?? '{}').count > 30",
    );
    browser.until("a host has a part of it", "[...document.querySelectorAll('td .bar > i')].some((it) => parseFloat(it.style.width) > 25)");
    browser.until("its bytes came from agents", &holds("td.wrap", "agent-"));
    browser.shoot("blob-light");
    let half = "parseFloat(document.querySelectorAll('.card .value')[1].textContent) > 45";
    browser.until("half of all bytes are there", half);
    browser.prefers("dark");
    let dark = "getComputedStyle(document.body).backgroundColor === 'rgb(11, 17, 24)'";
    browser.until("it is dark", dark);
    browser.until("the graph is painted anew", "(window.before ??= JSON.parse(document.querySelector('canvas.graph').dataset.frames).count, JSON.parse(document.querySelector('canvas.graph').dataset.frames).count > window.before + 30)");
    browser.shoot("blob-dark");
    point_at_a_host(browser);
    browser.prefers("light");

    browser.click("td a[href^='#/hosts/']");
    browser.until("a host's page", &holds("h1", "Host agent-"));
    browser.until(
        "it tells from whom",
        "document.querySelectorAll('section td').length > 2",
    );
    browser.shoot("host");
    visit(browser, "hosts", "Hosts");
    browser.click("input[type=search]");
    browser.write("agent-7");
    browser.until(
        "one host is found",
        "document.querySelectorAll('tbody tr').length === 1",
    );

    visit(browser, "rollouts", "Rollouts");
    browser.click("input[type=search]");
    browser.write(&format!("{IMAGE}:{TAG}"));
    browser.press("Enter");
    let two = "document.querySelectorAll('section').length === 2";
    let ready = holds("section article", &format!("of {AGENTS} hosts ready"));
    browser.until("the image is followed", &format!("{two} && {ready}"));
    browser.shoot("rollouts");
    browser.until("all hosts are ready", &holds("section article", "done"));

    visit(browser, "throughput", "Throughput");
    browser.until(
        "bytes are counted",
        "/[1-9].* [MG]iB$/.test(document.querySelectorAll('.card .value')[2]?.textContent ?? '')",
    );
    browser.shoot("throughput");
    browser.click("button[aria-pressed=false]");
    browser.until(
        "another span is chosen",
        "document.querySelectorAll('button')[1].getAttribute('aria-pressed') === 'true'",
    );
    by_keyboard(browser);
    browser.click(".brand");
    browser.until(
        "the first page again",
        "document.querySelector('.ring path')",
    );
    browser.shoot("cluster");
    browser.resize(700, 900);
    let wide = "document.documentElement.scrollWidth <= window.innerWidth";
    browser.until("it fits a small window", wide);
    assert_eq!(browser.problems, Vec::<String>::new());
}

/// Clicks on a page's name, and waits until the page is there.
fn visit(browser: &mut Browser, page: &str, title: &str) {
    browser.click(&format!("nav a[href='#/{page}']"));
    browser.until(page, &holds("h1", title));
}

/// Moves the pointer down the middle of the graph until a host says who it is.
fn point_at_a_host(browser: &mut Browser) {
    let asked = "(() => { const box = document.querySelector('canvas.graph').getBoundingClientRect(); return [box.x + box.width / 2, box.y, box.bottom]; })()";
    let told = browser.eval(asked);
    let [x, top, bottom] = [0, 1, 2].map(|place| told[place].as_f64().unwrap());
    let mut y = top;
    let said = "(() => { const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.textContent; })()";
    loop {
        assert!(y < bottom, "no host in the middle column of the graph");
        browser.point(x, y);
        if browser.eval(said).as_str().unwrap().contains("agent-") {
            return;
        }
        y += 6.0;
    }
}

/// Goes to a page without a mouse.
fn by_keyboard(browser: &mut Browser) {
    browser.eval("document.querySelector('.brand').focus()");
    for _ in 0..2 {
        browser.press("Tab");
    }
    assert_eq!(browser.eval("document.activeElement.hash"), "#/swarms");
    browser.press("Enter");
    browser.until("the page of the swarms", &holds("h1", "Swarms"));
    browser.until("its title", "document.title.startsWith('Swarms')");
}

/// Whether an element that a selector finds holds a text.
fn holds(selector: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll({selector:?})].some((it) => it.textContent.includes({text:?}))"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_hosts_are_drawn() {
    let Some(program) = browser::program() else {
        return;
    };
    let crowd = Crowd::start(5000, "127.0.0.1:0".parse().unwrap()).unwrap();
    let console = crowd.console();
    drive(move || watch_crowd(&mut Browser::start(&program), console)).await;
    crowd.stop().await;
}

fn watch_crowd(browser: &mut Browser, console: SocketAddr) {
    browser.go(&format!("http://{console}/console/#/swarms"));
    browser.click("td a.digest");
    browser.until(
        "all hosts are there",
        &holds(".card .more", "of 5,000 hosts"),
    );
    let frames =
        "JSON.parse(document.querySelector('canvas.graph').dataset.frames ?? '{\"count\": 0}')";
    browser.until(
        "hosts have half of it",
        "parseFloat(document.querySelectorAll('.card .value')[1].textContent) > 40",
    );
    let before = browser.eval(frames)["count"].as_u64().unwrap();
    browser.until(
        "frames are painted",
        &format!("{frames}.count > {}", before + 120),
    );
    let times = browser.eval(frames);
    println!(
        "5,000 hosts: {} frames, {:.1} ms from one to the next, {:.1} ms to paint one, {:.1} ms at most",
        times["count"],
        times["between"].as_f64().unwrap(),
        times["painting"].as_f64().unwrap(),
        times["worst"].as_f64().unwrap(),
    );
    browser.shoot("5000-light");
    browser.prefers("dark");
    browser.until(
        "frames go on in the dark",
        &format!("{frames}.count > {}", before + 240),
    );
    browser.shoot("5000-dark");
    assert_eq!(browser.problems, Vec::<String>::new());
    // What a page says is wrong is heard.
    browser.eval("console.error('a test')");
    browser.eval("setTimeout(() => { throw new Error('another'); }, 0)");
    browser.eval("new Promise((done) => setTimeout(done, 100))");
    assert_eq!(browser.problems.len(), 2, "{:?}", browser.problems);
}
