//! Manifests: what kind one is, and what it refers to.
//!
//! A manifest is a blob whose bytes are its name, so it is kept byte for byte and only ever read
//! for its references.

use std::fmt;
use std::str::FromStr;

use kraken_proto::Digest;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The kinds of manifest that the registry understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MediaType {
    /// Docker image manifest, schema 2.
    DockerManifest,
    /// Docker manifest list: one image for several platforms.
    DockerList,
    /// OCI image manifest, of images and of artifacts.
    OciManifest,
    /// OCI image index.
    OciIndex,
    /// OCI artifact manifest, of a release candidate of OCI 1.1: tools of that time pushed some.
    OciArtifact,
}

impl MediaType {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::DockerManifest,
        Self::DockerList,
        Self::OciManifest,
        Self::OciIndex,
        Self::OciArtifact,
    ];

    /// The text for `Content-Type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::OciArtifact => "application/vnd.oci.artifact.manifest.v1+json",
        }
    }

    /// Lists other manifests rather than layers.
    pub fn is_index(self) -> bool {
        matches!(self, Self::DockerList | Self::OciIndex)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for MediaType {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        if text.starts_with(SCHEMA_1) {
            return Err(ManifestError::Schema1);
        }
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| ManifestError::MediaType(text.chars().take(128).collect()))
    }
}

/// What a manifest says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    media_type: MediaType,
    blobs: Vec<Descriptor>,
    manifests: Vec<Descriptor>,
    subject: Option<Descriptor>,
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Descriptor {
    /// The kind of the blob, as written.
    #[serde(default)]
    pub media_type: String,
    /// The blob's name.
    pub digest: Digest,
    /// The blob's length in bytes, as written.
    #[serde(default)]
    pub size: u64,
}

impl Descriptor {
    /// The licence of the layer forbids to push it; clients fetch it elsewhere.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }
}

impl Manifest {
    /// The longest manifest, in bytes: the 4 MiB that the specification asks for at least.
    pub const MAX_LEN: usize = 4 << 20;

    /// Reads a manifest for its kind and its references.
    ///
    /// Without a `mediaType` field, which OCI lets out, the shape tells the kind.
    ///
    /// # Errors
    /// [`ManifestError`] says what to do about it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > Self::MAX_LEN {
            return Err(ManifestError::TooLarge);
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(|_| ManifestError::NotManifest)?;
        if probe.schema_version.is_none() && probe.media_type.is_none() {
            return Err(ManifestError::NotManifest);
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        raw.into_manifest()
    }

    /// The manifest's kind.
    pub fn media_type(&self) -> MediaType {
        self.media_type
    }

    /// The blobs that a pull of this manifest needs: its configuration and its layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.iter().filter(|blob| !blob.is_foreign())
    }

    /// The same with those that need not be pushed.
    pub fn all_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.iter()
    }

    /// The manifests that an index lists.
    pub fn manifests(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter()
    }

    /// The manifest that this one is about; it may not exist.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }
}

/// Why bytes are not a manifest that this registry takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Longer than [`Manifest::MAX_LEN`].
    #[error(
        "the manifest is longer than the limit of {} bytes (4 MiB)",
        Manifest::MAX_LEN
    )]
    TooLarge,
    /// Neither `schemaVersion` nor `mediaType`, or no JSON object at all.
    #[error("not a manifest: a JSON object with schemaVersion or mediaType is expected")]
    NotManifest,
    /// A field holds something else than it should.
    #[error("the manifest cannot be read: {0}")]
    Malformed(String),
    /// Docker's first format.
    #[error(
        "manifests of schema 1 are not supported: push the image with a client newer than Docker \
         1.10, or convert it, for example with skopeo copy --format v2s2"
    )]
    Schema1,
    /// A kind that the registry does not know.
    #[error("manifests of the type {0:?} are not supported, only Docker schema 2 and OCI")]
    MediaType(String),
    /// The shape fits no kind, or not the one that is written.
    #[error("the manifest's fields do not fit one type: {0}")]
    Shape(&'static str),
}

const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<IgnoredAny>,
    media_type: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

impl Raw {
    fn into_manifest(self) -> Result<Manifest, ManifestError> {
        let media_type = self.kind()?;
        let layers = self.layers.or(self.blobs).unwrap_or_default();
        Ok(Manifest {
            media_type,
            blobs: self.config.into_iter().chain(layers).collect(),
            manifests: self.manifests.unwrap_or_default(),
            subject: self.subject,
        })
    }

