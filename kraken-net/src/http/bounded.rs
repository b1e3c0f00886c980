//! How many connections a port holds, and how long one of them may take nothing of what is sent to it.
//!
//! A client that has asked for something and does not read the answer costs a descriptor and the bytes that wait for
//! it. Nothing in TCP ends that: its system goes on answering that its window is shut.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::gate::Pass;

/// Connections that a port holds at once: ten thousand hosts with three each. An idle one with TLS takes 24 KiB.
const MOST: usize = 32_768;
/// How long a client may take nothing. One that unpacks what it reads stops for seconds while its disk is busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many connections a port holds: [`MOST`], and no more than half of the descriptors that this process may have.
/// The other half is for files, and for connections that it makes.
pub(super) fn room() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let half = descriptors.map_or(MOST, |all| usize::try_from(all / 2).unwrap_or(MOST));
    half.clamp(1, MOST)
}

/// Sends a part of an answer, of one MiB at most, for as long as a client may take nothing.
///
/// # Errors
/// The connection broke, or the client took too long.
pub(super) async fn patiently<T>(sending: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let sent = timeout(PATIENCE, sending).await;
    sent.unwrap_or_else(|_| Err(took_nothing()))
}

fn took_nothing() -> io::Error {
    let told = format!("the client took nothing for {} s", PATIENCE.as_secs());
    io::Error::new(ErrorKind::TimedOut, told)
}

/// A connection that ends when it has to make room, and when its client takes nothing for too long.
pub(super) struct Bounded<S> {
    stream: S,
    /// Its place at the port, and what says that it has to go.
    place: Option<(Pass, Pin<Box<WaitForCancellationFutureOwned>>)>,
    /// Runs while something waits to be sent.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Bounded<S> {
    /// Without a place somebody else sees to it that it makes room.
    pub(super) fn new(stream: S, place: Option<Pass>) -> Self {
        let place = place.map(|pass| {
            let put_out = pass.put_out().cancelled_owned();
            (pass, Box::pin(put_out))
        });
        Self {
            stream,
            place,
            stalled: None,
        }
    }

    /// Ends the connection if it has to make room for another.
    fn makes_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some((_, put_out)) = &mut self.place else {
            return Poll::Pending;
        };
        let told = "it has to make room for other connections";
        let put_out = put_out.as_mut().poll(cx);
        put_out.map(|()| io::Error::new(ErrorKind::ConnectionAborted, told))
    }

    /// What came of sending, in bounded time.
    fn sent<T>(&mut self, cx: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.stalled = None;
            return sent;
        }
        if let Poll::Ready(error) = self.makes_room(cx) {
            return Poll::Ready(Err(error));
        }
        let end = || Box::pin(sleep(PATIENCE));
        let end = self.stalled.get_or_insert_with(end).as_mut().poll(cx);
        end.map(|()| Err(took_nothing()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            return read;
        }
        self.makes_room(cx).map(Err)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.sent(cx, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.sent(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.stream).poll_flush(cx);
        self.sent(cx, sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.sent(cx, sent)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::gate::Gate;

    const ADDR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_little_now_and_then_is_served_and_one_that_takes_nothing_is_not()
    {
        let (server, mut client) = duplex(1);
        let mut server = Bounded::new(server, None);
        let serving = tokio::spawn(async move {
            let began = Instant::now();
            let error = server.write_all(&[0; 4]).await.unwrap_err();
            (error.kind(), began.elapsed())
        });
        for _ in 0..2 {
            sleep(PATIENCE - Duration::from_secs(1)).await;
            client.read_u8().await.unwrap();
        }
        let (error, took) = serving.await.unwrap();
        assert_eq!(error, ErrorKind::TimedOut);
        let last = 2 * (PATIENCE - Duration::from_secs(1)) + PATIENCE;
        assert_eq!(took, last);
    }

    #[tokio::test]
    async fn who_has_to_make_room_ends_while_it_reads_and_while_it_writes() {
        let gate = Gate::new(1);
        let ((reads, _one), (writes, _other)) = (duplex(1), duplex(1));
        let mut reads = Bounded::new(reads, Some(gate.enter(ADDR)));
        let reading = tokio::spawn(async move { reads.read_u8().await.unwrap_err().kind() });
        let mut writes = Bounded::new(writes, Some(gate.enter(ADDR)));
        assert_eq!(reading.await.unwrap(), ErrorKind::ConnectionAborted);
        let writing = tokio::spawn(async move { writes.write_all(&[0; 2]).await });
        let _third = gate.enter(ADDR);
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    }

    #[test]
    fn files_keep_half_of_the_descriptors() {
        let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(room() > 0 && room() <= MOST && room() as u64 <= all / 2);
    }
}
