//! The peers that a host has met, kept in a file over its restarts: with them it finds into a
//! swarm when no tracker answers.
//!
//! Nothing depends on the file. One that cannot be read, or holds something else, is as good as
//! none, and one that cannot be written is missed after the next restart only.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kraken_proto::PeerInfo;
use tokio::task::{JoinHandle, spawn_blocking};

/// How often the file is written, when there is news.
pub(crate) const SAVE_EVERY: Duration = Duration::from_secs(60);

/// A longer file is not ours: the scheduler remembers 128 peers, of at most some 250 bytes each.
const LONGEST: u64 = 64 << 10;

/// The file, and what it says.
#[derive(Debug)]
pub(crate) struct PeersFile {
    path: PathBuf,
    saved: Vec<PeerInfo>,
    writing: Option<JoinHandle<()>>,
}

impl PeersFile {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self {
            path,
            saved: Vec::new(),
            writing: None,
        }
    }

    /// The peers of the earlier life; nobody when there is no file that tells.
    pub(crate) async fn load(&mut self) -> Vec<PeerInfo> {
        let path = self.path.clone();
        let peers = spawn_blocking(move || match read(&path) {
            Ok(peers) => peers,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "the peers of earlier are not known");
                Vec::new()
            }
        });
        self.saved = peers.await.unwrap_or_default();
        self.saved.clone()
    }

    /// Begins to write, when there is news and the last write has ended.
    pub(crate) fn save(&mut self, peers: Vec<PeerInfo>) {
        let busy = self.writing.as_ref().is_some_and(|it| !it.is_finished());
        if busy || peers == self.saved {
            return;
        }
        self.saved.clone_from(&peers);
        let path = self.path.clone();
        self.writing = Some(spawn_blocking(move || {
            if let Err(error) = write(&path, &peers) {
                let path = path.display();
                tracing::warn!(%path, %error, "the peers that were met are not kept");
            }
        }));
    }

    /// Writes what is new, and waits until it is written.
    pub(crate) async fn finish(&mut self, peers: Vec<PeerInfo>) {
        self.written().await;
        self.save(peers);
        self.written().await;
    }

    async fn written(&mut self) {
        if let Some(writing) = self.writing.take() {
            // A write that panicked is a write that failed.
            let _ = writing.await;
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<PeerInfo>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("the file is too long to be ours"));
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Whoever reads sees the file of before or the new one whole, also after a crash.
fn write(path: &Path, peers: &[PeerInfo]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(peers)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)
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

    fn file(dir: &tempfile::TempDir) -> PeersFile {
        PeersFile::new(dir.path().join("peers.json"))
    }

    #[tokio::test]
    async fn peers_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let peers: Vec<_> = (0..128).map(peer).collect();
        let mut first = file(&dir);
        assert_eq!(first.load().await, []);
        first.finish(peers[1..].to_vec()).await;
        first.finish(peers.clone()).await;
        let length = fs::metadata(&first.path).unwrap().len();
        assert!(length < LONGEST, "{length}");
        assert_eq!(file(&dir).load().await, peers);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn without_news_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut peers = file(&dir);
        peers.finish(vec![]).await;
        assert!(!peers.path.exists(), "nobody was met");
        peers.finish(vec![peer(1)]).await;
        fs::remove_file(&peers.path).unwrap();
        peers.finish(vec![peer(1)]).await;
        assert!(!peers.path.exists());
    }

    #[tokio::test]
    async fn a_file_of_something_else_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        let whole = serde_json::to_vec(&[peer(1), peer(2)]).unwrap();
        let long = [&whole[..], &vec![b' '; LONGEST as usize]].concat();
        let texts: [&[u8]; 6] = [b"", b"{}", b"[1]", b"\xff\x00", &whole[..100], &long];
        for text in texts {
            fs::write(&path, text).unwrap();
            let mut peers = file(&dir);
            assert_eq!(peers.load().await, []);
            peers.finish(vec![peer(3)]).await;
            assert_eq!(file(&dir).load().await, [peer(3)], "and is replaced");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let mut peers = file(&dir);
        assert_eq!(peers.load().await, []);
        peers.finish(vec![peer(3)]).await;
        assert!(path.is_dir(), "a write that fails changes nothing");
    }
}
