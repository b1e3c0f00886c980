//! The disks of a process: where blobs are kept, how much they may take, and what goes.

pub(crate) mod check;
pub mod config;
pub mod http;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kraken_core::proto::cache::ledger::Ceiling;
use kraken_core::storage::{FsOptions, FsStore, PieceStore as _, Volumes};
use tokio_util::sync::CancellationToken;

pub use self::config::{
    Age, EvictionConfig, Memory, OrderConfig, Percent, ScrubRate, StoreLimit, VolumeConfig, Weight,
};
use crate::metrics::Family;
use crate::problems::Problems;
use crate::process::StartError;

/// The blobs of a process, on one disk or several.
pub(crate) type Disks = Volumes<FsStore>;

/// Opens the volumes, or `dir` when none are named.
///
/// # Errors
/// A limit makes no sense, or a directory cannot be used.
pub(crate) async fn open(
    dir: PathBuf,
    volumes: &[VolumeConfig],
    limit: Option<StoreLimit>,
    eviction: &EvictionConfig,
) -> Result<Disks, StartError> {
    check::contradictions(volumes, limit, eviction)?;
    let alone = VolumeConfig {
        path: dir,
        weight: Weight::default(),
        limit: None,
    };
    let volumes = if volumes.is_empty() {
        std::slice::from_ref(&alone)
    } else {
        volumes
    };
    let mut stores = Vec::<(String, f64, FsStore)>::new();
    for (index, volume) in volumes.iter().enumerate() {
        let mut options = FsOptions::default();
        options.ceiling = ceiling(volume.limit.or(limit), eviction, &volume.path)?;
        options.order = eviction.order.into();
        let name = volume.path.to_string_lossy().into_owned();
        // A disk that is not mounted must not become a directory on another one.
        if volumes.len() > 1 && !volume.path.is_dir() {
            let what = format!("there is no directory {name}: is its disk mounted?");
            return Err(Problems::one(format!("volumes[{index}].path"), what).into());
        }
        let store = FsStore::open_with(&volume.path, options).await?;
        stores.push((name, volume.weight.share(), store));
    }
    let pins: BTreeSet<_> = stores
        .iter()
        .flat_map(|(.., store)| store.pinned())
        .collect();
    let disks = Volumes::new(stores);
    for digest in pins {
        // Also on one that came later, as the blob may come to any.
        disks.pin(digest, true).await?;
    }
    Ok(disks)
}

/// The ceiling of a store in `dir`.
///
/// # Errors
/// The volume cannot be looked at, or the marks contradict each other.
pub(crate) fn ceiling(
    limit: Option<StoreLimit>,
    eviction: &EvictionConfig,
    dir: &Path,
) -> Result<Option<Ceiling>, StartError> {
    let bytes = match limit {
        None => return Ok(None),
        Some(StoreLimit::Bytes(bytes)) => bytes,
        Some(StoreLimit::Percent(percent)) => {
            FsStore::volume_bytes(dir)? / 100 * u64::from(percent)
        }
    };
    let (high, low) = config::marks(eviction);
    let part = |percent: u8| u64::try_from(u128::from(bytes) * u128::from(percent) / 100);
    let marks = part(high).ok().zip(part(low).ok());
    let marked = marks.and_then(|(high, low)| Ceiling::of(bytes).with_marks(high, low));
    let wrong = || Problems::one("eviction.low", format!("{low}% is above high, {high}%"));
    Ok(Some(marked.ok_or_else(wrong)?))
}

/// What the blobs take and may take, as metrics.
pub(crate) fn metrics(disks: &Disks) -> String {
    let usage = disks.usage();
    let taken = Family::gauge("kraken_store_bytes", "What blobs and uploads take.");
    let limit = Family::gauge(
        "kraken_store_limit_bytes",
        "What they may take; not there without a limit.",
    );
    let most = usage.and_then(|it| it.ceiling).map(|it| it.most());
    let with = |family: Family, value: Option<u64>| match value {
        Some(value) => family.sample(&[], value).text(),
        None => family.text(),
    };
    with(taken, usage.map(|it| it.bytes)) + &with(limit, most)
}

/// Reads the store's blobs back until the token says otherwise.
pub(crate) fn scrub(disks: Disks, ScrubRate(rate): ScrubRate, until: &CancellationToken) {
    if let Some(rate) = rate {
        let scrubbing = async move { disks.scrub(rate).await };
        tokio::spawn(until.clone().run_until_cancelled_owned(scrubbing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_tell_the_limit_where_there_is_one() {
        let lines = async |limit| {
            let dir = tempfile::tempdir().unwrap();
            let store = dir.path().join("store");
            let disks = open(store, &[], limit, &EvictionConfig::default()).await;
            let text = metrics(&disks.unwrap());
            let samples = text.lines().filter(|it| !it.starts_with('#'));
            samples.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(None).await, ["kraken_store_bytes 0"]);
        let limit = Some(StoreLimit::Bytes(1 << 20));
        let both = ["kraken_store_bytes 0", "kraken_store_limit_bytes 1048576"];
        assert_eq!(lines(limit).await, both);
    }
}
