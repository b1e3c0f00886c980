//! The UDP socket under an endpoint: its buffers, and how datagrams go out.
//!
//! With generic segmentation offload (GSO) the kernel takes several datagrams in one call; without
//! it a byte costs three times the processor time. Two things are added to what quinn does:
//!
//! - What quinn hands over at once is capped by what the kernel takes. quinn hands over ten
//!   datagrams of whatever size; above 6,550 bytes each they are refused in sum, quinn drops them
//!   without a word, and nothing would ever arrive.
//! - What quinn hands over is put together ([`Batch`]) while the connection has more to send. A
//!   connection's timer is the last thing that quinn asks whenever it looks after the connection:
//!   there a batch that nothing was added to goes out, and one that grows has quinn look again.

use std::cell::Cell;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use super::batch::{self, Batch, MOST_BYTES};
use super::options::QuicOptions;
use crate::stats::Counters;

/// What we ask of the kernel per direction; with its default of 208 KiB, loopback alone loses
/// thousands of packets in 2 GiB.
pub const BUFFER: usize = 4 << 20;

/// The most datagrams that quinn hands over at once; whoever hands over as many may have more.
const QUINN_SEGMENTS: usize = 10;

/// Batches that may wait at once, each of another connection: connections that share a place send
/// each other's away, which costs calls and no more.
const PLACES: usize = 16;

thread_local! {
    /// The place to which this thread has added since quinn last asked a timer: of the connection
    /// that is being looked after, as that is done by one thread without a pause.
    static GROWN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Binds a socket for an endpoint. Must be called within a tokio runtime.
pub(super) fn open(
    addr: SocketAddr,
    options: &QuicOptions,
    counters: Arc<Counters>,
) -> io::Result<Arc<GsoSocket>> {
    let inner = TokioRuntime.wrap_udp_socket(bind(addr)?)?;
    let socket = GsoSocket {
        most_segments: most_segments(options.mtu_bound()),
        places: Default::default(),
        warned: AtomicBool::new(false),
        counters,
        inner,
    };
    socket.watch_offload();
    Ok(Arc::new(socket))
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel grants what its limits allow.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    // The kernel doubles what it grants, for its own needs: socket(7).
    let receive = socket.recv_buffer_size().unwrap_or(0) / 2;
    let send = socket.send_buffer_size().unwrap_or(0) / 2;
    if receive.min(send) < BUFFER {
        tracing::warn!(
            receive,
            send,
            wanted = BUFFER,
            "small UDP buffers lose packets at high rates: set net.core.rmem_max and \
             net.core.wmem_max to {BUFFER} at least, as deploy/sysctl/60-kraken.conf does"
        );
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// How many datagrams of `mtu` bytes fit into one call.
fn most_segments(mtu: u16) -> usize {
    (MOST_BYTES / usize::from(mtu)).max(1)
}

/// A socket of quinn's that takes at once what the kernel does, neither more nor much less.
#[derive(Debug)]
pub(super) struct GsoSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    most_segments: usize,
    places: [Mutex<Batch>; PLACES],
    /// It was said that GSO is not in use.
    warned: AtomicBool,
    counters: Arc<Counters>,
}

impl GsoSocket {
    fn place(&self, index: usize) -> MutexGuard<'_, Batch> {
        let place = &self.places[index % PLACES];
        place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch that waits. It stays when the socket takes nothing now.
    fn flush(&self, batch: &mut Batch) -> io::Result<()> {
        let Some(transmit) = batch.transmit() else {
            return Ok(());
        };
        match self.send(&transmit) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
            // As lost on the way: it is sent again.
            Err(_) | Ok(()) => batch.clear(),
        }
        Ok(())
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.counters.sends.add();
        self.counters.datagrams.add_many(batch::count(transmit));
        Ok(())
    }

    /// Whether more of the same is likely to follow, and would fit.
    fn may_grow(&self, transmit: &Transmit<'_>, before: usize) -> bool {
        let most = self.inner.max_transmit_segments();
        let full = QUINN_SEGMENTS.min(self.most_segments).min(most);
        most > 1
            && batch::count(transmit) >= full
            && batch::is_even(transmit)
            && Batch::has_room_after(transmit, before, most)
    }

    /// Raises the alarm when GSO is not in use: from the start, or since the kernel or a network
    /// card has refused.
    fn watch_offload(&self) {
        let offload = self.inner.max_transmit_segments() > 1;
        self.counters.offload.store(offload, Ordering::Relaxed);
        if !offload && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "UDP segmentation offload (GSO) is not in use: sending costs three times the \
                 processor time; it needs Linux 4.18 and an interface with tx-udp-segmentation"
            );
        }
    }
}

impl AsyncUdpSocket for GsoSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let index = place_of(transmit.destination);
        let mut waiting = self.place(index);
        let most = self.inner.max_transmit_segments();
        if !waiting.is_empty() && !waiting.takes(transmit, most) {
            self.flush(&mut waiting)?;
        }
        let grows = self.may_grow(transmit, waiting.len());
        if !grows && waiting.is_empty() {
            drop(waiting);
            return self.send(transmit);
        }
        waiting.push(transmit);
        if grows {
            GROWN.set(Some(index));
        } else if self.flush(&mut waiting).is_err() {
            // It is quinn's no more, and goes out when the timer is asked.
            GROWN.set(Some(index));
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }

    /// quinn asks whenever it is about to send.
    fn max_transmit_segments(&self) -> usize {
        let most = self.inner.max_transmit_segments();
        if most == 1 {
            self.watch_offload();
        }
        most.min(self.most_segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}

fn place_of(destination: SocketAddr) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(destination);
    usize::try_from(hash % PLACES as u64).unwrap_or(0)
}

/// tokio, with timers that send a connection's batch away.
#[derive(Debug)]
pub(super) struct GsoRuntime(pub(super) Arc<GsoSocket>);

impl Runtime for GsoRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(GsoTimer {
            timer: TokioRuntime.new_timer(at),
            poller: self.0.clone().create_io_poller(),
            socket: self.0.clone(),
            place: None,
        })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// The timer of one connection.
#[derive(Debug)]
struct GsoTimer {
    timer: Pin<Box<dyn AsyncTimer>>,
    socket: Arc<GsoSocket>,
    poller: Pin<Box<dyn UdpPoller>>,
    /// Where the connection's batches wait.
    place: Option<usize>,
}

impl GsoTimer {
    /// Lets a batch go that the connection adds nothing more to.
    fn settle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(place) = GROWN.take() {
            self.place = Some(place);
            // To be asked again, after quinn has looked for more to send.
            cx.waker().wake_by_ref();
            return Poll::Ready(());
        }
        let Some(place) = self.place else {
            return Poll::Ready(());
        };
        while self.socket.flush(&mut self.socket.place(place)).is_err() {
            if ready!(self.poller.as_mut().poll_writable(cx)).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl AsyncTimer for GsoTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.timer.as_mut().reset(at);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.settle(cx);
        self.timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_at_once_fits_into_one_packet_of_ip() {
        assert_eq!(most_segments(1200), 54);
        assert_eq!(most_segments(1452), 45);
        assert_eq!(most_segments(6550), 10);
        assert_eq!(most_segments(6551), 9);
        assert_eq!(most_segments(8972), 7);
        assert_eq!(most_segments(u16::MAX), 1);
    }
}
