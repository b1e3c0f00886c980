//! What a host tells people who look on: how much it moved, and which bytes of a blob came from whom.
//!
//! Reports travel beside announces and steer nothing. A tracker without a console takes none, and a
//! host that gets no answer goes on as before. A reader skips fields that it does not know, so that
//! hosts and trackers of different versions understand each other.

use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

use crate::blob::digest::Digest;
use crate::blob::namespace::Namespace;
use crate::peer::{PeerId, PeerInfo, PeerRole};

/// What a host tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host.
    pub peer: PeerInfo,
    /// What people call it, at most [`HostReport::MAX_NAME`] bytes.
    #[serde(default)]
    pub name: String,
    /// The version that runs there, at most [`HostReport::MAX_NAME`] bytes.
    #[serde(default)]
    pub version: String,
    /// What it moved since its start, for all blobs together.
    #[serde(default)]
    pub moved: Traffic,
    /// The blobs that moved since its last report, at most [`HostReport::MAX_BLOBS`].
    #[serde(default)]
    pub blobs: Vec<BlobReport>,
}

/// What a host tells of one blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobReport {
    /// What the blob belongs to.
    #[serde(default)]
    pub namespace: Namespace,
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// The pieces that the host has.
    pub have: u32,
    /// The pieces that the blob has.
    pub of: u32,
    /// What the host moved of it since its start.
    #[serde(default)]
    pub moved: Traffic,
    /// From whom it came, those that sent most in front.
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// Somebody who sent pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Who.
    pub id: PeerId,
    /// What for.
    pub role: PeerRole,
    /// Bytes of verified pieces.
    pub bytes: u64,
}

/// Bytes of verified pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Received from origins.
    #[serde(default)]
    pub from_origins: u64,
    /// Received from agents.
    #[serde(default)]
    pub from_agents: u64,
    /// Sent to anybody.
    #[serde(default)]
    pub sent: u64,
}

impl Traffic {
    /// What was received.
    pub const fn received(&self) -> u64 {
        self.from_origins.saturating_add(self.from_agents)
    }

    /// What was added since `before`; all of it when a counter went back, as after a restart.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let went_back = self.from_origins < before.from_origins
            || self.from_agents < before.from_agents
            || self.sent < before.sent;
        if went_back { self } else { self - before }
    }

    /// The part `of` in `whole`.
    #[must_use]
    pub(super) fn part(self, of: u64, whole: u64) -> Self {
        let part = |bytes: u64| {
            let part = u128::from(bytes) * u128::from(of) / u128::from(whole.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        Self {
            from_origins: part(self.from_origins),
            from_agents: part(self.from_agents),
            sent: part(self.sent),
        }
    }
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            from_origins: self.from_origins.saturating_add(other.from_origins),
            from_agents: self.from_agents.saturating_add(other.from_agents),
            sent: self.sent.saturating_add(other.sent),
        }
    }
}

impl Sub for Traffic {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            from_origins: self.from_origins.saturating_sub(other.from_origins),
            from_agents: self.from_agents.saturating_sub(other.from_agents),
            sent: self.sent.saturating_sub(other.sent),
        }
    }
}

/// A tracker's answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportReply {
    /// When to report again, in milliseconds.
    pub next_ms: u64,
}

impl HostReport {
    /// The most blobs in one report.
    pub const MAX_BLOBS: usize = 64;
    /// The most sources in one report, of all its blobs together.
    pub const MAX_SOURCES: usize = 512;
    /// The longest name and the longest version, in bytes.
    pub const MAX_NAME: usize = 64;

