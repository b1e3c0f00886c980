//! Who takes part in a swarm.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::zone::Zone;

/// A host's identity: the SHA-256 of its certificate's public key (DER SubjectPublicKeyInfo).
///
/// Both sides of a connection prove it in the TLS handshake, so an address handed out by a
/// tracker cannot be taken over by another member of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// An identity from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PeerId {
    /// The first 8 digits: enough to tell peers apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| PeerIdError)?;
        Ok(Self(bytes))
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for PeerId {
    type Error = PeerIdError;

    fn try_from(text: String) -> Result<Self, PeerIdError> {
        text.parse()
    }
}

/// A text is not a peer's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a peer id has 64 hexadecimal digits")]
pub struct PeerIdError;

/// What a peer is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerRole {
    /// A host that wants blobs and passes them on.
    Agent,
    /// A seeder in front of the storage; asked last, so that its share of the bytes stays small.
    Origin,
}

/// How to reach a peer, and who must answer there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerInfo {
    /// The identity that the peer must prove.
    pub id: PeerId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it is there for.
    pub role: PeerRole,
    /// Where in the network it stands, on networks where that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_info_is_readable_json() {
        let info = PeerInfo {
            id: PeerId::from_bytes([0xab; 32]),
            addr: "[::1]:7600".parse().unwrap(),
            role: PeerRole::Origin,
            zone: None,
        };
        let json = serde_json::to_string(&info).unwrap();
        assert_eq!(
            json,
            format!(
                r#"{{"id":"{}","addr":"[::1]:7600","role":"origin"}}"#,
                "ab".repeat(32)
            )
        );
        assert_eq!(serde_json::from_str::<PeerInfo>(&json).unwrap(), info);
        let near = PeerInfo {
            zone: Some("rack-17".parse().unwrap()),
            ..info
        };
        let json = serde_json::to_string(&near).unwrap();
        assert!(
            json.ends_with(r#","role":"origin","zone":"rack-17"}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<PeerInfo>(&json).unwrap(), near);
        assert!("abc".parse::<PeerId>().is_err());
    }
}
