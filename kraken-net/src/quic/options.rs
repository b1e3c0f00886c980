//! What an embedder chooses of QUIC.

/// Choices of a [`Quic`](super::Quic) socket. The defaults suit any network.
///
/// ```
/// use kraken_net::QuicOptions;
///
/// // No datagram that an Ethernet frame of 1,500 bytes does not carry is tried.
/// let options = QuicOptions::default().mtu(1452);
/// assert_eq!(options.mtu_bound(), 1452);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct QuicOptions {
    mtu: u16,
}

impl QuicOptions {
    /// The least that every path of QUIC carries, in bytes of UDP payload (RFC 9000, section 14).
    pub const LEAST_MTU: u16 = 1200;
    /// The largest datagrams that were measured: those of jumbo frames, and some bytes. Far larger
    /// ones do not get through on the loopback either.
    pub const MOST_MTU: u16 = 9000;
    /// Jumbo frames of 9,000 bytes, as data centres and clouds have them, less the headers of IPv4 and
    /// UDP. Where frames are smaller, some probes go unanswered, and nothing else is lost.
    pub const DEFAULT_MTU: u16 = 8972;

    /// The largest datagram that is probed for, in bytes of UDP payload, between
    /// [`QuicOptions::LEAST_MTU`] and [`QuicOptions::MOST_MTU`]; what lies outside is taken as the
    /// bound. A path that carries less is found out and used as it is.
    ///
    /// Both sides of a connection must allow jumbo frames for them to be used. At 8972 a byte costs
    /// about two thirds of the processor time that it costs at 1452, which fits Ethernet's 1,500 bytes,
    /// its hash and its write included (docs/benchmarks.md). The receive buffers of a socket take
    /// some 18 MB of addresses, of which memory is used as far as datagrams fill them.
    pub fn mtu(mut self, bytes: u16) -> Self {
        self.mtu = bytes.clamp(Self::LEAST_MTU, Self::MOST_MTU);
        self
    }

    /// What [`QuicOptions::mtu`] has been set to.
    pub fn mtu_bound(&self) -> u16 {
        self.mtu
    }
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            mtu: Self::DEFAULT_MTU,
        }
    }
}
