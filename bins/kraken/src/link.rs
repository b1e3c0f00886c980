//! Files of blobs that share their bytes with an agent on this host.

use std::path::Path;

use kraken_core::Digest;
use kraken_core::storage::link::{Linked, link_or_copy};

use crate::Failure;
use crate::client::{Checked, Registry};
use crate::store::Store;

/// Bytes that are hashed at once.
const CHUNK: usize = 1 << 20;

/// Lets an agent of this host fetch a blob, and gives its file another name; see [`link_or_copy`]. The
/// bytes are read once, to see that they are right.
///
/// # Errors
/// The blob is not there, the agent's file cannot be read or has other bytes, or the name cannot be
/// made.
pub async fn link_blob(
    (registry, store): (&Registry, &Store),
    namespace: &str,
    digest: Digest,
    path: &Path,
) -> Result<(Linked, u64), Failure> {
    registry.fetch(namespace, digest).await?;
    // It may go between the two, if there is little room.
    let file = store.file(digest).await?.ok_or_else(|| {
        Failure::Registry(format!(
            "the agent does not keep {digest}: it needs more room"
        ))
    })?;
    let to = path.to_path_buf();
    let work = move || {
        let mut bytes = 0;
        let look = |new: &Path| {
            bytes = check(new, digest)?;
            Ok(())
        };
        let linked = link_or_copy(&file, &to, look).map_err(|error| match error {
            Wrong::Bytes(failure) => failure,
            Wrong::Link(source) => Failure::Io {
                doing: format!(
                    "link {} to {} (with --link, agent and tool are on one host, and the tool may read the store)",
                    to.display(),
                    file.display()
                ),
                source,
            },
        })?;
        Ok((linked, bytes))
    };
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| Failure::Other(error.to_string()))?
}

/// Why there is no link.
enum Wrong {
    Bytes(Failure),
    Link(std::io::Error),
}

impl From<std::io::Error> for Wrong {
    fn from(error: std::io::Error) -> Self {
        Self::Link(error)
    }
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Self {
        Self::Bytes(failure)
    }
}

fn check(path: &Path, digest: Digest) -> Result<u64, Failure> {
    use std::io::Read as _;
    let doing = || Failure::io(format!("read {}", path.display()));
    let mut file = std::fs::File::open(path).map_err(doing())?;
    let mut checked = Checked::new(digest);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(doing())? {
            0 => return checked.finish(),
            read => checked.update(&chunk[..read]),
        }
    }
}

/// How a blob's file got its bytes, in words.
pub fn said(linked: Linked) -> &'static str {
    match linked {
        Linked::Reflink => "shares the agent's blocks",
        Linked::HardLink => "is the agent's file under a second name: do not write to it",
        Linked::Copy => "is a copy: the file system, or its owner, allows no link here",
    }
}
