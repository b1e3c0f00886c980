//! Garbage goes while images are pushed, pulled and deleted: nothing that is referenced does.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::http::HttpBody;
use kraken_registry::garbage::{Collected, GarbageOptions};
use rand::RngExt as _;
use serde_json::json;

use crate::common::{Lab, ask, random, until, within};

const MEDIA: &str = "application/vnd.oci.image.manifest.v1+json";
/// One layer in five comes again after so many images.
const AGAIN: u64 = 60;
/// How long nobody may have asked about what goes, in seconds.
const GRACE: u64 = 2;

/// One image: a layer that all share, and one of its own.
#[derive(Clone)]
struct Image {
    repo: String,
    tag: String,
    blobs: [Bytes; 3],
    manifest: Bytes,
}

impl Image {
    fn new(number: u64) -> Self {
        // Some come again after they were deleted, and some soon enough to stay.
        let own = if number.is_multiple_of(5) {
            number % AGAIN
        } else {
            number
        };
        let blobs = [
            Bytes::from("{}"),
            random(50_000, 0),
            random(20_000, 1 + own),
        ];
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MEDIA,
            "config": describe("application/x.config", &blobs[0]),
            "layers": [describe("application/x.layer", &blobs[1]), describe("application/x.layer", &blobs[2])],
        });
        Self {
            repo: format!("garbage/r{}", own % 3),
            tag: format!("t{number}"),
            blobs,
            manifest: manifest.to_string().into(),
        }
    }

    fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        let all = self.blobs.iter().chain([&self.manifest]);
        all.map(|bytes| Digest::of(bytes))
    }

    /// As a client does it: what is said to be there is not sent.
    async fn push(&self, proxy: &str) {
        let base = format!("http://{proxy}/v2/{}", self.repo);
        for blob in &self.blobs {
            let digest = Digest::of(blob);
            let url = format!("{base}/blobs/{digest}");
            let there = ask(Method::HEAD, &url, HttpBody::Empty).await.status();
            if there != StatusCode::OK {
                let url = format!("{base}/blobs/uploads/?digest={digest}");
                let pushed = ask(Method::POST, &url, HttpBody::Bytes(blob.clone())).await;
                assert_eq!(pushed.status(), StatusCode::CREATED);
            }
        }
        let url = format!("{base}/manifests/{}", self.tag);
        let body = HttpBody::Bytes(self.manifest.clone());
        let pushed = ask(Method::PUT, &url, body).await;
        let status = pushed.status();
        let said = pushed.bytes(1 << 16).await.unwrap();
        assert_eq!(
            status,
            StatusCode::CREATED,
            "{}",
            String::from_utf8_lossy(&said)
        );
    }

    async fn pull(&self, registry: &str) {
        let base = format!("http://{registry}/v2/{}", self.repo);
        let url = format!("{base}/manifests/{}", self.tag);
        let manifest = ask(Method::GET, &url, HttpBody::Empty).await;
        assert_eq!(
            manifest.status(),
            StatusCode::OK,
            "{} of {}",
            self.tag,
            self.repo
        );
        assert_eq!(manifest.bytes(1 << 20).await.unwrap(), self.manifest);
        for blob in &self.blobs {
            let url = format!("{base}/blobs/{}", Digest::of(blob));
            let found = ask(Method::GET, &url, HttpBody::Empty).await;
            assert_eq!(found.status(), StatusCode::OK, "{url}");
            assert_eq!(found.bytes(1 << 20).await.unwrap(), *blob);
        }
    }

    async fn delete(&self, proxy: &str) {
        let digest = Digest::of(&self.manifest);
        let url = format!("http://{proxy}/v2/{}/manifests/{digest}", self.repo);
        let deleted = ask(Method::DELETE, &url, HttpBody::Empty).await.status();
        assert_eq!(deleted, StatusCode::ACCEPTED);
    }
}

/// The blobs in a directory, by the names of its files, or of the directories around files called `data`.
fn blobs_in(dir: &Path) -> BTreeSet<Digest> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let path = entry.path();
            if path.is_file() || path.join("data").is_file() {
                found.extend(Digest::from_hex(&name).ok());
            }
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    found
}

async fn collect(lab: &Lab, dry_run: bool) -> Collected {
    let options = GarbageOptions {
        grace_seconds: GRACE,
        stored: true,
        dry_run,
    };
    until("all origins have run for the grace period", async || {
        let said = lab.post("build-index", "/x/garbage", &json!(options)).await;
        let collected = serde_json::from_str(&said).ok();
        assert!(
            collected.is_some() || said.contains("it was started since"),
            "{said}"
        );
        collected
    })
    .await
}

