//! The storage behind the origins, as the configuration names it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kraken_core::storage::backend::web::{
    HttpBackend, HttpOptions, RegistryBackend, RegistryOptions, WebHdfsBackend, WebHdfsOptions,
};
use kraken_core::storage::backend::{
    AzureOptions, BackendLimits, GcsOptions, Layout, LimitedBackend, NoopBackend, Route,
    RoutedBackend, S3Options, ShadowBackend,
};
use kraken_core::storage::{BackendError, BoxBackend, OpendalBackend};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::doctor::blob::WithTestBlob;
use crate::limits::Rate;
use crate::process::StartError;
use crate::units;

/// The storage behind the origins.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendConfig {
    /// A directory, shared by all origins.
    LocalDisk(PathBuf),
    /// A bucket of S3, or of a server that speaks its protocol.
    S3(S3Options),
    /// A bucket of Google Cloud Storage.
    Gcs(GcsOptions),
    /// A container of Azure Blob Storage.
    Azure(AzureOptions),
    /// An HDFS with WebHDFS.
    Webhdfs(WebHdfsOptions),
    /// Any HTTP server; read-only.
    Http(HttpOptions),
    /// Another registry's blobs; read-only.
    Registry(RegistryOptions),
    /// Two backends: both are written, the first is read.
    Shadow(Box<ShadowConfig>),
    /// Takes every blob and keeps none.
    Noop {},
    /// In the memory of each origin, for tests: what an origin wrote only that origin finds.
    Memory {},
}

/// A backend, and one that is kept alike.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShadowConfig {
    /// The one that is read.
    pub active: BackendConfig,
    /// The other.
    pub shadow: BackendConfig,
}

/// The backend of some namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// A regular expression that matches anywhere in a namespace; `^` and `$` hold it to its ends.
    pub namespace: Pattern,
    /// Their backend.
    pub backend: BackendConfig,
    /// How blobs are named there; `sharded` when absent.
    #[serde(default)]
    pub layout: Option<Layout>,
    /// How much all origins together may ask of it.
    #[serde(default)]
    pub limits: BackendLimitsConfig,
    /// How long one request to it may take, and one chunk of a body: `30s` when absent. Nothing
    /// bounds a whole body.
    #[serde(default)]
    pub timeout: Timeout,
    /// Whether an origin is not ready while the backend cannot be reached.
    #[serde(default)]
    pub must_ready: bool,
}

/// Limits on a backend, shared by the origins in equal parts. Without a key, there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendLimitsConfig {
    /// Bytes per second that are read.
    #[serde(default)]
    pub read: Option<Rate>,
    /// Bytes per second that are written.
    #[serde(default)]
    pub write: Option<Rate>,
    /// Blobs that are read and written at once; at least one by each origin.
    #[serde(default)]
    pub at_once: Option<NonZeroUsize>,
}

/// A regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "regular expression")]
pub struct Pattern(String);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match Regex::new(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(format!("namespace is a regular expression: {error}")),
        }
    }
}

/// A time such as `30s` or `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "time")]
pub struct Timeout(pub(crate) Duration);

impl Default for Timeout {
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

units::serialize_as_text!(Timeout, |timeout| units::time_text(timeout.0));

impl TryFrom<String> for Timeout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match units::time(&text)? {
            time if time < Duration::from_secs(1) => {
                Err(format!("a timeout of {text} is too short: 1s at least"))
            }
            time if time > Duration::from_secs(3600) => {
                Err(format!("a timeout of {text} is too long: 1h at most"))
            }
            time => Ok(Self(time)),
        }
    }
}

/// The storage of an origin, which may become another one.
#[derive(Debug)]
pub(crate) struct Storage {
    routed: RoutedBackend,
    /// What it consists of.
    made: Mutex<Vec<(RouteConfig, Route)>>,
    /// An origin takes its part of the limits.
    origins: usize,
}

impl Storage {
    /// `one` for all namespaces, or `routes`; limits are shared by so many origins.
    ///
    /// # Errors
    /// Both or none are given, or one makes no sense.
    pub(crate) fn new(
        one: Option<&BackendConfig>,
        routes: &[RouteConfig],
        origins: usize,
    ) -> Result<Self, StartError> {
        let made = make_all(one, routes, origins, &[])?;
        let routes = made.iter().map(|(_, route)| route.clone());
        Ok(Self {
            routed: RoutedBackend::new(routes.collect()),
            made: Mutex::new(made),
            origins,
        })
    }

