//! The storage behind the origins, as the configuration names it.

pub(crate) mod check;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kraken_core::storage::backend::web::{
    HttpBackend, HttpOptions, RegistryBackend, RegistryOptions, WebHdfsBackend, WebHdfsOptions,
};
use kraken_core::storage::backend::{
    AzureOptions, BackendLimits, GcsOptions, Layout, LimitedBackend, NoopBackend, Route,
    RoutedBackend, S3Options, ShadowBackend, WaryBackend,
};
use kraken_core::storage::{BackendError, BoxBackend, OpendalBackend};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::doctor::blob::WithTestBlob;
use crate::limits::Rate;
use crate::metrics::Family;
use crate::pattern::Pattern;
use crate::problems::Problems;
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
    /// How blobs are named there, of a storage that does not name them itself (`http`, `registry`, `noop`).
    #[serde(default)]
    #[schemars(default = "Layout::default", extend("x-conditional" = true))]
    pub layout: Option<Layout>,
    /// How much all origins together may ask of it.
    #[serde(default)]
    pub limits: BackendLimitsConfig,
    /// How long one request to it may take, and one chunk of a body. Nothing bounds a whole body.
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

/// A time such as `30s` or `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "time", extend("examples" = ["30s"]))]
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
    made: Mutex<Vec<Made>>,
    /// An origin takes its part of the limits.
    origins: usize,
}

/// The storage of some namespaces, as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    config: RouteConfig,
    route: Route,
    /// What knows whether it answers; nothing of a registry.
    wary: Option<WaryBackend<BoxBackend>>,
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
    ) -> Result<Self, Problems> {
        let made = make_all(one, routes, origins, &[])?;
        let routes = made.iter().map(|made| made.route.clone());
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
    ) -> Result<Vec<Made>, Problems> {
        let before = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        make_all(one, routes, self.origins, &before)
    }

    pub(crate) fn replace(&self, made: Vec<Made>) {
        let routes = made.iter().map(|made| made.route.clone());
        self.routed.replace(routes.collect());
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = made;
    }

    /// Which storages do not answer, as metrics.
    pub(crate) fn metrics(&self) -> String {
        let help = "1 while the storage of these namespaces does not answer, and is left alone.";
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut away = Family::gauge("kraken_storage_away", help);
        for Made { config, wary, .. } in made.iter() {
            let is_away = wary.as_ref().is_some_and(WaryBackend::is_away);
            away = away.sample(
                &[("namespaces", config.namespace.as_str())],
                u8::from(is_away),
            );
        }
        away.text()
    }
}

fn make_all(
    one: Option<&BackendConfig>,
    routes: &[RouteConfig],
    origins: usize,
    before: &[Made],
) -> Result<Vec<Made>, Problems> {
    let mut found = Problems::default();
    let mut made = Vec::new();
    for (key, config) in routes_of(one, routes)? {
        let same = before.iter().find(|other| other.config == config);
        let one = match same {
            Some(made) => Ok(made.clone()),
            None => route(&config, origins).map_err(|error| told(&key, error)),
        };
        made.extend(found.of(one));
    }
    found.done(made)
}

/// The storages with the keys that they stand at; nothing is in front of the keys of a single one.
fn routes_of(
    one: Option<&BackendConfig>,
    routes: &[RouteConfig],
) -> Result<Vec<(String, RouteConfig)>, Problems> {
    match (one, routes) {
        (Some(one), []) => Ok(vec![(String::new(), RouteConfig::of_all(one.clone()))]),
        (None, [_, ..]) => {
            let routes = routes.iter().cloned().enumerate();
            Ok(routes
                .map(|(at, it)| (format!("backends[{at}]"), it))
                .collect())
        }
        (None, []) => {
            let what = "no storage is configured: give one `backend`, or `backends` by namespace";
            Err(Problems::one("", what))
        }
        (Some(_), [_, ..]) => {
            let what = "`backend` and `backends` exclude each other: the namespace \"\" matches everything";
            Err(Problems::one("backends", what))
        }
    }
}

/// What keeps a storage from being made, at its key.
fn told(key: &str, error: BackendError) -> Problems {
    let what = words(error);
    let found = match what.strip_prefix("layout: ") {
        Some(what) => Problems::one("layout", what),
        None => Problems::one("backend", what),
    };
    if key.is_empty() {
        found
    } else {
        found.under(key)
    }
}

/// What a backend says of its configuration.
pub(crate) fn words(error: BackendError) -> String {
    match error {
        BackendError::Denied(what) => what,
        other => other.to_string(),
    }
}

impl RouteConfig {
    /// A backend for all namespaces.
    fn of_all(backend: BackendConfig) -> Self {
        Self {
            namespace: Pattern::default(),
            backend,
            layout: None,
            limits: BackendLimitsConfig::default(),
            timeout: Timeout::default(),
            must_ready: false,
        }
    }
}

/// Whether [`Storage::new`] would take it, and what it needs is there. No directory is made.
///
/// # Errors
/// All that is wrong, with the keys of an origin.
pub(crate) fn check(one: Option<&BackendConfig>, routes: &[RouteConfig]) -> Result<(), Problems> {
    let mut found = Problems::default();
    check::reached(&mut found, routes);
    for (key, config) in routes_of(one, routes)? {
        let checked = config.backend.check();
        let checked = checked.map_err(|wrong| wrong.under("backend"));
        let checked = checked.and_then(|()| {
            let without = RouteConfig {
                backend: config.backend.without_disks(),
                ..config.clone()
            };
            route(&without, 1)
                .map(drop)
                .map_err(|error| told("", error))
        });
        found.of(checked.map_err(|wrong| match &key[..] {
            "" => wrong,
            key => wrong.under(key),
        }));
    }
    found.done(())
}

/// How long a storage may take to say whether it has a blob, and to begin with its bytes, retries included: with
/// three origins asked in turn still less than an agent waits for its tracker.
const ANSWER: Duration = Duration::from_secs(10);

impl BackendConfig {
    /// Whether it is a registry, which may want to be left alone for a while: that is waited for.
    fn may_make_wait(&self) -> bool {
        match self {
            Self::Registry(_) => true,
            Self::Shadow(pair) => pair.active.may_make_wait(),
            _ => false,
        }
    }

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

fn route(config: &RouteConfig, origins: usize) -> Result<Made, BackendError> {
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
    let answer = config.timeout.0.min(ANSWER);
    let may_wait = config.backend.may_make_wait();
    let wary = (!may_wait).then(|| WaryBackend::new(backend.clone(), answer));
    let backend = wary.clone().map_or(backend, BoxBackend::new);
    let backend = match config.limits == BackendLimitsConfig::default() {
        true => backend,
        false => BoxBackend::new(LimitedBackend::new(backend, limits.shared_by(origins))),
    };
    let route = Route {
        pattern: config.namespace.regex(),
        backend,
        must_ready: config.must_ready,
    };
    let config = config.clone();
    Ok(Made {
        config,
        route,
        wary,
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
mod tests;
