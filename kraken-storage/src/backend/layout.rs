//! Under which name a blob lies in a backend that keeps files or objects.

use kraken_proto::Digest;
use serde::{Deserialize, Serialize};

/// How a backend names blobs, below its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `blobs/sha256/<2 hex>/<hex>/data`.
    #[default]
    Sharded,
    /// `docker/registry/v2/blobs/sha256/<2 hex>/<hex>/data`, as the registry of the Docker project
    /// lays blobs out: its bucket or directory can be used as it is.
    DockerRegistry,
    /// `<hex>`, all in one place.
    Identity,
}

impl Layout {
    /// Where blobs begin; nothing else of ours lies there.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Sharded => "blobs/sha256/",
            Self::DockerRegistry => "docker/registry/v2/blobs/sha256/",
            Self::Identity => "",
        }
    }

    /// Where the blob lies.
    pub(super) fn path(self, digest: Digest) -> String {
        let (prefix, hex) = (self.prefix(), digest.hex());
        match self {
            Self::Sharded | Self::DockerRegistry => format!("{prefix}{}/{hex}/data", &hex[..2]),
            Self::Identity => hex,
        }
    }

    /// The directories that blobs are spread over, in the order of their digests; one that holds all
    /// when they are not spread.
    pub(super) fn shards(self) -> Vec<String> {
        let prefix = self.prefix();
        match self {
            Self::Sharded | Self::DockerRegistry => (0..=u8::MAX)
                .map(|it| format!("{prefix}{it:02x}/"))
                .collect(),
            Self::Identity => vec![prefix.to_string()],
        }
    }

    /// The blob that an entry of a shard's directory stands for.
    #[cfg(feature = "web")]
    pub(super) fn digest_of_entry(self, shard: &str, entry: &str) -> Option<Digest> {
        match self {
            Self::Sharded | Self::DockerRegistry => self.digest(&format!("{shard}{entry}/data")),
            Self::Identity => self.digest(entry),
        }
    }

    /// The blob that lies there, if one does.
    pub(super) fn digest(self, path: &str) -> Option<Digest> {
        let rest = path.strip_prefix(self.prefix())?;
        let hex = match self {
            Self::Sharded | Self::DockerRegistry => {
                let (shard, hex) = rest.strip_suffix("/data")?.split_once('/')?;
                hex.strip_prefix(shard).filter(|_| shard.len() == 2)?;
                hex
            }
            Self::Identity => rest,
        };
        format!("sha256:{hex}").parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_blob_and_nothing_else_does() {
        let digest = Digest::of(b"x");
        let hex = digest.hex();
        let two = &hex[..2];
        for (layout, path) in [
            (Layout::Sharded, format!("blobs/sha256/{two}/{hex}/data")),
            (
                Layout::DockerRegistry,
                format!("docker/registry/v2/blobs/sha256/{two}/{hex}/data"),
            ),
            (Layout::Identity, hex.clone()),
        ] {
            assert_eq!(layout.path(digest), path);
            assert_eq!(layout.digest(&path), Some(digest));
            let shards = layout.shards();
            assert!(shards.iter().any(|shard| path.starts_with(shard.as_str())));
            assert!(shards.is_sorted());
            for other in [
                String::new(),
                format!("{path}x"),
                format!("x{path}"),
                format!("blobs/sha256/zz/{hex}/data"),
                format!("blobs/sha256/{hex}/data"),
                "docker/registry/v2/repositories/a/_manifests".to_string(),
            ] {
                assert_eq!(layout.digest(&other), None, "{other}");
            }
        }
    }
}
