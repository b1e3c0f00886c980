//! What contradicts itself, or cannot work, in what a configuration says about disks.

use std::path::{Component, Path, PathBuf};

use kraken_core::storage::FsStore;
use kraken_registry::manifest::Manifest;

use super::config::marks;
use super::{EvictionConfig, StoreLimit, VolumeConfig};
use crate::problems::Problems;
use crate::units::size_text;

/// The keys of a configuration about disks.
#[derive(Clone, Copy)]
pub(crate) struct DiskKeys<'c> {
    /// The key `store`.
    pub(crate) store: &'c Path,
    /// Where blobs are without `volumes`.
    pub(crate) blobs: &'c Path,
    pub(crate) volumes: &'c [VolumeConfig],
    pub(crate) limit: Option<StoreLimit>,
    pub(crate) eviction: &'c EvictionConfig,
}

impl Problems {
    /// Where blobs are kept, and how many of them.
    pub(crate) fn of_disks(&mut self, keys: DiskKeys<'_>) {
        self.of_dir("store", keys.store);
        self.of(contradictions(keys.volumes, keys.limit, keys.eviction));
        let is_several = keys.volumes.len() > 1;
        for (index, volume) in keys.volumes.iter().enumerate() {
            let key = format!("volumes[{index}].path");
            if same(&volume.path, keys.store) && !same(keys.store, keys.blobs) {
                let what = format!(
                    "this is `store`, whose blobs are in {}: write that to go on with them, or another directory",
                    keys.blobs.display()
                );
                self.add(&key, what);
            }
            self.of_dir(&key, &volume.path);
            // A disk that is not mounted must not become a directory on another one.
            if is_several && !volume.path.exists() {
                let path = volume.path.display();
                self.add(
                    &key,
                    format!("there is no directory {path}: is its disk mounted?"),
                );
            }
            self.of_limit(
                &format!("volumes[{index}].limit"),
                volume.limit,
                &volume.path,
            );
        }
        if keys.volumes.is_empty() {
            self.of_limit("store_limit", keys.limit, keys.blobs);
        }
    }

    /// A part of a volume that nothing would fit in.
    fn of_limit(&mut self, key: &str, limit: Option<StoreLimit>, dir: &Path) {
        let Some(StoreLimit::Percent(percent)) = limit else {
            return;
        };
        let Some(bytes) = self.at(key, FsStore::volume_bytes(dir)) else {
            return;
        };
        let part = bytes / 100 * u64::from(percent);
        if part < LEAST {
            let (part, least) = (size_text(part), size_text(LEAST));
            let what = format!(
                "{percent}% of the volume are {part}, and the longest manifest alone takes {least}"
            );
            self.add(key, what);
        }
    }
}

/// The least that a store may be limited to: the longest manifest that is taken has to fit, or images come without
/// theirs.
pub(super) const LEAST: u64 = Manifest::MAX_LEN as u64;

/// Keys that contradict each other.
///
/// # Errors
/// With the keys as they are in the configuration of a process.
pub(super) fn contradictions(
    volumes: &[VolumeConfig],
    limit: Option<StoreLimit>,
    eviction: &EvictionConfig,
) -> Result<(), Problems> {
    let mut found = Problems::default();
    of_eviction(&mut found, eviction);
    let has_limit = match volumes {
        [] => limit.is_some(),
        volumes => volumes.iter().any(|it| it.limit.or(limit).is_some()),
    };
    let marks = [("high", eviction.high), ("low", eviction.low)];
    for (key, mark) in marks.into_iter().filter(|_| !has_limit) {
        if mark.is_some() {
            let what =
                "this is a part of `store_limit`, which is not set: set it, or leave this out";
            found.add(format!("eviction.{key}"), what);
        }
    }
    if !volumes.is_empty() && volumes.iter().all(|it| it.weight.share() == 0.0) {
        let what = "0, as that of all others: no blob would be taken, so give one a weight above 0";
        found.add("volumes[0].weight", what);
    }
    of_paths(&mut found, volumes);
    found.done(())
}

fn of_eviction(found: &mut Problems, eviction: &EvictionConfig) {
    let (high, low) = marks(eviction);
    if low >= high {
        let what = format!("{low}% is not below high, which is {high}%: write less");
        found.add("eviction.low", what);
    }
    let (live, idle) = (eviction.time_to_live, eviction.time_to_idle);
    if let Some((live, idle)) = live.zip(idle).filter(|(live, idle)| idle.0 >= live.0) {
        let what = format!(
            "{idle} means nothing, as nothing outlives time_to_live, {live}: write less, or leave this out"
        );
        found.add("eviction.time_to_idle", what);
    }
}

