//! The UDP socket under an endpoint: its buffers, and how many datagrams go out in one call.
//!
//! With generic segmentation offload (GSO) the kernel takes several datagrams in one call; without
//! it a byte costs three times the processor time. quinn hands over up to ten at once, and what is
//! longer than one packet of IP in sum is refused by the kernel and then dropped without a word:
//! with datagrams above 6,550 bytes nothing would ever arrive. Hence the cap here.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use super::options::QuicOptions;

/// What we ask of the kernel per direction; with its default of 208 KiB, loopback alone loses
/// thousands of packets in 2 GiB.
const BUFFER: usize = 4 << 20;

/// The longest payload of UDP over IPv4: 65,535 bytes less both headers. GSO sends no more at once.
const MOST_PAYLOAD: usize = 65_507;

/// Binds a socket for an endpoint. Must be called within a tokio runtime.
pub(super) fn open(addr: SocketAddr, options: &QuicOptions) -> io::Result<Arc<GsoSocket>> {
    let inner = TokioRuntime.wrap_udp_socket(bind(addr)?)?;
    Ok(Arc::new(GsoSocket {
        most_segments: most_segments(options.mtu_bound()),
        inner,
    }))
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel grants what its limits allow.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    let granted = socket.recv_buffer_size().unwrap_or(0);
    if granted < BUFFER {
        tracing::info!(
            granted,
            wanted = BUFFER,
            "small UDP buffers lose packets at high rates: raise net.core.rmem_max and wmem_max"
        );
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// How many datagrams of `mtu` bytes fit into one call.
fn most_segments(mtu: u16) -> usize {
    (MOST_PAYLOAD / usize::from(mtu)).max(1)
}

/// A socket of quinn's that never takes more at once than the kernel does.
#[derive(Debug)]
pub(super) struct GsoSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    most_segments: usize,
}

impl AsyncUdpSocket for GsoSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
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

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.most_segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
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
