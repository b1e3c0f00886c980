//! Connections that the loop answers itself, and those that it hands over, by what a client sees.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::FileBody;
use crate::http::{HttpServer, serve};

/// 3 MiB and a bit, no two pages alike.
fn content() -> Vec<u8> {
    (0..3_200_001_u32)
        .map(|at| ((at / 251) ^ at) as u8)
        .collect()
}

/// A router with a file under `/file`, whose ranges are asked for as `/file?start-end`.
fn with_file() -> (Router, Arc<AtomicU64>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    let file = Arc::new(file);
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let answer = async move |request: Request| {
        let query = request.uri().query().unwrap_or("0-3200001");
        let (start, end) = query.split_once('-').unwrap();
        let range = start.parse().unwrap()..end.parse().unwrap();
        from_file(Arc::clone(&file), range, Arc::clone(&counted))
    };
    (Router::new().route("/file", any(answer)), reads)
}

fn from_file(file: Arc<File>, range: Range<u64>, reads: Arc<AtomicU64>) -> Response {
    let part = |range: Range<u64>| {
        let bytes = &content()[range.start as usize..range.end as usize];
        Bytes::copy_from_slice(bytes)
    };
    // Other bytes, so that only the file can answer right.
    let wrong = vec![0; (range.end - range.start) as usize];
    let mut response = Body::from(wrong).into_response();
    let read = move |range: Range<u64>| {
        reads.fetch_add(range.end - range.start, Ordering::Relaxed);
        futures::stream::iter([Ok(part(range))]).boxed()
    };
    let read = Arc::new(read);
    response.extensions_mut().insert(FileBody {
        file,
        range,
        read,
        valid: Arc::new(|| true),
    });
    response
}

fn start(router: Router) -> (HttpServer, CancellationToken) {
    let shutdown = CancellationToken::new();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    (
        serve(any, router, None, shutdown.clone()).unwrap(),
        shutdown,
    )
}

async fn connect(server: &HttpServer) -> TcpStream {
    TcpStream::connect(server.local_addr()).await.unwrap()
}

/// Reads one answer: its head, and as many bytes as that says.
async fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head comes"));
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream
        .read_exact(&mut body)
        .await
        .expect("a whole body comes");
    (head, body)
}

async fn ask(stream: &mut TcpStream, what: &str) -> (String, Vec<u8>) {
    let request = format!("{what} HTTP/1.1\r\nhost: h\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    answer(stream).await
}

#[tokio::test]
async fn a_file_comes_whole_and_in_parts_on_one_connection() {
    let (router, reads) = with_file();
    let (server, _shutdown) = start(router);
    let mut stream = connect(&server).await;
    let whole = content();
    let (head, body) = ask(&mut stream, "GET /file").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\ndate: "), "{head}");
    assert!(body == whole);
    for range in [0..1, 1..4097, 65_535..3_200_001, 3_200_000..3_200_001, 5..5] {
        let (_, body) = ask(
            &mut stream,
            &format!("GET /file?{}-{}", range.start, range.end),
        )
        .await;
        assert!(body == whole[range.clone()], "{range:?}");
    }
    // A temporary directory may lie on a file system that cannot say what is cached.
    let total = 3_200_001 + 1 + 4096 + 3_134_466 + 1;
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads == 0 || reads == total, "{reads} of {total}");
}

#[tokio::test]
async fn requests_in_one_packet_are_answered_in_their_order() {
    let (router, _) = with_file();
    let (server, _shutdown) = start(router.route("/small", get(async || "small")));
    let mut stream = connect(&server).await;
    let requests = "GET /file?10-2000000 HTTP/1.1\r\n\r\nGET /small HTTP/1.1\r\n\r\n\
                    GET /none HTTP/1.1\r\n\r\nPUT /small HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc\
                    GET /small HTTP/1.1\r\n\r\n";
    stream.write_all(requests.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.1 == content()[10..2_000_000]);
    assert_eq!(answer(&mut stream).await.1, b"small");
    assert!(answer(&mut stream).await.0.starts_with("HTTP/1.1 404 "));
    // From the body on it is hyper who answers.
    assert!(answer(&mut stream).await.0.starts_with("HTTP/1.1 405 "));
    assert_eq!(answer(&mut stream).await.1, b"small");
}