    fn kind(&self) -> Result<MediaType, ManifestError> {
        if self.schema_version == Some(1) {
            return Err(ManifestError::Schema1);
        }
        let image = self.config.is_some() || self.layers.is_some();
        // A client that reads it as an image and one that reads it as an index would run
        // different things under one digest (CVE-2021-41190).
        if self.manifests.is_some() && (image || self.blobs.is_some()) {
            return Err(ManifestError::Shape("it holds both layers and manifests"));
        }
        let kind = match self.media_type.as_deref() {
            Some(text) => text.parse()?,
            None if self.manifests.is_some() => MediaType::OciIndex,
            None if image => MediaType::OciManifest,
            None => {
                return Err(ManifestError::Shape(
                    "it holds neither layers nor manifests",
                ));
            }
        };
        match kind {
            MediaType::DockerManifest | MediaType::OciManifest if self.config.is_none() => {
                Err(ManifestError::Shape("an image manifest needs a config"))
            }
            kind if kind.is_index() && self.manifests.is_none() => {
                Err(ManifestError::Shape("an index needs a list of manifests"))
            }
            kind => Ok(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: &Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(value.to_string().as_bytes())
    }

    fn descriptor(text: &str) -> Value {
        json!({ "mediaType": "x", "digest": Digest::of(text.as_bytes()), "size": text.len() })
    }

    fn digests<'a>(of: impl Iterator<Item = &'a Descriptor>) -> Vec<Digest> {
        of.map(|descriptor| descriptor.digest).collect()
    }

    #[test]
    fn an_image_refers_to_its_config_layers_and_subject() {
        let manifest = parse(&json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "config": descriptor("c"),
            "layers": [descriptor("l1"), descriptor("l2")],
            "subject": descriptor("s"),
            "custom": { "anything": [1, 2] },
        }))
        .unwrap();
        assert_eq!(manifest.media_type(), MediaType::OciManifest);
        let expected = ["c", "l1", "l2"].map(|text| Digest::of(text.as_bytes()));
        assert_eq!(digests(manifest.blobs()), expected);
        assert_eq!(manifest.manifests().count(), 0);
        assert_eq!(manifest.subject().unwrap().digest, Digest::of(b"s"));
    }

    #[test]
    fn layers_that_may_not_be_pushed_are_not_needed() {
        let mut foreign = descriptor("f");
        foreign["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let manifest = parse(&json!({
            "schemaVersion": 2,
            "mediaType": MediaType::DockerManifest.as_str(),
            "config": descriptor("c"),
            "layers": [foreign],
        }))
        .unwrap();
        assert_eq!(digests(manifest.blobs()), [Digest::of(b"c")]);
    }

    #[test]
    fn the_shape_tells_the_kind_when_the_field_is_left_out() {
        let image = json!({ "schemaVersion": 2, "config": descriptor("c"), "layers": [] });
        assert_eq!(parse(&image).unwrap().media_type(), MediaType::OciManifest);
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor("m")] });
        let index = parse(&index).unwrap();
        assert_eq!(index.media_type(), MediaType::OciIndex);
        assert_eq!(digests(index.manifests()), [Digest::of(b"m")]);
    }

    #[test]
    fn artifacts_refer_to_blobs() {
        let manifest = parse(&json!({
            "mediaType": MediaType::OciArtifact.as_str(),
            "blobs": [descriptor("b")],
        }))
        .unwrap();
        assert_eq!(digests(manifest.blobs()), [Digest::of(b"b")]);
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        let both = json!({
            "schemaVersion": 2, "config": descriptor("c"), "layers": [], "manifests": []
        });
        let schema_1 = json!({ "schemaVersion": 1, "fsLayers": [], "history": [] });
        let signed = json!({ "mediaType": format!("{SCHEMA_1}prettyjws") });
        let other = json!({ "mediaType": "text/plain", "schemaVersion": 2 });
        let listless = json!({ "mediaType": MediaType::OciIndex.as_str() });
        let bare = json!({ "schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str() });
        assert!(matches!(parse(&both), Err(ManifestError::Shape(_))));
        assert_eq!(parse(&schema_1), Err(ManifestError::Schema1));
        assert_eq!(parse(&signed), Err(ManifestError::Schema1));
        assert!(matches!(parse(&other), Err(ManifestError::MediaType(_))));
        assert!(matches!(parse(&listless), Err(ManifestError::Shape(_))));
        assert!(matches!(parse(&bare), Err(ManifestError::Shape(_))));
        assert_eq!(parse(&json!({})), Err(ManifestError::NotManifest));
        assert_eq!(parse(&json!([])), Err(ManifestError::NotManifest));
        assert_eq!(
            Manifest::parse(b"\x1f\x8b"),
            Err(ManifestError::NotManifest)
        );
        let wrong = json!({ "schemaVersion": 2, "config": { "digest": "sha256:1" } });
        assert!(matches!(parse(&wrong), Err(ManifestError::Malformed(_))));
        let long = vec![b' '; Manifest::MAX_LEN + 1];
        assert_eq!(Manifest::parse(&long), Err(ManifestError::TooLarge));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
