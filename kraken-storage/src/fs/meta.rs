//! A metainfo in a file: its encoding, then the SHA-256 of that. In front of a sealed blob's is the
//! stamp of its data.
//!
//! The check keeps a torn or rotten file from passing for another chain of states.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kraken_proto::{Digest, MetaInfo};

use super::disk;
use super::layout::Layout;
use super::trust::Stamp;
use crate::store::StoreError;

const CHECK: usize = 32;

pub(super) fn write(
    layout: &Layout,
    path: &Path,
    meta: &MetaInfo,
    durable: bool,
) -> Result<(), StoreError> {
    write_bytes(layout, path, meta.encode(), durable)
}

/// The metainfo of a sealed blob whose data looks as `stamp` says; durable.
pub(super) fn write_sealed(
    layout: &Layout,
    path: &Path,
    meta: &MetaInfo,
    stamp: Stamp,
) -> Result<(), StoreError> {
    let bytes = [&stamp.to_bytes()[..], &meta.encode()].concat();
    write_bytes(layout, path, bytes, true)
}

fn write_bytes(
    layout: &Layout,
    path: &Path,
    mut bytes: Vec<u8>,
    durable: bool,
) -> Result<(), StoreError> {
    let check = Digest::of(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    disk::write_whole(&layout.temp(), path, &bytes, durable)
}

/// The metainfo of `digest`, or `None` when the file is not there or does not hold it.
pub(super) fn read(path: &Path, digest: Digest) -> Result<Option<MetaInfo>, StoreError> {
    let decode = |bytes: &[u8]| MetaInfo::decode(bytes).ok();
    read_bytes(path, digest, decode, MetaInfo::digest)
}

/// The metainfo of a sealed blob, and how its data looked.
pub(super) fn read_sealed(
    path: &Path,
    digest: Digest,
) -> Result<Option<(MetaInfo, Stamp)>, StoreError> {
    let decode = |bytes: &[u8]| {
        let (stamp, meta) = bytes.split_first_chunk::<{ Stamp::LEN }>()?;
        Some((MetaInfo::decode(meta).ok()?, Stamp::from_bytes(*stamp)))
    };
    read_bytes(path, digest, decode, |(meta, _)| meta.digest())
}

fn read_bytes<T>(
    path: &Path,
    digest: Digest,
    decode: impl FnOnce(&[u8]) -> Option<T>,
    name: impl FnOnce(&T) -> Digest,
) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk::failed("read", path)(error)),
    };
    let found = checked(&bytes).and_then(decode);
    let found = found.filter(|found| name(found) == digest);
    if found.is_none() {
        tracing::warn!(path = %path.display(), "a metainfo on disk is damaged");
    }
    Ok(found)
}

/// What is in front of a check that is right.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (encoding, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK)?)?;
    (Digest::of(encoding).as_bytes() == check).then_some(encoding)
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
            assert_eq!(checked(&bad), None, "byte {at}");
            assert_eq!(checked(&good[..at]), None, "cut at {at}");
        }
    }
}