#[tokio::test]
async fn what_is_read_from_the_cache_and_what_is_not_make_one_body() {
    // A pipe's end is no file that can be probed: all of it is read as bytes.
    let (reader, _writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let router = Router::new().route(
        "/",
        get(async move || from_file(file, 7..3_000_000, counted)),
    );
    let (server, _shutdown) = start(router);
    let (_, body) = ask(&mut connect(&server).await, "GET /").await;
    assert!(body == content()[7..3_000_000]);
    assert_eq!(reads.load(Ordering::Relaxed), 3_000_000 - 7);
}

/// Parts that are in the page cache, and parts that are not, in one body.
#[tokio::test]
async fn hot_and_cold_parts_come_in_their_order() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    file.sync_all().unwrap();
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
    for start in [700_000, 2_000_000] {
        let len = std::num::NonZeroU64::new(400_000);
        rustix::fs::fadvise(&file, start, len, rustix::fs::Advice::DontNeed).unwrap();
    }
    let (file, reads) = (Arc::new(file), Arc::<AtomicU64>::default());
    let counted = Arc::clone(&reads);
    let whole = async move || from_file(file, 0..3_200_001, counted);
    let (server, _shutdown) = start(Router::new().route("/", get(whole)));
    let (_, body) = ask(&mut connect(&server).await, "GET /").await;
    assert!(body == content());
    assert!(reads.load(Ordering::Relaxed) <= 3_200_001);
}

#[tokio::test]
async fn a_file_that_is_no_longer_good_is_not_sent() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![9; 3_200_001]).unwrap();
    let file = Arc::new(file);
    let asked = Arc::<AtomicU64>::default();
    let read = |range: Range<u64>| {
        let bytes = &content()[range.start as usize..range.end as usize];
        futures::stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed()
    };
    let answer = async move || {
        let mut response = Body::empty().into_response();
        let count = Arc::clone(&asked);
        response
            .headers_mut()
            .insert("content-length", 3_200_001.into());
        response.extensions_mut().insert(FileBody {
            file: Arc::clone(&file),
            range: 0..3_200_001,
            read: Arc::new(read),
            // Good for a moment.
            valid: Arc::new(move || count.fetch_add(1, Ordering::SeqCst) == 0),
        });
        response
    };
    let (server, _shutdown) = start(Router::new().route("/", get(answer)));
    let (_, body) = ask(&mut connect(&server).await, "GET /").await;
    let turn = body
        .iter()
        .zip(content())
        .rposition(|(got, good)| *got != good);
    assert!(turn.is_none_or(|turn| turn < 512 << 10), "{turn:?}");
}

#[tokio::test]
async fn a_head_request_has_the_length_and_no_body() {
    let (router, _) = with_file();
    let headed = any(async || ([("content-length", "77")], Body::empty()));
    let (server, _shutdown) = start(router.route("/head", headed));
    let mut stream = connect(&server).await;
    stream
        .write_all(b"HEAD /head HTTP/1.1\r\n\r\nGET /file?0-3 HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut text = vec![0; 400];
    let mut read = 0;
    while !text[..read].ends_with(&content()[..3]) {
        read += stream.read(&mut text[read..]).await.unwrap();
    }
    let text = String::from_utf8_lossy(&text[..read]).into_owned();
    let (first, second) = text.split_once("\r\n\r\n").unwrap();
    assert!(first.contains("content-length: 77"), "{text}");
    assert!(second.starts_with("HTTP/1.1 200 OK"), "{text}");
}

#[tokio::test]
async fn a_body_of_unknown_length_comes_in_chunks() {
    let chunks = async || {
        let chunks =
            [0, 1, 5, 40_000].map(|len| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; len])));
        Body::from_stream(futures::stream::iter(chunks))
    };
    let (server, _shutdown) = start(Router::new().route("/", get(chunks)));
    let mut stream = connect(&server).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("transfer-encoding: chunked"), "{text}");
    assert!(
        text.contains("\r\n\r\n1\r\nx\r\n5\r\nxxxxx\r\n9c40\r\nxx"),
        "{}",
        &text[..300]
    );
    assert!(text.ends_with("xx\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_small_part_does_not_wait_for_what_comes_later() {
    let more = Arc::new(Notify::new());
    let wait = Arc::clone(&more);
    let slow = async move || {
        let rest = async move {
            wait.notified().await;
            Ok(Bytes::from_static(b"late"))
        };
        let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"early"))]);
        let body = Body::from_stream(first.chain(futures::stream::once(rest)));
        ([("content-length", "9")], body)
    };
    let (server, _shutdown) = start(Router::new().route("/", get(slow)));
    let mut stream = connect(&server).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"early") {
        text.push(stream.read_u8().await.unwrap());
    }
    more.notify_one();
    let mut rest = [0; 4];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"late");
}

