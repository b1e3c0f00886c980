//! Where things lie in the store's directory. Only names made here are ever opened.
//!
//! ```text
//! lock                       held by the process that has the store open
//! sealed/<2 hex>/<hex>       a whole blob; this file alone makes it sealed
//! sealed/<2 hex>/<hex>.meta  its metainfo, which can be computed again
//! partial/<hex>.data         a blob's bytes, preallocated
//! partial/<hex>.meta         its metainfo; this file alone makes it partial
//! partial/<hex>.have         the journal of the pieces that are there
//! uploads/<uuid>             the bytes of an upload
//! pins/<hex>                 an empty file for each blob that stays whatever happens
//! damaged/<hex>              a sealed blob whose bytes turned out wrong, for inspection
//! scrubbed                   the blob that was scrubbed last, while a round is under way
//! tmp/<uuid>                 files on their way to a name; emptied at every start
//! ```

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kraken_proto::Digest;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{FsStore, disk};
use crate::store::StoreError;

impl FsStore {
    /// What a store calls the directories in its own: nothing else may lie in these.
    pub const DIRECTORIES: [&str; 6] = ["sealed", "partial", "uploads", "pins", "damaged", "tmp"];
}

#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directories that are missing.
    pub(super) fn create(root: PathBuf) -> Result<Self, StoreError> {
        let layout = Self { root };
        for dir in FsStore::DIRECTORIES {
            make_dir(&layout.root.join(dir))?;
        }
        // All at once, so that no seal has to make one and sync its parent.
        for shard in 0..=u8::MAX {
            make_dir(&layout.root.join("sealed").join(format!("{shard:02x}")))?;
        }
        disk::sync_dir(&layout.root.join("sealed"))?;
        disk::sync_dir(&layout.root)?;
        Ok(layout)
    }

    /// Takes the store for this process, until the file is closed.
    pub(super) fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        let file = File::create(&path).map_err(disk::failed("open", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| StoreError::Io {
            doing: format!(
                "lock {}, as it is open already; stop the other process or use another directory",
                self.root.display()
            ),
            source: errno.into(),
        })?;
        Ok(file)
    }

    /// Removes what a crash left and nobody can use: temporary files, and partial data without a
    /// metainfo.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        for name in disk::names(&tmp)? {
            match Uuid::try_parse(&name) {
                Ok(_) => drop(disk::remove(&tmp.join(name))?),
                Err(_) => disk::foreign(&tmp, &name),
            }
        }
        let mut whole = HashSet::new();
        let mut others = Vec::new();
        for name in disk::names(&self.partial_dir())? {
            match split_partial(&name) {
                Some((digest, "meta")) => drop(whole.insert(digest)),
                Some((digest, _)) => others.push((digest, name)),
                None => disk::foreign(&self.partial_dir(), &name),
            }
        }
        for (_, name) in others.iter().filter(|(digest, _)| !whole.contains(digest)) {
            disk::remove(&self.partial_dir().join(name))?;
        }
        Ok(())
    }

    pub(super) fn sealed_dir(&self, digest: Digest) -> PathBuf {
        self.root.join("sealed").join(&digest.hex()[..2])
    }

    pub(super) fn sealed_data(&self, digest: Digest) -> PathBuf {
        self.sealed_dir(digest).join(digest.hex())
    }

    pub(super) fn sealed_meta(&self, digest: Digest) -> PathBuf {
        self.sealed_dir(digest)
            .join(format!("{}.meta", digest.hex()))
    }

    pub(super) fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn partial_data(&self, digest: Digest) -> PathBuf {
        self.partial_dir().join(format!("{}.data", digest.hex()))
    }

    pub(super) fn partial_meta(&self, digest: Digest) -> PathBuf {
        self.partial_dir().join(format!("{}.meta", digest.hex()))
    }

    pub(super) fn partial_have(&self, digest: Digest) -> PathBuf {
        self.partial_dir().join(format!("{}.have", digest.hex()))
    }

    pub(super) fn uploads_dir(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(super) fn upload(&self, id: Uuid) -> PathBuf {
        self.uploads_dir().join(id.hyphenated().to_string())
    }

    pub(super) fn damaged_dir(&self) -> PathBuf {
        self.root.join("damaged")
    }

    pub(super) fn damaged(&self, digest: Digest) -> PathBuf {
        self.damaged_dir().join(digest.hex())
    }

    pub(super) fn pins_dir(&self) -> PathBuf {
        self.root.join("pins")
    }

    /// The blobs that are pinned.
    pub(super) fn pins(&self) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for name in disk::names(&self.pins_dir())? {
            match Digest::from_hex(&name) {
                Ok(digest) => found.push(digest),
                Err(_) => disk::foreign(&self.pins_dir(), &name),
            }
        }
        Ok(found)
    }

    pub(super) fn scrubbed(&self) -> PathBuf {
        self.root.join("scrubbed")
    }

    /// A name that nobody has used yet.
    pub(super) fn temp(&self) -> PathBuf {
        self.root
            .join("tmp")
            .join(Uuid::now_v7().hyphenated().to_string())
    }

    /// The sealed blobs, in order.
    pub(super) fn sealed(&self) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for shard in 0..=u8::MAX {
            let shard = format!("{shard:02x}");
            let dir = self.root.join("sealed").join(&shard);
            for name in disk::names(&dir)? {
                match Digest::from_hex(name.strip_suffix(".meta").unwrap_or(&name)) {
                    Ok(digest) if name.starts_with(&shard) => {
                        found.extend((!name.ends_with(".meta")).then_some(digest));
                    }
                    _ => disk::foreign(&dir, &name),
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The partial blobs.
    pub(super) fn partial(&self) -> Result<Vec<Digest>, StoreError> {
        let names = disk::names(&self.partial_dir())?;
        let parts = names.iter().filter_map(|name| split_partial(name));
        let metas = parts.filter(|(_, kind)| *kind == "meta");
        Ok(metas.map(|(digest, _)| digest).collect())
    }

    /// The files that belong to no blob, and stay: uploads, and what turned out damaged.
    pub(super) fn others(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut found = Vec::new();
        for dir in [self.uploads_dir(), self.damaged_dir()] {
            let names = disk::names(&dir)?;
            found.extend(names.into_iter().map(|name| dir.join(name)));
        }
        Ok(found)
    }

    /// The uploads, and names that are none with a warning.
    pub(super) fn uploads(&self) -> Result<Vec<Uuid>, StoreError> {
        let mut found = Vec::new();
        for name in disk::names(&self.uploads_dir())? {
            match upload_id(&name) {
                Some(id) => found.push(id),
                None => disk::foreign(&self.uploads_dir(), &name),
            }
        }
        Ok(found)
    }
}

/// The upload that a client's text names. Only the form that we hand out is taken, so that an
/// upload has one name and no text can walk to another directory.
pub(super) fn upload_id(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    (id.hyphenated().to_string() == text).then_some(id)
}

fn split_partial(name: &str) -> Option<(Digest, &str)> {
    let (digest, kind) = name.split_once('.')?;
    let known = ["data", "meta", "have"].contains(&kind);
    Digest::from_hex(digest)
        .ok()
        .filter(|_| known)
        .map(|digest| (digest, kind))
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(disk::failed("make directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_form_names_an_upload() {
        let id = Uuid::now_v7();
        assert_eq!(upload_id(&id.hyphenated().to_string()), Some(id));
        let others = [
            String::new(),
            "../sealed/00".to_string(),
            format!("../{id}"),
            format!("{id}/"),
            format!("{{{id}}}"),
            id.simple().to_string(),
            id.to_string().to_uppercase(),
        ];
        for text in others {
            assert_eq!(upload_id(&text), None, "{text}");
        }
    }
}
