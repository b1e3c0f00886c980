//! A look at the path to a peer: who is there, how far away, and what size of datagram gets through.
//!
//! It ends before the control stream is opened: the peer never takes it for a connection, so that one
//! that stands between the two is not disturbed.

use std::time::Duration;

use kraken_proto::PeerInfo;
use quinn::Connection;
use tokio::time::{Instant, sleep, timeout};

use super::conn::{code, reason_of};
use super::endpoint::{Quic, dial_error};
use crate::transport::NetError;

/// How long a handshake may take: two losses of the first packet.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long the size of datagrams may take to be found out.
const SEARCH: Duration = Duration::from_secs(3);
/// Nothing larger is tried any more when no probe went out for so long.
const STILL: Duration = Duration::from_millis(600);
const LOOK: Duration = Duration::from_millis(20);

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuicPath {
    /// What the handshake took.
    pub handshake: Duration,
    /// The time of a round trip.
    pub round_trip: Duration,
    /// The largest datagram that got through, in bytes of UDP payload.
    pub mtu: u16,
}

impl Quic {
    /// Shakes hands with a peer and finds out the largest datagram that reaches it, without opening a
    /// connection for pieces.
    ///
    /// # Errors
    /// Nobody answers within some seconds, or somebody else than `peer.id` does.
    pub async fn probe(&self, peer: &PeerInfo) -> Result<QuicPath, NetError> {
        let begun = Instant::now();
        let silence = || {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            Err(dial_error(peer, why))
        };
        let shaken = timeout(PATIENCE, self.shake_hands(peer)).await;
        let conn = shaken.unwrap_or_else(|_| silence())?;
        let handshake = begun.elapsed();
        let mtu = largest(&conn, self.mtu_bound()).await;
        let round_trip = conn.rtt();
        let gone = conn.close_reason();
        conn.close(code::NORMAL, b"a look at the path");
        if let Some(error) = gone {
            // It did not accept our certificate: that is said after the handshake.
            return Err(dial_error(peer, reason_of(&error)));
        }
        Ok(QuicPath {
            handshake,
            round_trip,
            mtu,
        })
    }

    async fn shake_hands(&self, peer: &PeerInfo) -> Result<Connection, NetError> {
        let connecting = self
            .connecting(peer.addr)
            .map_err(|error| dial_error(peer, error.to_string()))?;
        let conn = connecting.await;
        let conn = conn.map_err(|error| dial_error(peer, reason_of(&error)))?;
        let found = self
            .known(&conn)
            .map_err(|reason| dial_error(peer, reason))?;
        if found == peer.id {
            return Ok(conn);
        }
        conn.close(code::WRONG_PEER, b"another peer was expected here");
        Err(NetError::WrongPeer {
            addr: peer.addr,
            expected: peer.id,
            found,
        })
    }
}

/// The largest datagram that gets through, once nothing larger is tried any more.
async fn largest(conn: &Connection, most: u16) -> u16 {
    let begun = Instant::now();
    let (mut probes, mut last) = (0, begun);
    loop {
        let path = conn.stats().path;
        if path.sent_plpmtud_probes != probes {
            (probes, last) = (path.sent_plpmtud_probes, Instant::now());
        }
        let is_found = path.current_mtu >= most || last.elapsed() >= STILL;
        if is_found || begun.elapsed() >= SEARCH || conn.close_reason().is_some() {
            return path.current_mtu;
        }
        sleep(LOOK).await;
    }
}