    pub(crate) fn backend(&self) -> BoxBackend {
        BoxBackend::new(WithTestBlob(self.routed.clone()))
    }

    /// What another configuration asks for; backends that are the same stay as they are.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub(crate) fn changed(
        &self,
        one: Option<&BackendConfig>,
        routes: &[RouteConfig],
    ) -> Result<Vec<(RouteConfig, Route)>, StartError> {
        let before = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        make_all(one, routes, self.origins, &before)
    }

    pub(crate) fn replace(&self, made: Vec<(RouteConfig, Route)>) {
        let routes = made.iter().map(|(_, route)| route.clone());
        self.routed.replace(routes.collect());
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = made;
    }
}

fn make_all(
    one: Option<&BackendConfig>,
    routes: &[RouteConfig],
    origins: usize,
    before: &[(RouteConfig, Route)],
) -> Result<Vec<(RouteConfig, Route)>, StartError> {
    let configs = match (one, routes) {
        (Some(one), []) => vec![RouteConfig::of_all(one.clone())],
        (None, [_, ..]) => routes.to_vec(),
        (None, []) => {
            let what = "no storage is configured: give one `backend`, or `backends` by namespace";
            return Err(StartError::Config(what.into()));
        }
        (Some(_), [_, ..]) => {
            let what = "`backend` and `backends` exclude each other: the namespace \"\" matches everything";
            return Err(StartError::Config(what.into()));
        }
    };
    let made = configs.into_iter().map(|config| {
        let same = before.iter().find(|(other, _)| *other == config);
        let route = match same {
            Some((_, made)) => made.clone(),
            None => route(&config, origins)?,
        };
        Ok((config, route))
    });
    made.collect()
}

impl RouteConfig {
    /// A backend for all namespaces.
    fn of_all(backend: BackendConfig) -> Self {
        Self {
            namespace: Pattern(String::new()),
            backend,
            layout: None,
            limits: BackendLimitsConfig::default(),
            timeout: Timeout::default(),
            must_ready: false,
        }
    }
}

/// Whether [`Storage::new`] would take it. No directory is made or looked at.
///
/// # Errors
/// As there.
pub(crate) fn check(one: Option<&BackendConfig>, routes: &[RouteConfig]) -> Result<(), StartError> {
    let one = one.map(BackendConfig::without_disks);
    let routes = routes.iter().map(|route| RouteConfig {
        backend: route.backend.without_disks(),
        ..route.clone()
    });
    Storage::new(one.as_ref(), &routes.collect::<Vec<_>>(), 1).map(drop)
}

impl BackendConfig {
    fn without_disks(&self) -> Self {
        match self {
            Self::LocalDisk(_) => Self::Memory {},
            Self::Shadow(pair) => Self::Shadow(Box::new(ShadowConfig {
                active: pair.active.without_disks(),
                shadow: pair.shadow.without_disks(),
            })),
            other => other.clone(),
        }
    }
}

fn route(config: &RouteConfig, origins: usize) -> Result<Route, StartError> {
    let pattern = Regex::new(&config.namespace.0);
    let pattern = pattern.map_err(|error| StartError::Config(error.to_string()))?;
    let BackendLimitsConfig {
        read,
        write,
        at_once,
    } = config.limits;
    let mut limits = BackendLimits::default();
    limits.read = read.map(|rate| rate.0);
    limits.write = write.map(|rate| rate.0);
    limits.at_once = at_once.map(NonZeroUsize::get);
    let backend = make(&config.backend, config.layout, config.timeout)?;
    let backend = match config.limits == BackendLimitsConfig::default() {
        true => backend,
        false => BoxBackend::new(LimitedBackend::new(backend, limits.shared_by(origins))),
    };
    Ok(Route {
        pattern,
        backend,
        must_ready: config.must_ready,
    })
}

