//! Peers and announces for the tests of this room.

use std::net::{Ipv6Addr, SocketAddr};

use super::{AnnounceBlob, AnnounceRequest, AnnounceState};
use crate::blob::digest::Digest;
use crate::blob::namespace::Namespace;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::time::Timestamp;

pub(super) fn peer(n: u32) -> PeerInfo {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    PeerInfo {
        id: PeerId::from_bytes(id),
        addr: SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 7600),
        role: PeerRole::Agent,
        zone: None,
    }
}

/// The same with a zone.
pub(super) fn zoned(n: u32, zone: &str) -> PeerInfo {
    PeerInfo {
        zone: Some(zone.parse().unwrap()),
        ..peer(n)
    }
}

pub(super) fn number(peer: &PeerInfo) -> u32 {
    u32::from_be_bytes(peer.id.as_bytes()[..4].try_into().unwrap())
}

/// Origins have numbers of their own, from a million up.
pub(super) fn origin(n: u32) -> PeerInfo {
    PeerInfo {
        role: PeerRole::Origin,
        ..peer(1_000_000 + n)
    }
}

pub(super) fn blob(n: u32) -> Digest {
    Digest::of(&n.to_be_bytes())
}

pub(super) fn request(peer: PeerInfo, blobs: &[(u32, AnnounceState, u32)]) -> AnnounceRequest {
    let blobs = blobs.iter().map(|&(n, state, links)| AnnounceBlob {
        namespace: Namespace::default(),
        digest: blob(n),
        state,
        links,
        progress: None,
        needy: false,
    });
    AnnounceRequest {
        peer,
        blobs: blobs.collect(),
    }
}

pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(millis * 1_000_000)
}

pub(super) fn no_origins(_: &Digest) -> Vec<PeerInfo> {
    Vec::new()
}
