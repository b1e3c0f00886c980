//! Images as teams push them: some for two platforms, some with layers of others, some with an artifact
//! that is about them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kraken_core::Digest;
use kraken_core::proto::rng::Rng;
use kraken_registry::{RepoName, Tag};
use serde_json::{Value, json};

use crate::Outcome;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const SIGNATURE: &str = "application/vnd.example.signature.v1";

/// Repositories that are copied, and some that look like it and are not.
const TEAMS: [&str; 6] = [
    "team/a0",
    "team/a1",
    "team/ax/app",
    "team/b0",
    "team/b1",
    "team/c/app",
];
const OTHERS: [&str; 4] = ["other/x0", "other/team/a0", "teams/a0", "a/team"];

/// An image and all that it needs.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) repo: RepoName,
    pub(crate) tag: Tag,
    /// What the tag points to.
    pub(crate) digest: Digest,
    /// Layers and configurations.
    pub(crate) blobs: BTreeMap<Digest, Bytes>,
    /// Those of the platforms first, what the tag points to last.
    pub(crate) manifests: Vec<(Digest, Bytes)>,
    pub(crate) referrer: Option<Referrer>,
}

/// An artifact about an image.
#[derive(Debug)]
pub(crate) struct Referrer {
    pub(crate) digest: Digest,
    pub(crate) manifest: Bytes,
    pub(crate) blobs: BTreeMap<Digest, Bytes>,
    /// It is pushed so long after the tag was set, as a signature is.
    pub(crate) behind: Option<Duration>,
}

/// Makes images, of which some share layers.
pub(crate) struct Maker {
    seed: u64,
    shared: Vec<Bytes>,
}

/// How long a signature takes at most: while its image is on its way to another cluster.
const BEHIND: Duration = Duration::from_millis(600);
/// Layers that images share.
const SHARED: usize = 40;

impl Maker {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::seeded(seed);
        let shared = (0..SHARED).map(|_| layer(&mut rng)).collect();
        Self { seed, shared }
    }

    /// Where image `number` is pushed to: one in three to where nothing is copied from.
    pub(crate) fn place(number: usize) -> Outcome<(RepoName, Tag)> {
        let repo = match number % 3 {
            2 => OTHERS[number / 3 % OTHERS.len()],
            rest => TEAMS[(number / 3 * 2 + rest) % TEAMS.len()],
        };
        Ok((repo.parse()?, format!("v{number}").parse()?))
    }

    /// Image `number` in a version; the same each time.
    pub(crate) fn make(&self, number: usize, version: u64) -> Outcome<Image> {
        let (repo, tag) = Self::place(number)?;
        let mut rng = Rng::seeded(self.seed ^ ((number as u64 + 1) << 20) ^ (version << 52));
        let mut image = Image {
            repo,
            tag,
            digest: Digest::of(b""),
            blobs: BTreeMap::new(),
            manifests: Vec::new(),
            referrer: None,
        };
        let is_index = rng.below(4) == 0;
        let first = self.platform(&mut rng, &mut image, "amd64");
        if is_index {
            let second = self.platform(&mut rng, &mut image, "arm64");
            let index = json!({
                "schemaVersion": 2, "mediaType": INDEX, "manifests": [first, second],
            });
            image.add(&index);
        }
        image.digest = image.manifests.last().ok_or("an image is empty")?.0;
        if rng.below(5) == 0 {
            image.referrer = Some(referrer(&mut rng, &image));
        }
        Ok(image)
    }

    /// An image for one platform, as an index lists it.
    fn platform(&self, rng: &mut Rng, image: &mut Image, architecture: &str) -> Value {
        let mut layers = Vec::new();
        for _ in 0..=rng.below(3) {
            let bytes = match rng.below(2) {
                0 => self.shared[rng.below(self.shared.len())].clone(),
                _ => layer(rng),
            };
            layers.push(held(&mut image.blobs, bytes, LAYER));
        }
        let config = json!({"architecture": architecture, "os": "linux", "made": rng.next_u64()});
        let config = held(&mut image.blobs, config.to_string().into(), CONFIG);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let (digest, size) = image.add(&manifest);
        json!({
            "mediaType": MANIFEST, "digest": digest.to_string(), "size": size,
            "platform": {"architecture": architecture, "os": "linux"},
        })
    }
}

impl Image {
    fn add(&mut self, manifest: &Value) -> (Digest, usize) {
        let bytes = Bytes::from(manifest.to_string());
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        self.manifests.push((digest, bytes));
        (digest, size)
    }

    /// All blobs, manifests and the artifact's among them, and their lengths in bytes.
    pub(crate) fn lengths(&self) -> BTreeMap<Digest, u64> {
        let manifests = self.manifests.iter().map(|(digest, bytes)| (digest, bytes));
        let referrer = self.referrer.iter();
        let artifact = referrer.flat_map(|it| it.blobs.iter().chain([(&it.digest, &it.manifest)]));
        let all = self.blobs.iter().chain(manifests).chain(artifact);
        all.map(|(digest, bytes)| (*digest, bytes.len() as u64))
            .collect()
    }
}

fn referrer(rng: &mut Rng, image: &Image) -> Referrer {
    let mut blobs = BTreeMap::new();
    let config = held(
        &mut blobs,
        Bytes::from_static(b"{}"),
        "application/vnd.oci.empty.v1+json",
    );
    let signature = held(&mut blobs, random(rng, 512), SIGNATURE);
    let subject = image.manifests.last().map_or(0, |(_, bytes)| bytes.len());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": SIGNATURE,
        "config": config, "layers": [signature],
        "subject": {
            "mediaType": if image.manifests.len() > 1 { INDEX } else { MANIFEST },
            "digest": image.digest.to_string(), "size": subject,
        },
    });
    let manifest = Bytes::from(manifest.to_string());
    Referrer {
        digest: Digest::of(&manifest),
        manifest,
        blobs,
        behind: (rng.below(2) == 0).then(|| BEHIND.mul_f64(rng.unit())),
    }
}

/// Puts a blob among the others, and gives its descriptor.
fn held(blobs: &mut BTreeMap<Digest, Bytes>, bytes: Bytes, media_type: &str) -> Value {
    let (digest, size) = (Digest::of(&bytes), bytes.len());
    blobs.insert(digest, bytes);
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

/// 4 to 256 KiB.
fn layer(rng: &mut Rng) -> Bytes {
    let size = 4096 << rng.below(7);
    random(rng, size)
}

fn random(rng: &mut Rng, len: usize) -> Bytes {
    let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    words.take(len.div_ceil(8)).flatten().collect()
}
