//! Whether the store's directories can be written, have room, and answer in time.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use kraken_core::storage::PieceStore as _;

use super::Finding;
use crate::store::Disks;

/// Less room than this is named: a few images.
const LITTLE: u64 = 1 << 30;
/// With less than this a volume is full.
const FULL: u64 = 16 << 20;
/// Fewer files that can be made are named.
const FILES: u64 = 10_000;
/// A flush that takes longer is named: a pull waits for one for every blob.
const SLOW: Duration = Duration::from_millis(500);

/// Looks at each directory, and at how full the store is.
pub(crate) async fn look(dirs: &[PathBuf], disks: &Disks) -> Vec<Finding> {
    let owned = dirs.to_vec();
    let looking =
        tokio::task::spawn_blocking(move || owned.iter().flat_map(|it| dir(it)).collect());
    let mut found: Vec<_> = looking.await.unwrap_or_else(|error| {
        vec![Finding::failed(
            "disk",
            error.to_string(),
            "see the agent's log",
        )]
    });
    found.extend(limit(dirs, disks));
    found
}

/// A limit that the disk cannot hold.
fn limit(dirs: &[PathBuf], disks: &Disks) -> Option<Finding> {
    let usage = disks.usage()?;
    let limit = usage.ceiling.as_ref()?.most();
    let free: u64 = dirs
        .iter()
        .filter_map(|dir| room(dir))
        .map(|it| it.free)
        .max()?;
    Some(judge_limit(limit, usage.bytes, free))
}

fn judge_limit(limit: u64, used: u64, free: u64) -> Finding {
    let check = "store_limit";
    let [limit_text, used_text] = [limit, used].map(|it| ByteSize(it).to_string());
    if limit > used.saturating_add(free) {
        let what = format!(
            "{limit_text} may be kept, {used_text} are, and the disk has room for {} more",
            ByteSize(free)
        );
        let advice = "set store_limit to what the disk can hold beside what others keep there";
        return Finding::warning(check, what, advice);
    }
    Finding::ok(check, format!("{used_text} of {limit_text} are used"))
}

/// What is free on the volume of a directory.
struct Room {
    free: u64,
    files: Option<u64>,
    is_read_only: bool,
}

fn room(dir: &Path) -> Option<Room> {
    let volume = rustix::fs::statvfs(dir).ok()?;
    Some(Room {
        free: volume.f_bavail.saturating_mul(volume.f_frsize),
        // Some file systems have no fixed number of files, and say 0 of 0.
        files: (volume.f_files > 0).then_some(volume.f_favail),
        is_read_only: volume
            .f_flag
            .contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

fn dir(path: &Path) -> Option<Finding> {
    let check = format!("disk {}", path.display());
    let Some(room) = room(path) else {
        let advice = "make it, or mount its disk";
        return Some(Finding::failed(
            &check,
            "there is no such directory",
            advice,
        ));
    };
    if room.is_read_only {
        let advice =
            "mount it read-write: the kernel does so after an error of the disk, see dmesg";
        return Some(Finding::failed(&check, "it is mounted read-only", advice));
    }
    Some(match write(path) {
        Ok(flush) => judge(&check, &room, flush),
        Err(error) => {
            let what = format!("a file cannot be written, flushed, renamed and removed: {error}");
            let advice = match error.raw_os_error() {
                _ if room.free < FULL => "the disk is full: make room, or lower store_limit",
                _ if room.files == Some(0) => "the disk has no room for another file: remove some",
                _ => {
                    "let the user that the agent runs as own the directory; dmesg tells errors of the disk"
                }
            };
            Finding::failed(&check, what, advice)
        }
    })
}

fn judge(check: &str, room: &Room, flush: Duration) -> Finding {
    let free = ByteSize(room.free);
    let ms = flush.as_millis();
    if room.free < FULL {
        let what = format!("{free} are free");
        return Finding::failed(check, what, "make room, or lower store_limit");
    }
    if room.free < LITTLE {
        let what = format!("only {free} are free");
        return Finding::warning(check, what, "make room, or lower store_limit");
    }
    if let Some(files) = room.files.filter(|files| *files < FILES) {
        let what = format!("only {files} more files can be made");
        return Finding::warning(
            check,
            what,
            "remove small files from this volume, or make it anew with more inodes",
        );
    }
    if flush > SLOW {
        let what = format!("a small file takes {ms} ms to reach the disk");
        let advice = "the disk is slow, busy or failing: see iostat and dmesg";
        return Finding::warning(check, what, advice);
    }
    Finding::ok(
        check,
        format!("{free} free, a small file is on it within {ms} ms"),
    )
}

/// Writes, flushes, renames and removes a small file, and says what the flush took.
fn write(dir: &Path) -> std::io::Result<Duration> {
    let [one, two] =
        ["a", "b"].map(|end| dir.join(format!(".doctor-{}-{end}", std::process::id())));
    let written = (|| {
        let mut file = fs::File::create(&one)?;
        file.write_all(&[0x55; 4096])?;
        let begun = Instant::now();
        file.sync_all()?;
        let flush = begun.elapsed();
        fs::rename(&one, &two)?;
        Ok(flush)
    })();
    // Whichever is there.
    let gone = fs::remove_file(&two);
    if written.is_err() {
        let _ = fs::remove_file(&one);
        return written;
    }
    gone.and(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let here = tempfile::tempdir().unwrap();
        write(here.path()).unwrap();
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
        let found = dir(&here.path().join("none")).unwrap();
        assert_eq!(found.state, State::Failed);
        assert!(found.what.contains("no such directory"));
    }

    #[test]
    fn little_room_is_named_before_it_is_none() {
        let room = |free, files| Room {
            free,
            files,
            is_read_only: false,
        };
        let quick = Duration::from_millis(3);
        for (room, flush, state, says) in [
            (room(LITTLE, None), quick, State::Ok, "free"),
            (room(LITTLE, Some(FILES)), quick, State::Ok, "free"),
            (room(LITTLE - 1, None), quick, State::Warning, "only"),
            (room(FULL - 1, None), quick, State::Failed, "are free"),
            (room(LITTLE, Some(9)), quick, State::Warning, "9 more files"),
            (
                room(LITTLE, None),
                Duration::from_secs(1),
                State::Warning,
                "1000 ms",
            ),
        ] {
            let found = judge("disk", &room, flush);
            assert_eq!(found.state, state, "{found:?}");
            assert!(found.what.contains(says), "{found:?}");
        }
        assert_eq!(judge_limit(100, 50, 50).state, State::Ok);
        assert_eq!(judge_limit(101, 50, 50).state, State::Warning);
    }
}
