//! What requests carry in their bodies.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::Response;
use http::StatusCode;
use serde::de::DeserializeOwned;

use super::error::shaped;

/// The JSON document in a request whose type says so, with errors of our shape.
#[derive(Debug)]
pub struct Sent<T>(pub T);

impl<S, T> FromRequest<S> for Sent<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(error) => Err(refused(error.status(), &error.body_text())),
        }
    }
}

/// The bytes in a request of any type, with errors of our shape.
#[derive(Debug)]
pub struct SentBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for SentBytes {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(error) => Err(refused(error.status(), &error.body_text())),
        }
    }
}

fn refused(status: StatusCode, message: &str) -> Response {
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "TOO_LARGE",
        _ => "BAD_REQUEST",
    };
    shaped(status, code, message)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::routing::post;
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_body_that_is_refused_is_refused_in_our_shape() {
        let app = Router::new()
            .route("/json", post(async |Sent(_): Sent<Vec<u8>>| {}))
            .route("/bytes", post(async |SentBytes(_): SentBytes| {}));
        let long = " ".repeat(3 << 20);
        for (path, kind, body, status, code) in [
            ("/json", "application/json", "[1]", 200, None),
            ("/json", "text/plain", "[1]", 415, Some("BAD_REQUEST")),
            ("/json", "application/json", "[", 400, Some("BAD_REQUEST")),
            ("/json", "application/json", "{}", 422, Some("BAD_REQUEST")),
            ("/json", "application/json", &long, 413, Some("TOO_LARGE")),
            ("/bytes", "text/plain", "[", 200, None),
            ("/bytes", "text/plain", &long, 413, Some("TOO_LARGE")),
        ] {
            let request = Request::post(path).header("content-type", kind);
            let request = request.body(Body::from(body.to_owned())).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status, "{path} {kind}");
            let told = to_bytes(answer.into_body(), 1 << 10).await.unwrap();
            let told = serde_json::from_slice::<Value>(&told).unwrap_or_default();
            let told = told.pointer("/error/code").and_then(Value::as_str);
            assert_eq!(told, code, "{path} {kind}");
        }
    }
}
