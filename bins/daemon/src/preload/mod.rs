//! Preloading: a container runtime of this host pulls an image through this host's agent before a
//! container needs it.
//!
//! `GET /preload/tags/{repository:tag}?runtime=&namespace=` at the agent, for this host only. It is
//! answered when the runtime has the image. No shell is involved, and no name that the registry would
//! not take reaches the runtime.

mod config;
mod docker;
mod program;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::get;
use http::HeaderMap;
use kraken_core::net::http::{ApiError, Params};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::problems::Problems;

pub use config::{ImageName, PreloadConfig, Puller, Word};

/// How long one image may take, unless the configuration says so.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Images that may wait for their turn.
const WAITING: usize = 64;
/// So much of what a runtime says is told: the last bytes.
const SAID: usize = 4 << 10;
/// Where runtimes listen, and have the mirrors configured, unless told otherwise.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const DOCKERD: &str = "/run/docker.sock";
const HOSTS_DIR: &str = "/etc/containerd/certs.d";
/// The programs that pull.
const CTR: &str = "ctr";
const PODMAN: &str = "podman";
/// The namespace that Kubernetes uses.
const NAMESPACE: &str = "k8s.io";

/// Lets one runtime pull, a few images at a time.
#[derive(Debug)]
pub struct Preloader {
    config: PreloadConfig,
    /// `host:port` of the agent's registry.
    agent: String,
    turns: Semaphore,
    places: Semaphore,
}

impl Preloader {
    /// Images come from the agent's registry at `agent`, a `host:port`.
    ///
    /// # Errors
    /// The configuration makes no sense; with the keys inside it.
    pub fn new(config: PreloadConfig, agent: String) -> Result<Self, Problems> {
        config.check()?;
        Ok(Self {
            turns: Semaphore::new(config.at_once),
            places: Semaphore::new(config.at_once + WAITING),
            config,
            agent,
        })
    }

    /// Lets the runtime pull, and says what it calls the image; into another namespace than the configured
    /// one if that is named.
    ///
    /// # Errors
    /// [`PreloadError`]; when it took too long, the runtime may go on.
    pub async fn pull(
        &self,
        image: &ImageName,
        namespace: Option<&Word>,
    ) -> Result<String, PreloadError> {
        let runtime = self.config.runtime;
        if namespace.is_some() && runtime != Puller::Containerd {
            return Err(PreloadError::NoNamespaces(runtime));
        }
        let _place = self.places.try_acquire().map_err(|_| PreloadError::Busy)?;
        let patience = self.config.timeout.map_or(PATIENCE, |it| it.0);
        let pulled = async {
            let _turn = self.turns.acquire().await;
            match runtime {
                Puller::Docker => self.by_docker(image).await,
                Puller::Containerd | Puller::Podman => {
                    let (program, arguments) = self.command(image, namespace);
                    program::run(&program, &arguments).await
                }
            }
        };
        let pulled = timeout(patience, pulled).await;
        pulled.unwrap_or(Err(PreloadError::Late(patience)))?;
        let name = self.name(image);
        tracing::info!(%runtime, name, "an image is preloaded");
        Ok(name)
    }

    /// Who the runtime asks for the image, as it sees it.
    fn host(&self) -> &str {
        let registry = self.config.registry.as_ref();
        registry.map_or(self.agent.as_str(), |registry| registry.0.as_str())
    }

    fn name(&self, image: &ImageName) -> String {
        format!("{}/{image}", self.host())
    }

    async fn by_docker(&self, image: &ImageName) -> Result<(), PreloadError> {
        let socket = self.config.socket.as_deref();
        let socket = socket.unwrap_or_else(|| Path::new(DOCKERD));
        let repository = format!("{}/{}", self.host(), image.repo);
        docker::pull(socket, &repository, &image.reference).await
    }
}

/// The agent's own address, as a runtime of this host reaches it.
pub(crate) fn reachable(listening: SocketAddr) -> String {
    let mut addr = listening;
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr.to_string()
}

/// Adds the endpoint.
pub(crate) fn with_preload(router: Router, preloader: Option<Preloader>) -> Router {
    let preload = get(preload).with_state(preloader.map(Arc::new));
    router.route("/preload/tags/{*image}", preload)
}

#[derive(Debug, Deserialize)]
struct Asked {
    runtime: Option<String>,
    namespace: Option<String>,
}

async fn preload(
    State(preloader): State<Option<Arc<Preloader>>>,
    Params(image): Params<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<String, ApiError> {
    // It changes something although it is a GET, and so it has been since the first Kraken.
    if headers.contains_key("origin") || headers.contains_key("sec-fetch-site") {
        let what = "a web page has no business here: use the command line";
        return Err(ApiError::Forbidden(what.into()));
    }
    let preloader = preloader.ok_or_else(|| {
        let what = "this agent knows no runtime to preload into: write `preload` into its \
                    configuration, or name one with kraken preload --runtime";
        ApiError::Conflict(what.into())
    })?;
    let bad = |error: &dyn std::fmt::Display| ApiError::BadRequest(error.to_string());
    let image: ImageName = image.parse().map_err(|error| bad(&error))?;
    let configured = preloader.config.runtime;
    if let Some(runtime) = asked.runtime {
        let wanted: Puller = runtime.parse().map_err(|error: String| bad(&error))?;
        if wanted != configured {
            let what = format!("this agent preloads into {configured}, not {wanted}");
            return Err(ApiError::BadRequest(what));
        }
    }
    let namespace = asked.namespace.map(|text| text.parse());
    let namespace: Option<Word> = namespace.transpose().map_err(|error: String| bad(&error))?;
    let pulled = preloader.pull(&image, namespace.as_ref()).await;
    let name = pulled.map_err(|error| match error {
        PreloadError::NoNamespaces(_) => ApiError::BadRequest(error.to_string()),
        PreloadError::Failed { .. } => ApiError::Internal(error.to_string()),
        _ => ApiError::Unavailable(error.to_string()),
    })?;
    Ok(format!("{name}\n"))
}

/// Why an image is not preloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreloadError {
    /// Too many wait.
    #[error("too many images wait to be preloaded: try again later")]
    Busy,
    /// It took too long.
    #[error("the runtime does not have the image within {} s", .0.as_secs())]
    Late(Duration),
    /// Only containerd has such.
    #[error("{0} has no namespaces")]
    NoNamespaces(Puller),
    /// The program or the socket.
    #[error("{what} cannot be used: {reason}")]
    Away {
        /// Which.
        what: String,
        /// What the system said.
        reason: String,
    },
    /// The runtime has tried.
    #[error("{what} says: {said}")]
    Failed {
        /// Which program or service.
        what: String,
        /// The end of what it said.
        said: String,
    },
}
