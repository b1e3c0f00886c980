//! The console: pages in a browser that show the cluster as a tracker sees it.
//!
//! It only reads. It answers on loopback only, as plain HTTP without a login: whoever may connect there
//! sees the names of hosts and blobs and how much moves. Pages of other sites are kept out by the `Host`
//! header (a name of theirs that leads here) and by the browser (they cannot read what comes back).

mod api;
mod images;
mod memory;
mod nodes;
mod pages;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use http::{HeaderValue, header};
use kraken_core::net::http::{ApiError, BaseUrl, HttpClient, HttpServer, serve_on};
use kraken_core::net::origin::OriginCluster;
use kraken_core::tracker::look::Look;
use kraken_registry::tags::client::TagClient;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use self::images::Images;
use self::memory::Memory;
use self::nodes::Nodes;
use crate::address::{self, Address};
use crate::members::member_urls;
use crate::problems::Problems;
use crate::process::StartError;
use crate::sockets;

/// The configuration of a console.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where browsers connect to: a loopback address.
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub listen: SocketAddr,
    /// Base URLs of all trackers, whose health is shown.
    #[serde(default)]
    pub trackers: Vec<String>,
    /// Base URLs of the build-indexes, whose health is shown and who know which digests an image has.
    #[serde(default)]
    pub build_indexes: Vec<String>,
    /// Base URLs of the proxies, whose health is shown.
    #[serde(default)]
    pub proxies: Vec<String>,
}

impl ConsoleConfig {
    /// A console that knows of no build-indexes and proxies.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            trackers: Vec::new(),
            build_indexes: Vec::new(),
            proxies: Vec::new(),
        }
    }

    /// Whether [`start`] would take it. Nothing is asked.
    ///
    /// # Errors
    /// With the keys inside this one.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        let mut found = Problems::default();
        let listen = self.listen;
        if !listen.ip().is_loopback() {
            let what = format!(
                "{listen} is not on loopback, and the console has no login: listen on 127.0.0.1 and \
                 reach it through a tunnel, such as ssh -L {port}:127.0.0.1:{port}",
                port = listen.port()
            );
            found.add("listen", what);
        }
        for (key, urls) in [
            ("trackers", &self.trackers),
            ("build_indexes", &self.build_indexes),
        ] {
            found.of(member_urls(urls).map_err(|wrong| wrong.under(key)));
        }
        let keys = (0..self.proxies.len()).map(|index| format!("proxies[{index}]"));
        let proxies: Vec<_> = keys.zip(self.proxies.iter().cloned()).collect();
        for (key, url) in &proxies {
            found.at(key, url.parse::<BaseUrl>());
        }
        found.twice(proxies);
        found.done(())
    }
}

/// What a console shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What the tracker knows.
    pub look: Look,
    /// The origins.
    pub origins: OriginCluster,
    /// How the cluster's members are asked.
    pub http: HttpClient,
}

/// What answers the pages' questions.
struct Console {
    look: Look,
    nodes: Nodes,
    images: Images,
    memory: Memory,
}

/// Serves a console.
///
/// # Errors
/// [`StartError`] says what to mend.
pub fn start(
    config: ConsoleConfig,
    shown: Shown,
    shutdown: CancellationToken,
) -> Result<HttpServer, StartError> {
    config.check().map_err(|wrong| wrong.under("console"))?;
    let tags = (!config.build_indexes.is_empty())
        .then(|| TagClient::new(shown.http.raw(), config.build_indexes.clone()));
    let console = Console {
        look: shown.look.clone(),
        nodes: Nodes::new(&config, &shown),
        images: Images::new(tags, shown.origins),
        memory: Memory::default(),
    };
    let socket = sockets::listen(config.listen)?;
    let server = serve_on(socket, router(Arc::new(console)), None, shutdown)?;
    Ok(server)
}

fn router(console: Arc<Console>) -> Router {
    let home = || get(async || Redirect::temporary("/console/"));
    Router::new()
        .route("/", home())
        .route("/console", home())
        .route("/console/", get(async || pages::page("index.html")))
        .route("/console/{file}", get(pages::file))
        .nest("/console/api", api::router(console))
        .layer(middleware::from_fn(guard))
}

/// Lets nobody in who came by a name that is not this host's, and tells browsers what a page may do.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = if is_here(host) {
        next.run(request).await
    } else {
        let what = "the console answers to localhost, 127.0.0.1 and [::1] only";
        ApiError::Forbidden(what.into()).into_response()
    };
    for (name, value) in HEADERS {
        let head = response.headers_mut();
        head.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Whether `host`, as in a header, is a name or an address of loopback.
fn is_here(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let addr = name.parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || addr.is_ok_and(|addr| addr.is_loopback())
}

/// Everything comes from here and nothing goes elsewhere; nobody shows the console in a frame.
const HEADERS: [(header::HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (header::CACHE_CONTROL, "no-store"),
];

#[cfg(test)]
mod tests;