fn make(
    config: &BackendConfig,
    layout: Option<Layout>,
    Timeout(timeout): Timeout,
) -> Result<BoxBackend, BackendError> {
    let files =
        |backend: OpendalBackend| BoxBackend::new(backend.layout(layout.unwrap_or_default()));
    let unnamed = |what: &str| match layout {
        None => Ok(()),
        Some(_) => Err(BackendError::Denied(format!(
            "layout: {what} names blobs in its own way"
        ))),
    };
    Ok(match config {
        BackendConfig::LocalDisk(_)
        | BackendConfig::S3(_)
        | BackendConfig::Gcs(_)
        | BackendConfig::Azure(_)
        | BackendConfig::Memory {} => files(objects(config, Timeout(timeout))?),
        BackendConfig::Webhdfs(options) => {
            let layout = layout.unwrap_or_default();
            BoxBackend::new(WebHdfsBackend::new(options.clone(), layout, timeout)?)
        }
        BackendConfig::Http(options) => {
            unnamed("http")?;
            BoxBackend::new(HttpBackend::new(options.clone(), timeout)?)
        }
        BackendConfig::Registry(options) => {
            unnamed("registry")?;
            BoxBackend::new(RegistryBackend::new(options.clone(), timeout)?)
        }
        BackendConfig::Shadow(pair) => {
            let of = |config| make(config, layout, Timeout(timeout));
            BoxBackend::new(ShadowBackend::new(of(&pair.active)?, of(&pair.shadow)?))
        }
        BackendConfig::Noop {} => {
            unnamed("noop")?;
            BoxBackend::new(NoopBackend)
        }
    })
}

