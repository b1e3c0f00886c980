//! What all runs share: a blob on disk, and a cluster's identities.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kraken_core::net::{CertAuthority, Identity};
use kraken_core::storage::{FsStore, UploadStore as _};
use kraken_core::{Digest, MetaInfo};
use sha2::{Digest as _, Sha256};

use crate::Outcome;
use crate::measure::Effort;
use crate::peers::{CROWD, crowd_name};
use crate::process::scratch;

const STEP: u64 = 4 << 20;

/// A directory with a store that has one blob, the same blob as a plain file, and identities.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) effort: Effort,
    pub(crate) mib: u64,
}

impl Lab {
    pub(crate) fn create(dir: Option<&Path>, mib: u64, effort: Effort) -> Outcome<Self> {
        let dir = scratch(dir.unwrap_or(&std::env::temp_dir()))?;
        let runtime = tokio::runtime::Runtime::new()?;
        let meta = runtime.block_on(make_blob(&store_path(dir.path()), mib << 20))?;
        fs::write(meta_path(dir.path()), meta.encode())?;
        let hex = meta.digest().hex();
        let sealed = find(&store_path(dir.path()), &hex)?.ok_or("the blob's file is not found")?;
        fs::create_dir(dir.path().join("plain"))?;
        fs::hard_link(sealed, payload_path(dir.path()))?;
        let authority = CertAuthority::create()?;
        fs::write(dir.path().join("ca.pem"), authority.to_pem().0)?;
        let names = ["seed", "leech-0", "leech-1", "leech-2", "leech-3"].map(str::to_string);
        for name in names.into_iter().chain((0..CROWD).map(crowd_name)) {
            let (cert, key) = authority.issue("agent", &["127.0.0.1".to_string()])?;
            fs::write(dir.path().join(format!("{name}.pem")), cert)?;
            fs::write(dir.path().join(format!("{name}.key")), key)?;
        }
        Ok(Self { dir, effort, mib })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Of what was measured for a blob, per GiB.
    pub(crate) fn per_gib(&self, value: f64) -> f64 {
        value * 1024.0 / self.mib as f64
    }
}

pub(crate) fn store_path(lab: &Path) -> PathBuf {
    lab.join("store")
}

/// The blob as a plain file.
pub(crate) fn payload_path(lab: &Path) -> PathBuf {
    lab.join("plain").join("payload")
}

fn meta_path(lab: &Path) -> PathBuf {
    lab.join("meta")
}

/// What the blob consists of, as a child of the lab reads it.
pub(crate) fn meta(lab: &Path) -> Outcome<MetaInfo> {
    Ok(MetaInfo::decode(&fs::read(meta_path(lab))?)?)
}

/// One of the identities.
pub(crate) fn identity(lab: &Path, name: &str) -> Outcome<Identity> {
    let read = |name: String| fs::read_to_string(lab.join(name));
    let (cert, key) = (read(format!("{name}.pem"))?, read(format!("{name}.key"))?);
    Ok(Identity::from_pem(
        &cert,
        &key,
        &read("ca.pem".to_string())?,
    )?)
}

async fn make_blob(store: &Path, length: u64) -> Outcome<MetaInfo> {
    let store = FsStore::open(store).await?;
    let upload = store.upload_start().await?;
    let (mut random, mut whole, mut offset) = (1_u64, Sha256::new(), 0);
    while offset < length {
        let bytes = noise(&mut random, STEP.min(length - offset));
        whole.update(&bytes);
        offset = store.upload_append(&upload, offset, bytes).await?;
    }
    let digest = Digest::from_bytes(whole.finalize().into());
    Ok(store.upload_commit(&upload, digest).await?)
}

/// Bytes that nothing can compress.
fn noise(random: &mut u64, len: u64) -> Bytes {
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        random.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    bytes.into()
}

fn find(dir: &Path, name: &str) -> Outcome<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|it| it == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
