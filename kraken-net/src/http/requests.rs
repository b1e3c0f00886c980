//! How many requests a server answers, how, and how soon.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::traced::{kind_of, known};

/// The bounds of the histogram, in seconds: from what is in memory to what is fetched from a slow storage.
const BUCKETS: [f64; 7] = [0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// Counts the requests of one process, at one router or several. Clones count together.
///
/// Labels have as many values as there are routes: nothing in them is a client's.
#[derive(Clone)]
pub struct Requests {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    answered: Family<Answered, Counter>,
    took: Family<Route, Histogram, fn() -> Histogram>,
}

impl Default for Requests {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("kraken");
        let answered = Family::default();
        let buckets: fn() -> Histogram = || Histogram::new(BUCKETS);
        let took = Family::new_with_constructor(buckets);
        registry.register(
            "http_requests",
            "Requests that were answered",
            answered.clone(),
        );
        registry.register_with_unit(
            "http_request",
            "What it took until the head of an answer was there",
            Unit::Seconds,
            took.clone(),
        );
        let inner = Arc::new(Inner {
            registry,
            answered,
            took,
        });
        Self { inner }
    }
}

impl Requests {
    /// Counts what a router answers. To be laid around all that may refuse a request. One whose client
    /// leaves before the answer is not counted.
    pub fn counted(&self, router: Router) -> Router {
        let requests = self.clone();
        router.layer(from_fn(move |request, next| {
            count(requests.clone(), request, next)
        }))
    }

    /// The metrics in the text format of OpenMetrics, without the end of a text; none before the first
    /// answer.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode_registry(&mut text, &self.inner.registry).expect("a String takes all text");
        text
    }

    fn note(&self, answered: Answered, took: Duration) {
        let route = Route {
            route: answered.route.clone(),
        };
        self.inner.answered.get_or_create(&answered).inc();
        let histogram = self.inner.took.get_or_create(&route);
        histogram.observe(took.as_secs_f64());
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

async fn count(requests: Requests, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = kind_of(request.uri().path(), route.map(MatchedPath::as_str)).to_owned();
    let method = known(request.method());
    let begun = Instant::now();
    let response = next.run(request).await;
    let answered = Answered {
        method,
        route,
        status: response.status().as_u16(),
    };
    requests.note(answered, begun.elapsed());
    response
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http::{Method, StatusCode};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::http::{HttpBody, HttpClient, admit, serve};
    use crate::roles::Role;

    async fn ask(at: &str, method: Method, path: &str, body: HttpBody) -> StatusCode {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{at}{path}"));
        let client = HttpClient::new(None).unwrap();
        let answer = client.send(request.body(body).unwrap()).await;
        answer.unwrap().status()
    }

    /// Bodies make hyper answer; without them a server does so itself.
    #[tokio::test]
    async fn each_answer_counts_once_whoever_gives_it() {
        let requests = Requests::default();
        assert_eq!(requests.text(), "");
        let things = get(async || "a thing").put(async || StatusCode::CREATED);
        let router = Router::new().route("/things/{name}", things);
        let any = "127.0.0.1:0".parse().unwrap();
        let router = requests.counted(router);
        let server = serve(any, router, None, CancellationToken::new()).unwrap();
        let at = format!("http://{}", server.local_addr());
        ask(&at, Method::GET, "/things/one", HttpBody::Empty).await;
        ask(&at, Method::GET, "/things/two", HttpBody::Empty).await;
        ask(&at, Method::PUT, "/things/two", HttpBody::Bytes("x".into())).await;
        ask(&at, Method::GET, "/one/of/many", HttpBody::Empty).await;
        ask(&at, Method::GET, "/v2/own/blobs/sha256:00", HttpBody::Empty).await;
        let text = requests.text();
        let total = "kraken_http_requests_total";
        for line in [
            r#"{method="GET",route="things",status="200"} 2"#,
            r#"{method="PUT",route="things",status="201"} 1"#,
            r#"{method="GET",route="other",status="404"} 1"#,
            r#"{method="GET",route="blobs",status="404"} 1"#,
        ] {
            assert!(text.contains(&format!("\n{total}{line}\n")), "{text}");
        }
        let seconds = "kraken_http_request_seconds";
        assert!(text.contains(&format!("\n{seconds}_count{{route=\"things\"}} 3\n")));
        assert!(!text.contains("two") && !text.contains("own"), "{text}");
    }

    #[tokio::test]
    async fn who_is_refused_is_counted() {
        let requests = Requests::default();
        let router = Router::new().route("/x/queue", get(async || "all"));
        let router = requests.counted(admit(router, Role::Origin));
        let any = "127.0.0.1:0".parse().unwrap();
        let server = serve(any, router, None, CancellationToken::new()).unwrap();
        let at = format!("http://{}", server.local_addr());
        let status = ask(&at, Method::GET, "/x/queue", HttpBody::Empty).await;
        let line = format!("route=\"queue\",status=\"{}\"}} 1\n", status.as_u16());
        assert!(!status.is_success());
        assert!(requests.text().contains(&line), "{}", requests.text());
    }
}