/// The storage that a configuration asks for, of those that keep objects by any path.
///
/// # Errors
/// It is another one, or makes no sense.
pub(crate) fn objects(
    config: &BackendConfig,
    Timeout(timeout): Timeout,
) -> Result<OpendalBackend, BackendError> {
    match config {
        BackendConfig::LocalDisk(dir) => OpendalBackend::local_disk(dir),
        BackendConfig::S3(options) => OpendalBackend::s3(options, timeout),
        BackendConfig::Gcs(options) => OpendalBackend::gcs(options, timeout),
        BackendConfig::Azure(options) => OpendalBackend::azure(options, timeout),
        BackendConfig::Memory {} => Ok(OpendalBackend::memory()),
        BackendConfig::Webhdfs(_)
        | BackendConfig::Http(_)
        | BackendConfig::Registry(_)
        | BackendConfig::Shadow(_)
        | BackendConfig::Noop {} => Err(BackendError::Denied(
            "it is to be one of local_disk, s3, gcs and azure".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use kraken_core::Digest;
    use kraken_core::storage::Backend as _;

    use super::*;

    fn backend(
        one: Option<&BackendConfig>,
        routes: &[RouteConfig],
        origins: usize,
    ) -> Result<BoxBackend, StartError> {
        Storage::new(one, routes, origins).map(|storage| storage.backend())
    }

    fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_backend_can_be_written_down() {
        let routes: Vec<RouteConfig> = parse(
            "
- namespace: ^library/
  backend: {s3: {bucket: b, region: eu-west-1, secret_access_key: {env: KEY}, access_key_id: {file: /k}}}
  layout: docker-registry
  limits: {read: 1GB, write: 500MB, at_once: 64}
  timeout: 1m 30s
  must_ready: true
- {namespace: ^gcs/, backend: {gcs: {bucket: b, credential_file: /c.json}}}
- {namespace: ^azure/, backend: {azure: {container: c, endpoint: 'https://a.blob.core.windows.net'}}}
- {namespace: ^hdfs/, backend: {webhdfs: {namenodes: ['http://n1:9870', 'http://n2:9870'], root: /kraken}}}
- {namespace: ^http/, backend: {http: {url: 'https://files.test/{shard}/{hex}'}}}
- namespace: ^hub/
  backend: {registry: {url: 'https://registry-1.docker.io', credentials: {helper: ecr-login}}}
- namespace: ^moving/
  backend: {shadow: {active: {local_disk: /a}, shadow: {memory: {}}}}
- {namespace: '', backend: {noop: {}}}
",
        )
        .unwrap();
        assert_eq!(routes.len(), 8);
        assert_eq!(routes[0].layout, Some(Layout::DockerRegistry));
        assert_eq!(routes[0].timeout.0, Duration::from_secs(90));
        assert_eq!(routes[1].timeout, Timeout::default());
        // The first one's key is in no file here.
        let error = backend(None, &routes, 3).unwrap_err();
        assert!(error.to_string().contains("/k"), "{error}");
        let made = backend(None, &routes[1..], 3).unwrap();
        let writable = |name: &str| made.check_writable(&name.parse().unwrap()).is_ok();
        assert!(writable("gcs/a") && writable("moving/a") && writable("other"));
        assert!(!writable("http/a") && !writable("hub/a"));
    }

    #[tokio::test]
    async fn a_storage_changes_and_what_stays_the_same_is_kept() {
        let of = |text: &str| parse::<Vec<RouteConfig>>(text).unwrap();
        let kept = "- {namespace: ^a/, backend: {memory: {}}}\n";
        let storage = Storage::new(None, &of(kept), 1).unwrap();
        let (backend, digest) = (storage.backend(), Digest::of(b"abc"));
        let bytes = || futures::stream::iter([Ok(axum::body::Bytes::from_static(b"abc"))]).boxed();
        let (a, b) = ("a/x".parse().unwrap(), "b/x".parse().unwrap());
        backend.write(&a, digest, 3, bytes()).await.unwrap();
        assert!(backend.check_writable(&b).is_err());
        let both = of(&format!(
            "- {{namespace: ^b/, backend: {{memory: {{}}}}}}\n{kept}"
        ));
        storage.replace(storage.changed(None, &both).unwrap());
        assert!(backend.check_writable(&b).is_ok());
        assert_eq!(backend.stat(&a, digest).await.unwrap(), Some(3));
        assert!(storage.changed(None, &[]).is_err());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, told) in [
            (
                "{namespace: '(', backend: {noop: {}}}",
                "regular expression",
            ),
            ("{namespace: a, backend: {noop: {}}, timeout: soon}", "30s"),
            (
                "{namespace: a, backend: {noop: {}}, timeout: 10ms}",
                "1s at least",
            ),
            ("{namespace: a, backend: {s4: {bucket: b}}}", "s3"),
            ("{namespace: a, backend: {s3: {buckets: b}}}", "bucket"),
            (
                "{namespace: a, backend: {noop: {}}, limits: {reads: 1}}",
                "read",
            ),
            (
                "{namespace: a, backend: {noop: {}}, layout: flat}",
                "identity",
            ),
            (
                "{namespace: a, backend: {noop: {}}, limits: {read: 0}}",
                "leave the key out",
            ),
        ] {
            let error = parse::<RouteConfig>(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        for (text, told) in [
            (
                "{namespace: a, backend: {noop: {}}, layout: sharded}",
                "noop",
            ),
            (
                "{namespace: a, backend: {http: {url: 'https://a/b'}}}",
                "{hex}",
            ),
            (
                "{namespace: a, backend: {http: {url: 'https://a/{hex}/{id}'}}}",
                "{id}",
            ),
            ("{namespace: a, backend: {http: {url: 'a/{hex}'}}}", "url"),
            (
                "{namespace: a, backend: {registry: {url: 'ftp://a'}}}",
                "https://",
            ),
            (
                "{namespace: a, backend: {webhdfs: {namenodes: [], root: /}}}",
                "at least one",
            ),
            (
                "{namespace: a, backend: {s3: {bucket: b, access_key_id: {text: k}}}}",
                "go together",
            ),
        ] {
            let config: RouteConfig = parse(text).unwrap();
            let error = backend(None, &[config], 1).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
        let noop = BackendConfig::Noop {};
        let error = backend(None, &[], 1).unwrap_err().to_string();
        assert!(error.contains("no storage"), "{error}");
        let route = parse("{namespace: a, backend: {noop: {}}}").unwrap();
        let error = backend(Some(&noop), &[route], 1).unwrap_err().to_string();
        assert!(error.contains("exclude"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let text =
            "{s3: {bucket: b, access_key_id: {text: hunter1}, secret_access_key: {text: hunter2}}}";
        let config: BackendConfig = parse(text).unwrap();
        assert!(!format!("{config:?}").contains("hunter"), "{config:?}");
        for wrong in [
            "{s3: {bucket: b, secret_access_key: {text: hunter2}, regoin: x}}",
            "{s3: {bucket: b, secret_access_key: hunter2}}",
            "{s3: {bucket: b, secret_access_key: {hunter2: x}}}",
            "{s3: {bucket: b, secret_access_key: {file: a, text: hunter2}}}",
        ] {
            let error = crate::config::parse::<BackendConfig>(wrong).unwrap_err();
            assert!(!error.contains("hunter"), "{error}");
        }
    }
}
