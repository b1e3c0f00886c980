//! One origin: every call, through the client and as raw HTTP.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use kraken_proto::ring::compare::Prints;
use kraken_proto::{Digest, MetaInfo, PeerRole};

use super::fake::{Fake, Origin, blob, collect, namespace};
use crate::http::{ApiError, ByteStream, HttpBody, HttpClient, HttpResponse};
use crate::origin::holdings::MOST;
use crate::origin::{Copies, HoldingsAsked, Listed, Prefetch};

fn body(chunks: Vec<Vec<u8>>) -> ByteStream {
    futures::stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk)))).boxed()
}

async fn raw(origin: &Origin, method: Method, path: &str, head: &[(&str, &str)]) -> HttpResponse {
    with_body(origin, method, path, head, HttpBody::Empty).await
}

async fn with_body(
    origin: &Origin,
    method: Method,
    path: &str,
    head: &[(&str, &str)],
    body: HttpBody,
) -> HttpResponse {
    let mut request = Request::builder().method(method).uri(origin.url.join(path));
    for (name, value) in head {
        request = request.header(*name, *value);
    }
    let client = HttpClient::new(None).unwrap();
    client.send(request.body(body).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_blob_is_found_described_and_read() {
    let bytes = blob(300_000);
    let (fake, digest) = Fake::with(&bytes);
    let origin = Origin::start(fake);
    let (client, ns) = (&origin.client, namespace());
    assert_eq!(
        client.stat(&ns, digest, Copies::Coming).await,
        Ok(Some(bytes.len() as u64))
    );
    let meta = client.metainfo(&ns, digest).await.unwrap();
    assert_eq!(meta, MetaInfo::of(&bytes));
    let read = client.read(&ns, digest, None).await.unwrap();
    assert_eq!(read.length, 300_000);
    assert!(collect(read).await.unwrap() == bytes);
    let read = client.read(&ns, digest, Some(10..2_010)).await.unwrap();
    assert_eq!(read.length, 300_000);
    assert!(collect(read).await.unwrap() == bytes[10..2_010]);
    assert_eq!(client.peer().await.unwrap().role, PeerRole::Origin);
    let owners = client.locations(digest).await.unwrap();
    assert_eq!(owners, ["https://one:1", "https://two:2"]);
}

#[tokio::test]
async fn headers_and_ranges_are_right() {
    let bytes = blob(1000);
    let (fake, digest) = Fake::with(&bytes);
    let origin = Origin::start(fake);
    let path = format!("/namespace/library%2Fbusybox/blobs/{digest}");
    let head = raw(&origin, Method::HEAD, &path, &[]).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.header("content-length"), Some("1000"));
    assert_eq!(head.header("etag"), Some(&*format!("\"{digest}\"")));
    assert_eq!(
        head.header("docker-content-digest"),
        Some(&*digest.to_string())
    );
    assert_eq!(head.header("accept-ranges"), Some("bytes"));

    let part = raw(&origin, Method::GET, &path, &[("range", "bytes=-100")]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.header("content-range"), Some("bytes 900-999/1000"));
    assert_eq!(part.header("content-length"), Some("100"));
    assert_eq!(part.bytes(1000).await.unwrap(), bytes[900..]);

    let beyond = raw(&origin, Method::GET, &path, &[("range", "bytes=1000-")]).await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.header("content-range"), Some("bytes */1000"));
    let odd = raw(&origin, Method::GET, &path, &[("range", "lines=1-2")]).await;
    assert_eq!(odd.status(), StatusCode::OK);

    let bare = format!("/namespace/n/blobs/{}", digest.hex());
    let bare = raw(&origin, Method::GET, &bare, &[]).await;
    assert_eq!(bare.bytes(2000).await.unwrap(), bytes);
}

