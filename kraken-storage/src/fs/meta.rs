//! A metainfo in a file: its encoding, then the SHA-256 of that.
//!
//! The check keeps a torn or rotten file from passing for another chain of states.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kraken_proto::{Digest, MetaInfo};

use super::disk;
use super::layout::Layout;
use crate::store::StoreError;

const CHECK: usize = 32;

pub(super) fn write(
    layout: &Layout,
    path: &Path,
    meta: &MetaInfo,
    durable: bool,
) -> Result<(), StoreError> {
    let mut bytes = meta.encode();
    let check = Digest::of(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    disk::write_whole(&layout.temp(), path, &bytes, durable)
}

/// The metainfo of `digest`, or `None` when the file is not there or does not hold it.
pub(super) fn read(path: &Path, digest: Digest) -> Result<Option<MetaInfo>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk::failed("read", path)(error)),
    };
    let meta = decode(&bytes).filter(|meta| meta.digest() == digest);
    if meta.is_none() {
        tracing::warn!(path = %path.display(), "a metainfo on disk is damaged");
    }
    Ok(meta)
}

fn decode(bytes: &[u8]) -> Option<MetaInfo> {
    let (encoding, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK)?)?;
    let right = Digest::of(encoding).as_bytes() == check;
    MetaInfo::decode(encoding).ok().filter(|_| right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_cut_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path().into()).unwrap();
        let path = dir.path().join("meta");
        let meta = MetaInfo::of(&vec![9; 600_000]);
        write(&layout, &path, &meta, true).unwrap();
        assert_eq!(read(&path, meta.digest()).unwrap(), Some(meta.clone()));
        assert_eq!(read(&path, Digest::of(b"other")).unwrap(), None);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
            assert_eq!(decode(&good[..at]), None, "cut at {at}");
        }
    }
}