/// No directory is two volumes, nor is one where another one keeps what is its own.
fn of_paths(found: &mut Problems, volumes: &[VolumeConfig]) {
    for (index, volume) in volumes.iter().enumerate() {
        let key = format!("volumes[{index}].path");
        let path = volume.path.display();
        for (at, other) in volumes.iter().enumerate().filter(|(at, _)| *at != index) {
            if at < index && same(&volume.path, &other.path) {
                let what =
                    format!("{path} is the directory of volumes[{at}] already: name another one");
                found.add(&key, what);
            }
            if is_taken(&volume.path, &other.path) {
                let what = format!(
                    "{path} is where volumes[{at}] keeps its own files: name a directory beside it"
                );
                found.add(&key, what);
            }
        }
    }
}

/// Whether two paths lead to the same directory.
pub(crate) fn same(one: &Path, other: &Path) -> bool {
    plain(one) == plain(other)
}

/// Whether a path leads to where the store in a directory keeps its own files.
pub(crate) fn is_taken(path: &Path, store: &Path) -> bool {
    let path = plain(path);
    let inside = path.strip_prefix(plain(store)).ok();
    let first = inside.and_then(|it| it.components().next());
    let is_own = |first: Component<'_>| {
        let mut own = FsStore::DIRECTORIES.iter();
        own.any(|it| first.as_os_str() == *it)
    };
    first.is_some_and(is_own)
}

/// A path without detours: as the file system has it where it is there, and as its text says otherwise.
fn plain(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let there = whole.ancestors().find_map(|it| {
        let rest = whole.strip_prefix(it).ok()?;
        Some((it.canonicalize().ok()?, rest))
    });
    let (mut plain, rest) = there.unwrap_or_else(|| (PathBuf::new(), &whole));
    for part in rest.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn told(volumes: &str, limit: Option<u64>, eviction: &str) -> Vec<String> {
        let volumes: Vec<VolumeConfig> = parse(volumes).unwrap();
        let eviction: EvictionConfig = parse(eviction).unwrap();
        let limit = limit.map(StoreLimit::Bytes);
        let found = contradictions(&volumes, limit, &eviction).err();
        let found = found.unwrap_or_default();
        found.all().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn marks_need_a_limit_and_are_in_order() {
        let limit = Some(1 << 30);
        assert!(told("[]", limit, "{high: 80%, low: 60%}").is_empty());
        assert!(told("[{path: /a, limit: 1GiB}]", None, "{high: 80%}").is_empty());
        let both = told("[]", None, "{high: 80%, low: 60%}");
        assert!(
            both[0].starts_with("eviction.high: this is a part of `store_limit`"),
            "{both:?}"
        );
        assert!(
            both[1].starts_with("eviction.low: ") && both.len() == 2,
            "{both:?}"
        );
        for (eviction, says) in [
            (
                "{low: 95%}",
                "eviction.low: 95% is not below high, which is 95%",
            ),
            (
                "{high: 50%, low: 60%}",
                "eviction.low: 60% is not below high, which is 50%",
            ),
            ("{high: 50%, low: 50%}", "eviction.low: 50% is not below"),
            (
                "{time_to_live: 1d, time_to_idle: 24h}",
                "eviction.time_to_idle: 1d means nothing",
            ),
        ] {
            let told = told("[]", limit, eviction).concat();
            assert!(told.contains(says), "{eviction}: {told}");
        }
    }

    #[test]
    fn one_volume_at_least_takes_blobs() {
        // One that takes no more is on its way out.
        assert!(told("[{path: /a}, {path: /b, weight: 0}]", None, "{}").is_empty());
        for all in [
            "[{path: /a, weight: 0}]",
            "[{path: /a, weight: 0}, {path: /b, weight: 0}]",
        ] {
            let told = told(all, None, "{}").concat();
            assert!(
                told.starts_with("volumes[0].weight: 0, as that of all others"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_directory_is_one_volume_however_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let at = |one: &str, other: &str| {
            let path = |rest: &str| dir.path().join(rest).display().to_string();
            let volumes = format!("[{{path: {}}}, {{path: {}}}]", path(one), path(other));
            told(&volumes, None, "{}").concat()
        };
        for (one, other) in [("a", "a"), ("a", "a/"), ("a", "b/../a"), ("a", "link/a")] {
            let told = at(one, other);
            assert!(
                told.contains("is the directory of volumes[0] already"),
                "{other}: {told}"
            );
        }
        let told = at("a/tmp/b", "a");
        assert!(
            told.starts_with("volumes[0].path: ") && told.contains("its own files"),
            "{told}"
        );
        // A disk may be mounted inside another one.
        assert_eq!(at("a", "a/disk2"), "");
        assert_eq!(at("a", "ab"), "");
    }
}