/// Pushes, pulls, deletes, and pushes again what was deleted; the images that are left, and the number of
/// the last one.
async fn traffic(lab: &Lab, (seed, until): (u64, Instant)) -> (Vec<Image>, u64) {
    let (proxy, agent) = (lab.host("proxy"), lab.host("agent-1"));
    let mut images = Vec::new();
    let mut number = seed;
    while Instant::now() < until {
        let image = Image::new(number);
        number += 2;
        image.push(&proxy).await;
        images.push(image);
        let some = &images[rand::rng().random_range(0..images.len())];
        some.pull(&proxy).await;
        some.pull(&agent).await;
        if images.len() > 6 {
            images.remove(0).delete(&proxy).await;
        }
    }
    (images, number)
}

/// An image whose manifest others list as a layer, and an index: all of it is needed all the same.
async fn guarded(proxy: &str) -> (Image, BTreeSet<Digest>) {
    let image = Image {
        repo: "garbage/z".into(),
        ..Image::new(1_000_001)
    };
    image.push(proxy).await;
    let child = json!({"mediaType": MEDIA, "digest": Digest::of(&image.manifest), "size": image.manifest.len()});
    let config =
        json!({"mediaType": "application/x.config", "digest": Digest::of(b"{}"), "size": 2});
    // In the order of names before the repository of the image.
    let artifact = json!({
        "schemaVersion": 2, "mediaType": MEDIA, "config": config, "layers": [child],
    });
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [child]});
    let mut needed: BTreeSet<_> = image.digests().collect();
    for (repo, document) in [("garbage/a", artifact), ("garbage/b", index)] {
        let bytes = Bytes::from(document.to_string());
        needed.insert(Digest::of(&bytes));
        let url = format!("http://{proxy}/v2/{repo}/manifests/v1");
        let pushed = ask(Method::PUT, &url, HttpBody::Bytes(bytes)).await;
        assert_eq!(pushed.status(), StatusCode::CREATED, "{repo}");
    }
    (image, needed)
}

async fn nothing_referenced_goes() {
    // Longer by hand: KRAKEN_GARBAGE_SECONDS=300.
    let seconds = std::env::var("KRAKEN_GARBAGE_SECONDS").ok();
    let seconds = seconds.map_or(15, |text| text.parse().unwrap());
    let lab = Lab::start(3, 1).await;
    let (proxy, agent) = (lab.host("proxy"), lab.host("agent-1"));
    let kept = random(30_000, 999);
    let registry = kraken::client::Registry::new(&proxy).unwrap();
    let body = futures::stream::iter([Ok(kept.clone())]);
    registry
        .push_kept_blob("garbage/files", body)
        .await
        .unwrap();
    let (guarded_image, guarded) = guarded(&proxy).await;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut removed = 0;
    let collecting = async {
        while Instant::now() < end {
            removed += collect(&lab, false).await.removed;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let (one, other) = (traffic(&lab, (0, end)), traffic(&lab, (1, end)));
    let ((mut images, pushed), (others, also_pushed), ()) = tokio::join!(one, other, collecting);
    images.extend(others);
    let number_again = (pushed.max(also_pushed) / 5).saturating_sub(AGAIN / 5);
    assert!(removed > 0, "nothing went under load");
    for image in &images {
        image.pull(&proxy).await;
        image.pull(&agent).await;
    }
    let mut referenced: BTreeSet<_> = images.iter().flat_map(Image::digests).collect();
    referenced.insert(Digest::of(&kept));
    referenced.extend(guarded);
    // What was just asked about is left for a while.
    until(
        "what nothing refers to has gone, and nothing else",
        async || {
            let last = collect(&lab, false).await;
            assert_eq!(last.referenced, referenced.len());
            let stores = (1..=3).map(|it| lab.path(&format!("origin-{it}")).join("blobs/sealed"));
            let here: BTreeSet<_> = stores.flat_map(|store| blobs_in(&store)).collect();
            let stored = blobs_in(&lab.path("backend"));
            (here == referenced && stored == referenced).then_some(())
        },
    )
    .await;
    guarded_image.pull(&proxy).await;
    assert!(number_again > 0, "no layer came again after it was deleted");
    let url = format!(
        "http://{proxy}/v2/garbage/files/blobs/{}",
        Digest::of(&kept)
    );
    assert_eq!(
        ask(Method::GET, &url, HttpBody::Empty).await.status(),
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_referenced_goes_and_all_else_does() {
    within(600, "pushes, pulls, deletions", nothing_referenced_goes()).await;
}
