//! The peers that a host has met, kept in a file over its restarts: with them it finds into a
//! swarm when no tracker answers.

use std::path::PathBuf;
use std::time::Duration;

use kraken_proto::PeerInfo;
use kraken_storage::kept::KeptFile;

/// How often the file is written, when there is news.
pub(crate) const SAVE_EVERY: Duration = Duration::from_secs(60);

/// A longer file is not ours: the scheduler remembers 128 peers, of at most some 250 bytes each.
const LONGEST: u64 = 64 << 10;

/// The file, and what it says.
pub(crate) type PeersFile = KeptFile<Vec<PeerInfo>>;

/// The file `path`.
pub(crate) fn peers_file(path: PathBuf) -> PeersFile {
    KeptFile::new(path, "peers", LONGEST)
}

#[cfg(test)]
mod tests {
    use kraken_proto::{PeerId, PeerRole};

    use super::*;

    fn peer(number: u8) -> PeerInfo {
        PeerInfo {
            id: PeerId::from_bytes([number; 32]),
            addr: ([10, 0, 0, number], 7610).into(),
            role: PeerRole::Agent,
            zone: number
                .is_multiple_of(2)
                .then(|| "z".repeat(63).parse().unwrap()),
        }
    }

    #[tokio::test]
    async fn as_many_peers_as_are_remembered_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        let peers: Vec<_> = (0..128).map(peer).collect();
        peers_file(path.clone()).finish(peers.clone()).await;
        assert!(std::fs::metadata(&path).unwrap().len() < LONGEST);
        assert_eq!(peers_file(path).load().await, peers);
    }
}
