//! Where tags are kept besides the disks of the build-indexes.

use kraken_core::storage::OpendalBackend;
use kraken_registry::tags::backend::TagBackend;
use kraken_registry::tags::ring::TagRing;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::backends::{BackendConfig, Timeout, objects, words};
use crate::metrics::Family;
use crate::problems::Problems;

/// Where tags are kept besides the disks of the build-indexes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TagsBackendConfig {
    /// The storage, the same at all build-indexes of the cluster.
    pub backend: BackendConfig,
    /// What all paths begin with, such as `east/tags`; no other cluster writes there.
    #[serde(default)]
    pub prefix: String,
    /// How long one request may take.
    #[serde(default)]
    pub timeout: Timeout,
}

impl TagsBackendConfig {
    /// Whether [`Self::make`] would take it, and what the storage needs is there. No directory is made.
    ///
    /// # Errors
    /// With the keys inside this one.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        self.backend
            .check()
            .map_err(|wrong| wrong.under("backend"))?;
        match self.backend {
            BackendConfig::LocalDisk(_) => self.keeping(OpendalBackend::memory()).map(drop),
            _ => self.make().map(drop),
        }
    }

    /// The backend.
    ///
    /// # Errors
    /// It makes no sense; with the keys inside this one.
    pub(crate) fn make(&self) -> Result<TagBackend, Problems> {
        if self.backend == (BackendConfig::Memory {}) {
            return Err(Problems::one("backend", "memory forgets with the process"));
        }
        let storage = objects(&self.backend, self.timeout);
        self.keeping(storage.map_err(|error| Problems::one("backend", words(error)))?)
    }

    fn keeping(&self, storage: OpendalBackend) -> Result<TagBackend, Problems> {
        // Secrets are not in it.
        let place = format!("{:?}", self.backend);
        TagBackend::new(storage, &self.prefix, place)
            .map_err(|error| Problems::one("prefix", error))
    }
}

/// What was read from the backend, for Prometheus; nothing without one.
pub(crate) async fn metrics(tags: &TagRing) -> String {
    let (Some(backend), Ok(Some(unreadable))) = (tags.backend(), tags.unreadable().await) else {
        return String::new();
    };
    let read = Family::counter(
        "kraken_tags_backend_read",
        "Tags and links that were read from the backend since the start.",
    );
    let wrong = Family::gauge(
        "kraken_tags_backend_unreadable",
        "Objects that could not be read when the cluster began.",
    );
    read.sample(&[], backend.read()).text() + &wrong.sample(&[], unreadable).text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn make(text: &str) -> Result<TagBackend, String> {
        let config: TagsBackendConfig = config::parse(text).map_err(|it| it.to_string())?;
        config.make().map_err(|it| it.to_string())
    }

    #[test]
    fn a_backend_of_tags_keeps_objects_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let disk = format!("backend: {{local_disk: {}}}", dir.path().display());
        for fine in [
            disk.clone(),
            format!("{disk}\nprefix: east/tags/\ntimeout: 10s"),
            "backend: {s3: {bucket: b, region: eu-west-1}}".into(),
            "backend: {gcs: {bucket: b, anonymous: true}}".into(),
        ] {
            assert!(make(&fine).is_ok(), "{fine}");
        }
        for (text, what) in [
            ("backend: {memory: {}}".to_owned(), "forgets"),
            ("backend: {noop: {}}".into(), "local_disk, s3"),
            (
                "backend: {http: {url: 'https://a/{hex}'}}".into(),
                "local_disk, s3",
            ),
            (format!("{disk}\nprefix: ../a"), "prefix"),
            (format!("{disk}\nprefix: /a"), "prefix"),
            (format!("{disk}\nprefixes: a"), "prefix"),
            ("prefix: a".into(), "backend"),
        ] {
            let error = make(&text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
