//! What a host knows, kept in a small file over its restarts.
//!
//! Nothing depends on such a file. One that cannot be read, or holds something else, is as good as
//! none, and one that cannot be written is missed after the next restart only.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::{JoinHandle, spawn_blocking};

/// The file, and what it says.
#[derive(Debug)]
pub struct KeptFile<T> {
    path: PathBuf,
    what: &'static str,
    longest: u64,
    saved: T,
    writing: Option<JoinHandle<()>>,
}

impl<T> KeptFile<T>
where
    T: Serialize + DeserializeOwned + Default + Clone + PartialEq + Send + 'static,
{
    /// The file `path`, of `longest` bytes at most, of `what` a line of the log names.
    pub fn new(path: PathBuf, what: &'static str, longest: u64) -> Self {
        Self {
            path,
            what,
            longest,
            saved: T::default(),
            writing: None,
        }
    }

    /// What was kept; nothing when there is no file that tells.
    pub async fn load(&mut self) -> T {
        let (path, what, longest) = (self.path.clone(), self.what, self.longest);
        let kept = spawn_blocking(move || match read(&path, longest) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => T::default(),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, what, %error, "what was known earlier is lost");
                T::default()
            }
        });
        self.saved = kept.await.unwrap_or_default();
        self.saved.clone()
    }

    /// Begins to write, when there is news and the last write has ended.
    pub fn save(&mut self, known: T) {
        let busy = self.writing.as_ref().is_some_and(|it| !it.is_finished());
        if busy || known == self.saved {
            return;
        }
        self.saved = known.clone();
        let (path, what) = (self.path.clone(), self.what);
        self.writing = Some(spawn_blocking(move || {
            if let Err(error) = write(&path, &known) {
                let path = path.display();
                tracing::warn!(%path, what, %error, "what is known is not kept");
            }
        }));
    }

    /// Writes what is new, and waits until it is written.
    pub async fn finish(&mut self, known: T) {
        self.written().await;
        self.save(known);
        self.written().await;
    }

    async fn written(&mut self) {
        if let Some(writing) = self.writing.take() {
            // A write that panicked is a write that failed.
            let _ = writing.await;
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path, longest: u64) -> io::Result<T> {
    let mut text = Vec::new();
    File::open(path)?.take(longest + 1).read_to_end(&mut text)?;
    if text.len() as u64 > longest {
        return Err(io::Error::other("the file is too long to be ours"));
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Whoever reads sees the file of before or the new one whole, also after a crash.
fn write<T: Serialize>(path: &Path, known: &T) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(known)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 1 << 10;

    fn file(dir: &tempfile::TempDir) -> KeptFile<Vec<u32>> {
        KeptFile::new(dir.path().join("known.json"), "numbers", LONGEST)
    }

    #[tokio::test]
    async fn what_is_known_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let known: Vec<_> = (0..128).collect();
        let mut first = file(&dir);
        assert!(first.load().await.is_empty());
        first.finish(known[1..].to_vec()).await;
        first.finish(known.clone()).await;
        assert_eq!(file(&dir).load().await, known);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn without_news_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = file(&dir);
        known.finish(vec![]).await;
        assert!(!known.path.exists(), "nothing is known");
        known.finish(vec![1]).await;
        fs::remove_file(&known.path).unwrap();
        known.finish(vec![1]).await;
        assert!(!known.path.exists());
    }

    #[tokio::test]
    async fn a_file_of_something_else_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known.json");
        let long = [&b"[1]"[..], &vec![b' '; LONGEST as usize]].concat();
        let texts: [&[u8]; 6] = [b"", b"{}", b"[-1]", b"\xff\x00", b"[1, 2", &long];
        for text in texts {
            fs::write(&path, text).unwrap();
            let mut known = file(&dir);
            assert!(known.load().await.is_empty());
            known.finish(vec![3]).await;
            assert_eq!(file(&dir).load().await, [3], "and is replaced");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let mut known = file(&dir);
        assert!(known.load().await.is_empty());
        known.finish(vec![3]).await;
        assert!(path.is_dir(), "a write that fails changes nothing");
    }
}
