//! Platforms that images are for, and what an index holds for some of them only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use kraken_proto::Digest;
use serde_json::Value;

/// What tools write that keep something beside the images of an index, such as BuildKit its attestations.
const UNKNOWN: &str = "unknown";
/// Which manifest of the index such a thing is about.
const ABOUT: &str = "vnd.docker.reference.digest";

/// An operating system and an architecture: `linux/amd64`, or `linux/arm/v7`. Without a variant all are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    arch: String,
    variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform such as linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let is_plain = |it: &&str| {
            let plain =
                |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || "-_.".contains(it);
            !it.is_empty() && it.chars().all(plain)
        };
        let parts: Vec<_> = text
            .split('/')
            .filter(is_plain)
            .map(str::to_owned)
            .collect();
        let count = text.split('/').count();
        match (
            <[String; 2]>::try_from(parts.clone()),
            <[String; 3]>::try_from(parts),
        ) {
            (Ok([os, arch]), _) if count == 2 => Ok(Self {
                os,
                arch,
                variant: None,
            }),
            (_, Ok([os, arch, variant])) => Ok(Self {
                os,
                arch,
                variant: Some(variant),
            }),
            _ => Err(PlatformError(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl Platform {
    /// What an entry of an index says that it is for; nothing of what is for none.
    fn of(entry: &Value) -> Option<Self> {
        let text = |key: &str| Some(entry["platform"][key].as_str()?.to_owned());
        let [os, arch] = [text("os")?, text("architecture")?];
        if [&os, &arch]
            .iter()
            .any(|it| it.is_empty() || *it == UNKNOWN)
        {
            return None;
        }
        let variant = text("variant").filter(|it| !it.is_empty());
        Some(Self { os, arch, variant })
    }

    fn includes(&self, other: &Self) -> bool {
        let fits = self.variant.is_none() || self.variant == other.variant;
        fits && (&self.os, &self.arch) == (&other.os, &other.arch)
    }
}

/// What of an index is left out by who wants only these platforms; all are wanted when there are none.
///
/// What is for no platform stays, unless it is about a manifest that is left out.
pub(crate) fn left_out(index: &[u8], platforms: &[Platform]) -> BTreeSet<Digest> {
    if platforms.is_empty() {
        return BTreeSet::new();
    }
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    let entries = index["manifests"].as_array().map_or(&[][..], Vec::as_slice);
    let digest = |text: &Value| text.as_str()?.parse::<Digest>().ok();
    let mut kept = BTreeMap::new();
    for entry in entries {
        if let (Some(digest), Some(its)) = (digest(&entry["digest"]), Platform::of(entry)) {
            *kept.entry(digest).or_insert(false) |= platforms.iter().any(|it| it.includes(&its));
        }
    }
    let mut others = BTreeMap::new();
    for entry in entries {
        if let (Some(its), None) = (digest(&entry["digest"]), Platform::of(entry)) {
            let about = digest(&entry["annotations"][ABOUT]);
            let is_kept = about
                .and_then(|about| kept.get(&about))
                .is_none_or(|kept| *kept);
            *others.entry(its).or_insert(false) |= is_kept;
        }
    }
    for (digest, is_kept) in others {
        *kept.entry(digest).or_insert(false) |= is_kept;
    }
    let left_out = kept.into_iter().filter(|(_, is_kept)| !is_kept);
    left_out.map(|(digest, _)| digest).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn platforms(texts: &[&str]) -> Vec<Platform> {
        texts.iter().map(|it| it.parse().unwrap()).collect()
    }

    #[test]
    fn only_manifests_of_wanted_platforms_stay_and_what_is_about_them() {
        let image = |name: &str, arch: &str, variant: &str| json!({"digest": named(name), "platform": {"os": "linux", "architecture": arch, "variant": variant}});
        let about = |name: &str, of: &str| {
            json!({
                "digest": named(name), "annotations": {ABOUT: named(of)},
                "platform": {"os": "unknown", "architecture": "unknown"},
            })
        };
        let index = json!({"schemaVersion": 2, "manifests": [
            about("about amd64", "amd64"), about("about arm", "v7"), about("about another", "another"),
            image("amd64", "amd64", ""), image("v7", "arm", "v7"), image("v6", "arm", "v6"),
            {"digest": named("plain")}, {"digest": named("odd"), "platform": "linux"},
            image("twice", "s390x", ""), {"digest": named("twice")},
        ]});
        let index = index.to_string();
        let out = |texts: &[&str]| left_out(index.as_bytes(), &platforms(texts));
        assert_eq!(out(&[]), BTreeSet::new());
        let amd64 = ["about arm", "v7", "v6"].map(named);
        assert_eq!(out(&["linux/amd64"]), amd64.into());
        let v7 = ["about amd64", "amd64", "v6"].map(named);
        assert_eq!(out(&["linux/arm/v7"]), v7.into());
        assert_eq!(out(&["linux/arm", "linux/amd64"]), BTreeSet::new());
        assert_eq!(
            left_out(b"no index", &platforms(&["linux/amd64"])),
            BTreeSet::new()
        );
    }

    #[test]
    fn platforms_are_read_and_written() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/amd64/",
            "a/b/c/d",
            "Linux/amd64",
            "linux//arm",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
