//! The files of the pages, which are part of the program.

use axum::response::{IntoResponse as _, Response};
use http::header;
use kraken_core::net::http::{ApiError, Params};

/// Name, kind and text of each file.
const FILES: &[(&str, &str, &str)] = &[
    ("index.html", HTML, include_str!("web/index.html")),
    ("style.css", "text/css", include_str!("web/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("web/icon.svg")),
    ("main.js", JS, include_str!("web/main.js")),
    ("parts.js", JS, include_str!("web/parts.js")),
    ("chart.js", JS, include_str!("web/chart.js")),
    ("graph.js", JS, include_str!("web/graph.js")),
    ("layout.js", JS, include_str!("web/layout.js")),
    ("cluster.js", JS, include_str!("web/cluster.js")),
    ("swarms.js", JS, include_str!("web/swarms.js")),
    ("hosts.js", JS, include_str!("web/hosts.js")),
    ("throughput.js", JS, include_str!("web/throughput.js")),
    ("rollouts.js", JS, include_str!("web/rollouts.js")),
];
const HTML: &str = "text/html; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// One of the files.
pub(super) fn page(name: &str) -> Response {
    let found = FILES.iter().find(|(it, ..)| *it == name);
    match found {
        Some((_, kind, text)) => ([(header::CONTENT_TYPE, *kind)], *text).into_response(),
        None => ApiError::NotFound.into_response(),
    }
}

pub(super) async fn file(Params(name): Params<String>) -> Response {
    page(&name)
}
