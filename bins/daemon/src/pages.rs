//! Web pages on this host must not work an agent: its port has no password, and a browser sends what a
//! page tells it to.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::Method;
use kraken_core::net::http::ApiError;

/// Lets through what reads, and what no browser says that a page has sent.
pub(crate) async fn refuse(request: Request, next: Next) -> Response {
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    let head = request.headers();
    // Browsers send `Origin` with everything that changes something, and cannot be told not to.
    if !reads && (head.contains_key("origin") || head.contains_key("sec-fetch-site")) {
        let what = "a web page has no business here: use the command line";
        return ApiError::Forbidden(what.into()).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn pages_may_read_and_nothing_else() {
        let router = Router::new()
            .route("/x", get(async || "here").post(async || "done"))
            .layer(axum::middleware::from_fn(refuse));
        let call = async |method: &str, header: Option<&str>| {
            let request = Request::builder().method(method).uri("/x");
            let request = match header {
                Some(name) => request.header(name, "https://example.test"),
                None => request,
            };
            let request = request.body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status()
        };
        assert_eq!(call("GET", Some("origin")).await, StatusCode::OK);
        assert_eq!(call("POST", None).await, StatusCode::OK);
        for header in ["origin", "sec-fetch-site"] {
            assert_eq!(call("POST", Some(header)).await, StatusCode::FORBIDDEN);
        }
    }
}