#[tokio::test]
async fn a_body_that_is_too_short_ends_the_connection() {
    let short = async || {
        let body =
            futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 20_000]))]);
        ([("content-length", "20001")], Body::from_stream(body))
    };
    let (server, _shutdown) = start(Router::new().route("/", get(short)));
    let mut stream = connect(&server).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\ncontent-length: 20001\r\n"), "{head}");
    assert_eq!(body.len(), 20_000);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_for_it() {
    struct Told(Arc<AtomicBool>, Arc<Notify>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            self.1.notify_one();
        }
    }
    let (ended, begun, told) = (
        Arc::default(),
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
    );
    let (guard, tell, ready) = (Arc::clone(&ended), Arc::clone(&told), Arc::clone(&begun));
    let never = async move || -> &'static str {
        let _told = Told(guard, tell);
        ready.notify_one();
        std::future::pending().await
    };
    let (server, _shutdown) = start(Router::new().route("/", get(never)));
    let mut stream = connect(&server).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    begun.notified().await;
    assert!(!ended.load(Ordering::SeqCst));
    drop(stream);
    told.notified().await;
    assert!(ended.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_shutdown_lets_a_body_end_and_closes_who_waits() {
    let (router, _) = with_file();
    let (server, shutdown) = start(router);
    let mut idle = connect(&server).await;
    ask(&mut idle, "GET /file?0-1").await;
    let mut busy = connect(&server).await;
    busy.write_all(b"GET /file HTTP/1.1\r\n\r\n").await.unwrap();
    let mut first = [0; 1];
    busy.read_exact(&mut first).await.unwrap();
    shutdown.cancel();
    assert_eq!(idle.read(&mut first).await.unwrap(), 0);
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&content()));
    let stopped = tokio::time::timeout(Duration::from_secs(20), server.stopped());
    stopped.await.expect("it drains").unwrap();
}

#[tokio::test]
async fn who_has_connected_before_a_shutdown_is_answered() {
    let (server, shutdown) = start(Router::new().route("/small", get(async || "small")));
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(connect(&server).await);
    }
    let mut used = connect(&server).await;
    assert_eq!(ask(&mut used, "GET /small").await.1, b"small");
    used.write_all(b"GET /sm").await.unwrap();
    // Whether they are accepted yet or not, and whatever came of their requests.
    tokio::time::sleep(Duration::from_millis(20)).await;
    shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for stream in &mut streams {
        let (head, body) = ask(stream, "GET /small").await;
        assert_eq!(body, b"small");
        assert!(head.contains("connection: close"), "{head}");
    }
    used.write_all(b"all HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(answer(&mut used).await.1, b"small");
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn a_slow_client_holds_nobody_up() {
    let (router, _) = with_file();
    let (server, _shutdown) = start(router);
    let mut slow = connect(&server).await;
    // Enough that no socket's buffers take it all.
    for _ in 0..20 {
        slow.write_all(b"GET /file HTTP/1.1\r\n\r\n").await.unwrap();
    }
    let mut fast = connect(&server).await;
    for _ in 0..5 {
        assert!(ask(&mut fast, "GET /file").await.1 == content());
    }
    for _ in 0..20 {
        assert!(answer(&mut slow).await.1 == content());
    }
}
