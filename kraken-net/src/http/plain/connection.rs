//! One connection, as long as it brings only plain requests.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::ConnectInfo;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _};
use http::{Method, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::file::{self, FileBody};
use super::head::{self, Framing, Head};
use super::rewound::Rewound;
use crate::gate::Gate;
use crate::http::bounded::patiently;
use crate::http::server::HEAD;

/// Bytes of a body that go out with the head in one write: more would be copied for nothing.
const TOGETHER: usize = 16 << 10;

/// How long the rest of a head, and the first one of a connection, are waited for while this process
/// ends: the client has sent it, or is about to.
const FRESH: Duration = Duration::from_secs(1);

pub(super) struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    router: Router,
    /// Those that wait for a head.
    waiting: Gate,
    shutdown: CancellationToken,
    /// What was read and belongs to no request yet.
    read: BytesMut,
    /// Until when the first request of a client that has just connected is waited for, even while
    /// this process ends.
    fresh_until: Option<Instant>,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        client: SocketAddr,
        router: Router,
        waiting: Gate,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            stream,
            client,
            router,
            waiting,
            shutdown,
            read: BytesMut::new(),
            fresh_until: Some(Instant::now() + FRESH),
        }
    }

    /// Answers plain requests until the connection ends, or until another one comes: then it gives
    /// the connection, with that request unread.
    pub(super) async fn run(mut self) -> io::Result<Option<Rewound>> {
        loop {
            match self.head().await? {
                None => return Ok(None),
                Some(Head::Plain { request, len, keep }) => {
                    self.fresh_until = None;
                    self.read.advance(len);
                    if !self.answer(*request, keep).await? {
                        return Ok(None);
                    }
                }
                Some(Head::Part | Head::Other) => {
                    let Self { stream, read, .. } = self;
                    return Ok(Some(Rewound { read, stream }));
                }
            }
        }
    }

    /// The next head; none when the client has gone, was silent for [`HEAD`], has to make room for
    /// others that wait, or this process ends and none is on its way.
    async fn head(&mut self) -> io::Result<Option<Head>> {
        // The next one has come already, mostly, when requests follow each other at once.
        match head::parse(&self.read) {
            Head::Part => {}
            head => return Ok(Some(head)),
        }
        let pass = self.waiting.enter(self.client.ip());
        pass.hold(self.read_head()).await.unwrap_or(Ok(None))
    }

    async fn read_head(&mut self) -> io::Result<Option<Head>> {
        let until = Instant::now() + HEAD;
        loop {
            match head::parse(&self.read) {
                Head::Part => {}
                head => return Ok(Some(head)),
            }
            self.read.reserve(4096);
            let begun = (!self.read.is_empty()).then(|| Instant::now() + FRESH);
            let grace = self.fresh_until.max(begun);
            let ends = async {
                self.shutdown.cancelled().await;
                if let Some(grace) = grace {
                    sleep_until(grace).await;
                }
            };
            let more = timeout_at(until, self.stream.read_buf(&mut self.read));
            let more = tokio::select! {
                // What has come is read first: closing over it would reset the connection.
                biased;
                more = more => more,
                () = ends => return Ok(None),
            };
            match more {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) | Err(_) => return Ok(None),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Answers one request and says whether the connection goes on.
    async fn answer(&mut self, request: Request<()>, keep: bool) -> io::Result<bool> {
        let method = request.method().clone();
        let mut request = request.map(|()| Body::empty());
        request.extensions_mut().insert(ConnectInfo(self.client));
        let answered = self.router.clone().oneshot(request);
        let Ok(response) = self.unless_gone(answered).await?;
        let keep = keep && !self.shutdown.is_cancelled();
        self.send(response, &method, keep).await?;
        Ok(keep)
    }

    async fn send(
        &mut self,
        response: Response<Body>,
        method: &Method,
        keep: bool,
    ) -> io::Result<()> {
        let (mut parts, body) = response.into_parts();
        let framing = Framing::choose(&mut parts, method, body.size_hint().exact());
        let head = head::write(&parts, keep, SystemTime::now());
        match (framing, parts.extensions.remove::<FileBody>()) {
            (Framing::None, _) => self.write(&head).await,
            (Framing::Length(length), Some(file))
                if length == file.range.end.saturating_sub(file.range.start) =>
            {
                drop(body);
                self.write(&head).await?;
                file::send(&mut self.stream, &file).await
            }
            (framing, _) => self.send_body(head, body, framing).await,
        }
    }

    async fn send_body(
        &mut self,
        mut head: BytesMut,
        body: Body,
        framing: Framing,
    ) -> io::Result<()> {
        let mut body = body.into_data_stream();
        let mut sent = 0;
        loop {
            let chunk = match body.next().now_or_never() {
                Some(chunk) => chunk,
                None => {
                    // What there is goes out before what may take long.
                    self.write(&head).await?;
                    head.clear();
                    self.unless_gone(body.next()).await?
                }
            };
            let Some(chunk) = chunk.transpose().map_err(io::Error::other)? else {
                break;
            };
            sent += chunk.len() as u64;
            if matches!(framing, Framing::Length(length) if sent > length) {
                return Err(io::Error::other("a body is longer than its head says"));
            }
            self.send_chunk(&mut head, chunk, framing).await?;
        }
        match framing {
            Framing::Length(length) if sent < length => {
                return Err(io::Error::other("a body is shorter than its head says"));
            }
            Framing::Chunks => head.extend_from_slice(b"0\r\n\r\n"),
            _ => {}
        }
        self.write(&head).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        patiently(self.stream.write_all(bytes)).await
    }

    /// Waits for `work`, which an error ends when the client has closed its side. What the client
    /// sends instead is kept, as far as a head may reach; more waits in the socket.
    async fn unless_gone<W: Future>(&mut self, work: W) -> io::Result<W::Output> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = gone(&self.stream, &mut self.read) => Err(ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Sends a part of a body, with what is still to go out before it.
    async fn send_chunk(
        &mut self,
        before: &mut BytesMut,
        chunk: Bytes,
        framing: Framing,
    ) -> io::Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        let chunks = framing == Framing::Chunks;
        if chunks {
            before.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        }
        if before.len() + chunk.len() <= TOGETHER {
            before.extend_from_slice(&chunk);
        } else {
            self.write(before).await?;
            before.clear();
            self.write(&chunk).await?;
        }
        if chunks {
            before.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

async fn gone(stream: &TcpStream, read: &mut BytesMut) {
    loop {
        if read.len() >= head::MAX {
            return pending().await;
        }
        read.reserve(4096);
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read_buf(read) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}
