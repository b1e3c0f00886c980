//! `kraken explain` and `kraken top`: what came from whom, why, and what clients were told.

use std::fs;

use kraken::client::Registry;
use kraken::image;
use kraken_core::storage::{Backend as _, OpendalBackend};
use kraken_core::{Digest, Namespace};
use kraken_registry::Manifest;
use serde_json::Value;

use crate::common::{Lab, kraken, pull, push, random, until, within};

async fn explained(agent: &str, what: &str) -> Value {
    let ran = kraken(&["explain", what, "--agent", agent, "--json"]).await;
    assert!(ran.status.success(), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

/// What is remembered once the blob is sealed, which may be after its last byte was read.
async fn explained_whole(agent: &str, digest: Digest) -> Value {
    until("the blob is whole", async || {
        let told = explained(agent, &digest.to_string()).await;
        (!told["transfers"][0]["end"].is_null()).then_some(told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_blob_is_explained() {
    within(120, "explain", async {
        let mut lab = Lab::start(2, 2).await;
        let bytes = random(5 << 20, 77);
        let digest = push(&lab.host("proxy"), &bytes).await;
        let (one, two) = (lab.host("agent-1"), lab.host("agent-2"));
        pull(&one, digest).await;
        let told = explained_whole(&one, digest).await;
        let [transfer] = &told["transfers"].as_array().unwrap()[..] else {
            panic!("one transfer in {told:#}")
        };
        let sum = |transfer: &Value, role: &str| -> u64 {
            let sources = transfer["sources"].as_array().unwrap().iter();
            let of = sources.filter(|it| it["role"] == role);
            of.map(|it| it["bytes"].as_u64().unwrap()).sum()
        };
        assert_eq!(sum(transfer, "origin"), 5 << 20);
        assert!(transfer["end"]["failed"].is_null() && transfer["end"]["at_ms"].is_u64());
        assert_eq!(
            (&transfer["told_by"], &transfer["pieces"]),
            (&"discovery".into(), &20.into())
        );
        for source in transfer["sources"].as_array().unwrap() {
            assert!(
                source["addr"].as_str().unwrap().starts_with("127.0.0.1:"),
                "{source}"
            );
        }
        let answers = told["answers"].as_array().unwrap();
        assert!(
            answers
                .iter()
                .any(|it| it["status"] == 200 && it["bytes"] == 5 << 20),
            "{told:#}"
        );

        // The second one takes from whom it likes; the sum is the blob.
        pull(&two, digest).await;
        let told = explained_whole(&two, digest).await;
        let transfer = &told["transfers"][0];
        assert_eq!(
            sum(transfer, "origin") + sum(transfer, "agent"),
            5 << 20,
            "{told:#}"
        );
        let words = kraken(&["explain", &digest.to_string(), "--agent", &two]).await;
        for says in [
            "A tracker told",
            "It was whole after",
            "Clients were told",
            "127.0.0.1:",
        ] {
            assert!(
                words.stdout.contains(says),
                "{says:?} is not in {}",
                words.stdout
            );
        }

        let unknown = Digest::of(b"unknown");
        let url = format!("http://{one}/v2/a/blobs/{unknown}");
        let asked = crate::common::ask(
            http::Method::GET,
            &url,
            kraken_core::net::http::HttpBody::Empty,
        );
        assert_eq!(asked.await.status(), http::StatusCode::NOT_FOUND);
        let told = explained(&one, &unknown.to_string()).await;
        assert_eq!(told["answers"][0]["status"], 404);
        assert!(told["transfers"].as_array().unwrap().is_empty() && told["kept"].is_null());

        // After a restart the blob is there and its way is not known any more.
        lab.kill("agent-1");
        lab.restart("agent-1").await;
        let words = kraken(&["explain", &digest.to_string(), "--agent", &one]).await;
        assert!(
            words.stdout.contains("It is in the store"),
            "{}",
            words.stdout
        );
        assert!(
            words.stdout.contains("before this process started"),
            "{}",
            words.stdout
        );
    })
    .await;
}

/// A blob that only the storage has: the agent tells which origin read it there, and who asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn why_the_storage_was_read_is_explained() {
    within(120, "explain", async {
        let mut lab = Lab::start(2, 1).await;
        let proxy = Registry::new(&lab.host("proxy")).unwrap();
        let pushed = image::push_random(&proxy, "explained/app", "v1", 3 << 20, 2, 5, |_| {}).await;
        pushed.unwrap();
        let (_, manifest) = proxy.manifest("explained/app", "v1").await.unwrap();
        let parsed = Manifest::parse(&manifest).unwrap();
        let layers = parsed.blobs().map(|blob| blob.digest);
        let digests: Vec<_> = layers.chain([Digest::of(&manifest)]).collect();
        let disk = OpendalBackend::local_disk(lab.path("backend")).unwrap();
        let namespace: Namespace = "explained/app".parse().unwrap();
        for digest in digests {
            until("the storage has the blob", async || {
                disk.stat(&namespace, digest).await.unwrap()
            })
            .await;
        }
        for origin in ["origin-1", "origin-2"] {
            lab.kill(origin);
            fs::remove_dir_all(lab.path(origin)).unwrap();
        }
        for origin in ["origin-1", "origin-2"] {
            lab.restart(origin).await;
        }
        lab.sees_origins(2).await;
        let agent = lab.host("agent-1");
        let client = Registry::new(&agent).unwrap();
        let (_, manifest) = until("the manifest", async || {
            client.manifest("explained/app", "v1").await.ok()
        })
        .await;
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let layer: Digest = manifest["layers"][0]["digest"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let url = format!("http://{agent}/v2/explained/app/blobs/{layer}");
        let none = kraken_core::net::http::HttpBody::Empty;
        let answer = crate::common::ask(http::Method::GET, &url, none).await;
        let status = answer.status();
        let bytes = answer.bytes(64 << 20).await.unwrap();
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        assert_eq!(status, http::StatusCode::OK, "{said}");
        assert_eq!(Digest::of(&bytes), layer);

        let told = explained(&agent, &layer.to_string()).await;
        let origins = told["origins"].as_array().unwrap().iter();
        let fetches = origins.filter_map(|it| it["remembers"]["fetches"].as_array());
        let fetches: Vec<_> = fetches.flatten().collect();
        let steps: Vec<_> = fetches
            .iter()
            .flat_map(|it| it["steps"].as_array().unwrap())
            .collect();
        let reads = steps.iter().filter(|step| {
            step["what"]
                .as_str()
                .unwrap()
                .starts_with("the storage has it")
        });
        assert_eq!(
            reads.count(),
            1,
            "one origin reads the storage, once: {told:#}"
        );
        assert!(
            fetches.iter().all(|it| it["end"]["failed"].is_null()),
            "{told:#}"
        );

        let image = explained(&agent, "explained/app:v1").await;
        let answered = image["answers"].as_array().unwrap();
        assert!(answered.iter().any(|it| it["status"] == 200), "{image:#}");
        let blobs = image["blobs"].as_array().unwrap();
        assert_eq!(
            blobs.len(),
            4,
            "a manifest, a config and two layers: {image:#}"
        );
        assert!(blobs.iter().any(|it| it["digest"] == layer.to_string()));
        let words = kraken(&["explain", "explained/app:v1", "--agent", &agent]).await;
        assert!(
            words.stdout.contains("did not have it, and"),
            "{}",
            words.stdout
        );
        assert!(
            words.stdout.contains("the storage has it"),
            "{}",
            words.stdout
        );
        assert!(client.manifest("explained/gone", "v1").await.is_err());
        let gone = explained(&agent, "explained/gone:v1").await;
        assert_eq!(gone["answers"][0]["status"], 404, "{gone:#}");
        assert!(gone["answers"][0]["why"].is_string() && gone["digest"].is_null());
        let words = kraken(&["explain", "explained/gone:v1", "--agent", &agent]).await;
        for says in ["to no client", "explained/gone:v1", "404"] {
            assert!(words.stdout.contains(says), "{says}: {words:?}");
        }
        let unknown = kraken(&["explain", "explained/none:v1", "--agent", &agent]).await;
        assert!(
            !unknown.status.success() && unknown.stderr.contains("by its digest"),
            "{unknown:?}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_one_frame() {
    within(100, "top", async {
        let lab = Lab::start(1, 1).await;
        let digest = push(&lab.host("proxy"), &random(2 << 20, 3)).await;
        let agent = lab.host("agent-1");
        pull(&agent, digest).await;
        let frame = kraken(&["top", "--once", "--agent", &agent]).await;
        assert!(frame.status.success(), "{frame:?}");
        for says in ["2.0 MiB", "origin", "127.0.0.1:"] {
            assert!(
                frame.stdout.contains(says),
                "{says:?} is not in {}",
                frame.stdout
            );
        }
        assert!(!frame.stdout.contains('\u{1b}'), "no escapes in one frame");
        let frame = kraken(&["top", "--once", "--json", "--agent", &agent]).await;
        let told: Value = serde_json::from_str(&frame.stdout).unwrap();
        assert_eq!(
            (&told[0]["from_origins"], &told[0]["blobs"]),
            (&(2 << 20).into(), &1.into())
        );
        assert_eq!(told[0]["neighbours"][0]["received"], 2 << 20);
        let silent = kraken(&["top", "--once", "--agent", "127.0.0.1:9"]).await;
        assert!(silent.stdout.contains("does not answer"), "{silent:?}");
    })
    .await;
}