#[tokio::test]
async fn errors_say_what_is_wrong_in_json() {
    let origin = Origin::start(Fake::with(b"x").0);
    let good = Digest::of(b"missing");
    let upper = good.to_string().replace("sha256:", "sha256:AB");
    let cases = [
        (format!("/namespace/n/blobs/{good}"), 404, "NOT_FOUND"),
        ("/namespace/n/blobs/sha256:12".into(), 400, "BAD_REQUEST"),
        (format!("/namespace/n/blobs/{upper}"), 400, "BAD_REQUEST"),
        (
            format!("/namespace/a%2F..%2Fb/blobs/{good}"),
            400,
            "BAD_REQUEST",
        ),
        ("/nowhere".into(), 404, "UNKNOWN_PATH"),
        (format!("/blobs/{good}/locations/more"), 404, "UNKNOWN_PATH"),
        ("/namespace/n/uploads".into(), 405, "UNKNOWN_METHOD"),
        (
            "/namespace/n/uploads/..%2F..%2Fetc".into(),
            404,
            "NOT_FOUND",
        ),
    ];
    for (path, status, code) in cases {
        let answer = raw(&origin, Method::GET, &path, &[]).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let json: serde_json::Value = answer.json(4000).await.unwrap();
        assert_eq!(json["error"]["code"], code, "{path}");
        assert!(json["error"]["message"].is_string(), "{path}");
    }
    let local = format!("/internal/namespace/n/blobs/{good}?local=perhaps");
    let answer = raw(&origin, Method::HEAD, &local, &[]).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn disk_and_backend_are_told_apart() {
    let origin = Origin::start(Fake::with(b"x").0);
    let (client, ns, there) = (&origin.client, namespace(), Digest::of(b"backend"));
    assert_eq!(client.stat(&ns, there, Copies::Here).await, Ok(None));
    assert_eq!(client.stat(&ns, there, Copies::Coming).await, Ok(Some(7)));
    assert_eq!(client.prefetch(&ns, there).await, Ok(Prefetch::Started));
    let here = Digest::of(b"x");
    assert_eq!(client.prefetch(&ns, here).await, Ok(Prefetch::Present));
    let missing = client.prefetch(&ns, Digest::of(b"-")).await;
    assert_eq!(missing, Err(ApiError::NotFound));
}

#[tokio::test]
async fn an_upload_goes_on_at_its_offset() {
    let origin = Origin::start(Fake::with(b"x").0);
    let (client, ns) = (&origin.client, namespace());
    let bytes = blob(3 << 20);
    let id = client.upload_start().await.unwrap();
    let small = bytes[..2 << 20].chunks(5000).map(<[u8]>::to_vec).collect();
    assert_eq!(client.upload_append(&id, 0, body(small)).await, Ok(2 << 20));
    // The same again is refused, with the place to go on at.
    let again = client.upload_append(&id, 0, body(vec![vec![1]])).await;
    assert_eq!(again, Err(ApiError::RangeInvalid { len: 2 << 20 }));
    assert_eq!(client.upload_len(&id).await, Ok(2 << 20));
    let rest = body(vec![bytes[2 << 20..].to_vec()]);
    assert_eq!(client.upload_append(&id, 2 << 20, rest).await, Ok(3 << 20));
    let wrong = client.upload_commit("upload-99", &ns, Digest::of(&bytes));
    assert_eq!(wrong.await, Err(ApiError::NotFound));
    let meta = client.upload_commit(&id, &ns, Digest::of(&bytes)).await;
    assert_eq!(meta, Ok(MetaInfo::of(&bytes)));
    assert_eq!(client.upload_len(&id).await, Err(ApiError::NotFound));
    let portions = origin.fake.portions.lock().unwrap().clone();
    assert!(portions.iter().all(|size| *size <= 1 << 20), "{portions:?}");
    let small = portions.iter().filter(|size| **size < 256 << 10).count();
    // At most the empty probe and the last portion of each of the two requests.
    assert!(small <= 4, "{portions:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_kept_as_far_as_it_came() {
    let origin = Origin::start(Fake::with(b"x").0);
    let client = &origin.client;
    let id = client.upload_start().await.unwrap();
    let broken = futures::stream::iter([Ok(Bytes::from(blob(700_000)))])
        .chain(futures::stream::once(async {
            // So that the bytes in front are on their way.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("the client went away"))
        }))
        .boxed();
    let error = client.upload_append(&id, 0, broken).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // The origin notices the break in its own time.
    while client.upload_len(&id).await.unwrap() < 700_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn wrong_uploads_are_refused() {
    let origin = Origin::start(Fake::with(b"here").0);
    let (client, ns) = (&origin.client, namespace());
    let id = client.upload_start().await.unwrap();
    client
        .upload_append(&id, 0, body(vec![b"data".to_vec()]))
        .await
        .unwrap();
    let error = client.upload_commit(&id, &ns, Digest::of(b"other")).await;
    assert!(matches!(error, Err(ApiError::BadRequest(_))), "{error:?}");
    assert_eq!(client.upload_abort(&id).await, Err(ApiError::NotFound));
    let id = client.upload_start().await.unwrap();
    assert_eq!(client.upload_abort(&id).await, Ok(()));
    let present = format!("/namespace/n/blobs/{}/uploads", Digest::of(b"here"));
    let answer = raw(&origin, Method::POST, &present, &[]).await;
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    let put = raw(&origin, Method::PUT, "/namespace/n/uploads/u", &[]).await;
    assert_eq!(put.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_original_way_to_upload_works() {
    let origin = Origin::start(Fake::with(b"here").0);
    let digest = Digest::of(b"0123456789");
    let base = format!("/namespace/n/blobs/{digest}/uploads");
    let answer = raw(&origin, Method::POST, &base, &[]).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let id = answer.header("location").unwrap().to_string();
    let path = format!("{base}/{id}");
    let patch = async |range: &str, bytes: &'static [u8]| {
        let head = [("content-range", range)];
        let body = HttpBody::Bytes(Bytes::from_static(bytes));
        with_body(&origin, Method::PATCH, &path, &head, body)
            .await
            .status()
            .as_u16()
    };
    assert_eq!(patch("0-4", b"0123").await, 202);
    assert_eq!(patch("0-4", b"0123").await, 416);
    assert_eq!(patch("4,x", b"").await, 400);
    assert_eq!(patch("4-5", b"456789").await, 400);
    assert_eq!(patch("4,10", b"456789").await, 202);
    let answer = raw(&origin, Method::PUT, &path, &[]).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(origin.fake.blobs.lock().unwrap().contains_key(&digest));
}

#[tokio::test]
async fn replicas_are_committed_and_blobs_removed() {
    let origin = Origin::start(Fake::with(b"needed").0);
    let (client, ns) = (&origin.client, namespace());
    let id = client.upload_start().await.unwrap();
    client
        .upload_append(&id, 0, body(vec![b"copy".to_vec()]))
        .await
        .unwrap();
    let (copy, delay) = (Digest::of(b"copy"), Duration::from_secs(90));
    let committed = client.upload_commit_replica(&id, &ns, copy, delay).await;
    assert_eq!(committed, Ok(()));
    assert_eq!(*origin.fake.delays.lock().unwrap(), [delay]);
    assert_eq!(client.remove(copy).await, Ok(()));
    assert_eq!(client.remove(copy).await, Err(ApiError::NotFound));
    let needed = client.remove(Digest::of(b"needed")).await;
    assert_eq!(
        needed,
        Err(ApiError::Conflict("not written back yet".into()))
    );
}

#[tokio::test]
async fn write_backs_are_asked_for_and_about() {
    let held = Digest::of(b"held");
    let origin = Origin::start(Fake::with(b"held").0);
    let (client, ns, delay) = (&origin.client, namespace(), Duration::from_millis(2500));
    assert_eq!(client.write_back(&ns, held, delay).await, Ok(()));
    assert_eq!(*origin.fake.delays.lock().unwrap(), [delay]);
    let absent = client.write_back(&ns, Digest::of(b"absent"), delay).await;
    assert_eq!(absent, Err(ApiError::NotFound));
    let unwritten = Digest::of(b"unwritten");
    assert_eq!(client.writes_back(&ns, unwritten).await, Ok(true));
    assert_eq!(client.writes_back(&ns, held).await, Ok(false));
}

#[tokio::test]
async fn holdings_are_compared_and_questions_are_bounded() {
    let held = Digest::of(b"held");
    let origin = Origin::start(Fake::with(b"held").0);
    let asked = HoldingsAsked {
        asker: "a".into(),
        members: vec!["a".into(), "b".into()],
        list: Some(Listed::Strays { after: Some(held) }),
    };
    let holdings = origin.client.holdings(&asked).await.unwrap();
    let prints = Prints::of(["a", "b"].map(|name| Digest::of(name.as_bytes())));
    assert_eq!((holdings.prints, holdings.strays), (prints, 3));
    let absent = Digest::of(b"absent");
    assert_eq!(
        origin.client.holds(vec![absent, held]).await,
        Ok(vec![held])
    );
    let many = origin.client.holds(vec![held; MOST + 1]).await;
    assert!(matches!(many, Err(ApiError::BadRequest(_))), "{many:?}");
    let odd = r#"{"asker": "a", "members": [], "lists": 1}"#;
    let body = HttpBody::Bytes(odd.into());
    let answer = with_body(&origin, Method::POST, "/internal/ring/holdings", &[], body).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}
