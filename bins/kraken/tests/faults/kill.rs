//! Processes that are killed in the middle of their work.

use std::fs;

use futures::StreamExt as _;
use http::{Method, StatusCode};
use kraken::client::Registry;
use kraken_core::Digest;
use kraken_core::net::http::HttpBody;
use kraken_core::storage::{BlobStatus, PieceStore as _};
use tokio::sync::oneshot;

use crate::common::{Lab, REPOSITORY, ask, chunks, open_store, pull, push, random, until, within};

/// A blob of 120 pieces.
const BIG: usize = 60 << 20;
/// How often a pull may be over before its agent could be killed.
const ATTEMPTS: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_goes_on_with_the_pieces_that_it_has() {
    within(80, "kill -9 of an agent", async {
        let mut lab = Lab::start(2, 1).await;
        let (digest, kept) = kill_in_the_middle(&mut lab).await;
        lab.restart("agent-1").await;
        let length = pull(&lab.host("agent-1"), digest).await;
        assert_eq!(length, BIG as u64);
        until("the agent has the blob", async || {
            let whole = lab.counter("agent-1", "kraken_blobs_completed_total");
            (whole.await? == 1).then_some(())
        })
        .await;
        let fetched = lab.fetched("agent-1").await.unwrap();
        println!("{kept} of {length} bytes were there after the kill, {fetched} were fetched");
        assert_eq!(fetched, length - kept, "no piece is fetched twice");
    })
    .await;
}

/// Kills the agent while it has some of a blob but not all; the blob, and the bytes that it has.
async fn kill_in_the_middle(lab: &mut Lab) -> (Digest, u64) {
    for attempt in 0..ATTEMPTS {
        let digest = push(&lab.host("proxy"), &random(BIG, attempt)).await;
        let registry = Registry::new(&lab.host("agent-1")).unwrap();
        let before = lab.fetched("agent-1").await.unwrap();
        let (_, mut body) = registry.blob(REPOSITORY, digest).await.unwrap();
        body.next().await.unwrap().unwrap();
        until("the agent has some pieces", async || {
            let fetched = lab.fetched("agent-1").await? - before;
            (fetched > BIG as u64 / 8).then_some(())
        })
        .await;
        lab.kill("agent-1");
        let broken = body.any(async |chunk| chunk.is_err()).await;
        let store = open_store(&lab.path("agent-1")).await;
        match store.status(digest).await.unwrap() {
            BlobStatus::Partial { meta, have } if !have.is_full() => {
                assert!(broken, "a reader was given an end that is none");
                let kept = have.iter().map(|piece| u64::from(meta.piece_size(piece)));
                return (digest, kept.sum());
            }
            // The pull was over before the kill.
            _ => {}
        }
        drop(store);
        lab.restart("agent-1").await;
    }
    panic!("{ATTEMPTS} pulls were over before the agent could be killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_was_killed_serves_nothing_half_written() {
    within(80, "kill -9 of an origin", async {
        let mut lab = Lab::start(3, 1).await;
        let bytes = random(32 << 20, 7);
        let digest = Digest::of(&bytes);
        let mut first = chunks(&bytes);
        let rest = first.split_off(first.len() / 2);
        let (go_on, wait) = oneshot::channel::<()>();
        let rest = async move {
            let _ = wait.await;
            futures::stream::iter(rest)
        };
        let body = futures::stream::iter(first).chain(futures::stream::once(rest).flatten());
        let proxy = Registry::new(&lab.host("proxy")).unwrap();
        let pushing = tokio::spawn(async move { proxy.push_blob(REPOSITORY, body).await });
        let victim = until("an origin has a part of the upload", async || {
            let names = (1..=3).map(|number| format!("origin-{number}"));
            names
                .into_iter()
                .find(|name| uploaded(&lab, name) > 4 << 20)
        })
        .await;
        lab.kill(&victim);
        // The client may have heard already.
        let _ = go_on.send(());
        let error = pushing.await.unwrap().unwrap_err();
        println!("the client hears: {error}");
        absent(&lab, digest).await;
        lab.restart(&victim).await;
        absent(&lab, digest).await;

        assert_eq!(push(&lab.host("proxy"), &bytes).await, digest);
        for member in ["agent-1", "proxy"] {
            assert_eq!(pull(&lab.host(member), digest).await, bytes.len() as u64);
        }
    })
    .await;
}

/// The bytes of all uploads at an origin.
fn uploaded(lab: &Lab, origin: &str) -> u64 {
    let dir = lab.path(origin).join("blobs").join("uploads");
    let files = fs::read_dir(dir).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

/// Nobody knows the blob.
async fn absent(lab: &Lab, digest: Digest) {
    for member in ["proxy", "agent-1"] {
        let url = format!("http://{}/v2/{REPOSITORY}/blobs/{digest}", lab.host(member));
        for method in [Method::HEAD, Method::GET] {
            let answer = ask(method.clone(), &url, HttpBody::Empty).await;
            assert_eq!(
                answer.status(),
                StatusCode::NOT_FOUND,
                "{member} on {method}"
            );
        }
    }
}