    /// Holds it against its bounds.
    ///
    /// # Errors
    /// It breaks one of them.
    pub fn check(&self) -> Result<(), ReportError> {
        for (what, text) in [("name", &self.name), ("version", &self.version)] {
            if text.len() > Self::MAX_NAME || text.chars().any(char::is_control) {
                return Err(ReportError::Text(what));
            }
        }
        if self.blobs.len() > Self::MAX_BLOBS {
            return Err(ReportError::TooManyBlobs(self.blobs.len()));
        }
        let sources = self.blobs.iter().map(|blob| blob.sources.len()).sum();
        if sources > Self::MAX_SOURCES {
            return Err(ReportError::TooManySources(sources));
        }
        match self.blobs.iter().find(|blob| blob.have > blob.of) {
            Some(blob) => Err(ReportError::Pieces(blob.have, blob.of)),
            None => Ok(()),
        }
    }
}

/// Why a report is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A text that cannot be shown.
    #[error("the {0} in a report has at most 64 bytes and no control characters")]
    Text(&'static str),
    /// More blobs than [`HostReport::MAX_BLOBS`].
    #[error("a report names at most 64 blobs, not {0}")]
    TooManyBlobs(usize),
    /// More sources than [`HostReport::MAX_SOURCES`].
    #[error("a report names at most 512 sources, not {0}")]
    TooManySources(usize),
    /// More pieces than there are.
    #[error("a report tells of {0} pieces out of {1}")]
    Pieces(u32, u32),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::testing::{blob, peer};

    fn report(n: u32) -> HostReport {
        HostReport {
            peer: peer(n),
            name: format!("host-{n}"),
            version: "0.1.0".into(),
            moved: Traffic::default(),
            blobs: Vec::new(),
        }
    }

    fn of_blob(sources: usize) -> BlobReport {
        let source = |n: usize| Source {
            id: peer(u32::try_from(n).unwrap()).id,
            role: PeerRole::Agent,
            bytes: 1,
        };
        BlobReport {
            namespace: Namespace::default(),
            digest: blob(1),
            length: 10,
            have: 1,
            of: 2,
            moved: Traffic::default(),
            sources: (0..sources).map(source).collect(),
        }
    }

    #[test]
    fn a_report_keeps_to_its_bounds() {
        assert_eq!(report(1).check(), Ok(()));
        let named = |name: &str| HostReport {
            name: name.into(),
            ..report(1)
        };
        assert_eq!(named(&"n".repeat(64)).check(), Ok(()));
        for wrong in ["n".repeat(65), "a\nb".into()] {
            assert_eq!(named(&wrong).check(), Err(ReportError::Text("name")));
        }
        let with = |blobs: Vec<BlobReport>| HostReport { blobs, ..report(1) };
        assert_eq!(with(vec![of_blob(8); 64]).check(), Ok(()));
        let refused = with(vec![of_blob(0); 65]).check();
        assert_eq!(refused, Err(ReportError::TooManyBlobs(65)));
        let refused = with(vec![of_blob(513)]).check();
        assert_eq!(refused, Err(ReportError::TooManySources(513)));
        let mut liar = of_blob(0);
        liar.have = 3;
        assert_eq!(with(vec![liar]).check(), Err(ReportError::Pieces(3, 2)));
    }

    #[test]
    fn other_versions_are_understood() {
        let text = serde_json::to_string(&report(1)).unwrap();
        assert_eq!(
            serde_json::from_str::<HostReport>(&text).unwrap(),
            report(1)
        );
        let later = text.replacen('{', r#"{"mood":"good","#, 1);
        assert_eq!(
            serde_json::from_str::<HostReport>(&later).unwrap(),
            report(1)
        );
        let peer = serde_json::to_string(&peer(1)).unwrap();
        let least: HostReport = serde_json::from_str(&format!(r#"{{"peer":{peer}}}"#)).unwrap();
        assert_eq!((least.name.as_str(), least.blobs.len()), ("", 0));
    }

    #[test]
    fn counters_that_went_back_began_anew() {
        let counted = |from_agents, sent| Traffic {
            from_origins: 5,
            from_agents,
            sent,
        };
        let more = counted(30, 9).since(counted(10, 2));
        assert_eq!((more.from_origins, more.from_agents, more.sent), (0, 20, 7));
        assert_eq!(counted(3, 9).since(counted(10, 2)), counted(3, 9));
    }
}
