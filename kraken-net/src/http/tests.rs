//! Serving: health, drain and errors.

use axum::Router;
use axum::routing::get;
use http::{Request, StatusCode};
use tokio_util::sync::CancellationToken;

use super::{HttpBody, HttpClient, serve, with_health};

async fn status(url: String) -> StatusCode {
    let request = Request::get(url).body(HttpBody::Empty).unwrap();
    let client = HttpClient::new(None).unwrap();
    client.send(request).await.unwrap().status()
}

#[tokio::test]
async fn health_and_readiness() {
    let ready = CancellationToken::new();
    let asked = ready.clone();
    let router = with_health(Router::new(), move || {
        let ready = asked.is_cancelled();
        async move {
            if ready {
                Ok(())
            } else {
                Err("the store is still opening".to_string())
            }
        }
    });
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, router, None, CancellationToken::new()).unwrap();
    let url = |path: &str| format!("http://{}{path}", server.local_addr());
    assert_eq!(status(url("/health")).await, StatusCode::OK);
    let not_yet = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(status(url("/readiness")).await, not_yet);
    ready.cancel();
    assert_eq!(status(url("/readiness")).await, StatusCode::OK);
}

#[tokio::test]
async fn a_running_request_is_let_end() {
    let (began, go_on) = (CancellationToken::new(), CancellationToken::new());
    let (tell, wait) = (began.clone(), go_on.clone());
    let slow = async move || {
        tell.cancel();
        wait.cancelled().await;
        "done"
    };
    let router = Router::new().route("/slow", get(slow));
    let (any, stop) = ("127.0.0.1:0".parse().unwrap(), CancellationToken::new());
    let server = serve(any, router, None, stop.clone()).unwrap();
    let request = tokio::spawn(status(format!("http://{}/slow", server.local_addr())));
    began.cancelled().await;
    stop.cancel();
    go_on.cancel();
    assert_eq!(request.await.unwrap(), StatusCode::OK);
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, Router::new(), None, CancellationToken::new()).unwrap();
    let taken = server.local_addr();
    let error = serve(taken, Router::new(), None, CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}
