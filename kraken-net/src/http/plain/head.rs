//! Heads of requests and responses, as HTTP/1.1 writes them.

use std::time::SystemTime;

use bytes::{BufMut, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderName, TRANSFER_ENCODING, UPGRADE,
};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};

/// Bytes in a head that is read here; registry clients send some hundred.
pub(super) const MAX: usize = 16 << 10;
/// Fields in such a head.
const FIELDS: usize = 64;

/// What the bytes at the beginning of a connection are.
#[derive(Debug)]
pub(super) enum Head {
    /// Not yet a whole head.
    Part,
    /// A `GET` or `HEAD` without a body.
    Plain {
        request: Box<Request<()>>,
        /// Bytes of the head.
        len: usize,
        /// Whether the client will ask more on this connection.
        keep: bool,
    },
    /// Anything else: for hyper.
    Other,
}

/// Reads a request's head.
pub(super) fn parse(bytes: &[u8]) -> Head {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => plain(&parsed, len).unwrap_or(Head::Other),
        Ok(httparse::Status::Partial) if bytes.len() < MAX => Head::Part,
        Ok(httparse::Status::Partial) | Err(_) => Head::Other,
    }
}

fn plain(parsed: &httparse::Request<'_, '_>, len: usize) -> Option<Head> {
    let method = match parsed.method? {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        _ => return None,
    };
    let path = parsed.path.filter(|path| path.starts_with('/'))?;
    if parsed.version != Some(1) {
        return None;
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse::<Uri>().ok()?;
    let headers = request.headers_mut();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    let irregular = [TRANSFER_ENCODING, CONTENT_LENGTH, UPGRADE, EXPECT];
    if irregular.iter().any(|name| headers.contains_key(name)) {
        return None;
    }
    let keep = !closes(headers)?;
    let request = Box::new(request);
    Some(Head::Plain { request, len, keep })
}

/// Whether the client says that this request is its last; none for a header that cannot be read.
fn closes(headers: &HeaderMap) -> Option<bool> {
    let mut closes = false;
    for value in headers.get_all(CONNECTION) {
        let options = value.to_str().ok()?.split(',').map(str::trim);
        closes |= options
            .into_iter()
            .any(|it| it.eq_ignore_ascii_case("close"));
    }
    Some(closes)
}

/// How a client knows where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body, whatever the head says of its length.
    None,
    /// By the head's `Content-Length`.
    Length(u64),
    /// By chunks, of which the last is empty.
    Chunks,
}

impl Framing {
    /// What fits a response whose body has `exact` bytes, as far as that is known; notes it in the
    /// response's head.
    pub(super) fn choose(parts: &mut Parts, method: &Method, exact: Option<u64>) -> Self {
        let status = parts.status;
        let bodiless = status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodiless {
            // A length would be that of what a GET that changes nothing asks for.
            parts.headers.remove(CONTENT_LENGTH);
        }
        if *method == Method::HEAD || bodiless {
            return Self::None;
        }
        let declared = parts.headers.get(CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(length) = declared.or(exact) {
            parts.headers.remove(TRANSFER_ENCODING);
            parts.headers.insert(CONTENT_LENGTH, length.into());
            return Self::Length(length);
        }
        parts.headers.remove(CONTENT_LENGTH);
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(TRANSFER_ENCODING, chunked);
        Self::Chunks
    }
}

/// Writes a response's head. Without `keep` it says that the connection ends with it.
pub(super) fn write(parts: &Parts, keep: bool, now: SystemTime) -> BytesMut {
    let mut head = BytesMut::with_capacity(512);
    head.put_slice(b"HTTP/1.1 ");
    head.put_slice(parts.status.as_str().as_bytes());
    head.put_u8(b' ');
    let reason = parts.status.canonical_reason();
    head.put_slice(reason.unwrap_or_default().as_bytes());
    head.put_slice(b"\r\n");
    let mut field = |name: &[u8], value: &[u8]| {
        head.put_slice(name);
        head.put_slice(b": ");
        head.put_slice(value);
        head.put_slice(b"\r\n");
    };
    for (name, value) in &parts.headers {
        if *name != CONNECTION {
            field(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    if !parts.headers.contains_key(DATE) {
        field(b"date", httpdate::fmt_http_date(now).as_bytes());
    }
    if !keep {
        field(b"connection", b"close");
    }
    head.put_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    #[test]
    fn a_get_without_a_body_is_plain() {
        let text = b"GET /v2/a/blobs/b?ns=x HTTP/1.1\r\nHost: h\r\nRange: bytes=1-2\r\n\r\nGET ";
        let Head::Plain { request, len, keep } = parse(text) else {
            panic!("it is plain");
        };
        assert_eq!(len, text.len() - 4);
        assert!(keep);
        assert_eq!(request.uri().query(), Some("ns=x"));
        assert_eq!(request.headers()["range"], "bytes=1-2");
        for end in 0..len {
            assert!(matches!(parse(&text[..end]), Head::Part), "{end}");
        }
    }

    #[test]
    fn a_client_says_that_it_closes() {
        for (value, closes) in [("close", true), ("x, Close", true), ("keep-alive", false)] {
            let text = format!("HEAD / HTTP/1.1\r\nConnection: {value}\r\n\r\n");
            let head = parse(text.as_bytes());
            let wanted = !closes;
            assert!(
                matches!(head, Head::Plain { keep, .. } if keep == wanted),
                "{head:?}"
            );
        }
    }

    #[test]
    fn everything_else_is_for_another() {
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX));
        for text in [
            "PUT / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / HTTP/1.1\r\nbro ken: 1\r\n\r\n",
            "\x16\x03\x01",
            &long,
        ] {
            assert!(matches!(parse(text.as_bytes()), Head::Other), "{text:?}");
        }
    }

    fn framed(status: u16, method: Method, declared: bool, exact: Option<u64>) -> (Framing, Parts) {
        let mut response = Response::builder().status(status);
        if declared {
            response = response.header(CONTENT_LENGTH, 7);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        (Framing::choose(&mut parts, &method, exact), parts)
    }

    #[test]
    fn a_body_is_framed_by_what_is_known_of_it() {
        let (framing, _) = framed(200, Method::GET, true, None);
        assert_eq!(framing, Framing::Length(7));
        let (framing, parts) = framed(200, Method::GET, false, Some(3));
        assert_eq!(framing, Framing::Length(3));
        assert_eq!(parts.headers[CONTENT_LENGTH], "3");
        let (framing, parts) = framed(200, Method::GET, false, None);
        assert_eq!(framing, Framing::Chunks);
        assert_eq!(parts.headers[TRANSFER_ENCODING], "chunked");
        let (framing, parts) = framed(200, Method::HEAD, true, Some(0));
        assert_eq!(framing, Framing::None);
        assert_eq!(parts.headers[CONTENT_LENGTH], "7");
        let (framing, parts) = framed(304, Method::GET, true, Some(0));
        assert_eq!(framing, Framing::None);
        assert!(!parts.headers.contains_key(CONTENT_LENGTH));
        assert_eq!(framed(204, Method::GET, false, Some(0)).0, Framing::None);
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        let response = Response::builder().status(206).header("x", "y");
        let (parts, ()) = response.body(()).unwrap().into_parts();
        let text = write(&parts, false, SystemTime::UNIX_EPOCH);
        assert_eq!(
            text,
            "HTTP/1.1 206 Partial Content\r\nx: y\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             connection: close\r\n\r\n"
        );
    }
}
