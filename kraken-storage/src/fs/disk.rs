//! The calls to the file system that more than one file here makes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::store::StoreError;

/// Notes a call on the tape, where there is one.
macro_rules! taped {
    ($call:ident($($argument:expr),*)) => {
        #[cfg(feature = "testkit")]
        super::tape::$call($($argument),*);
    };
}

/// Bytes are written in steps of 64 KiB: one call for a whole piece of some MiB is up to five
/// times slower, as the kernel then copies into large folios.
pub(super) const STEP: usize = 64 << 10;

/// Turns the system's error into ours; a full volume or quota is [`StoreError::Full`].
pub(super) fn failed<'a>(
    doing: &'a str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Io {
            doing: format!("{doing} {}", path.display()),
            source,
        },
    }
}

/// Makes a file, or an empty one of what is there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = File::create(path)?;
    taped!(created(path, &file));
    Ok(file)
}

/// Makes a file that is not there.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    let file = File::create_new(path)?;
    taped!(created(path, &file));
    Ok(file)
}

pub(super) fn set_len(file: &File, length: u64) -> io::Result<()> {
    file.set_len(length)?;
    taped!(sized(file, length));
    Ok(())
}

/// Makes the bytes of a file durable.
pub(super) fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()?;
    taped!(synced(file));
    Ok(())
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    taped!(renamed(from, to));
    Ok(())
}

/// Writes some bytes in one call.
pub(super) fn write_small(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    taped!(written(file, offset, bytes));
    Ok(())
}

/// Whether the medium cannot give what it was given.
pub(super) fn is_rotten(error: &StoreError) -> bool {
    let StoreError::Io { source, .. } = error else {
        return false;
    };
    let rotten = [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::ILSEQ];
    Errno::from_io_error(source).is_some_and(|errno| rotten.contains(&errno))
}

/// Gives the file its length and its blocks, so that no later write finds the volume full.
pub(super) fn preallocate(file: &File, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => set_len(file, length),
        result => {
            result?;
            taped!(sized(file, length));
            Ok(())
        }
    }
}

/// Takes the right to write to a file away, as others may have links to it.
pub(super) fn protect(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    // Where it does not work, the file's time tells who writes to it.
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o444));
}

/// Opens a file to read. Its time of access stays what it is, where the system can do that: it is the
/// store's to set.
pub(super) fn open_quietly(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let quiet = rustix::fs::OFlags::NOATIME.bits().cast_signed();
    match File::options().read(true).custom_flags(quiet).open(path) {
        // For the owner of the file only.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => File::open(path),
        opened => opened,
    }
}

/// Sets when a file was used last, and says whether it is there.
pub(super) fn set_accessed(path: &Path, unix_ms: u64) -> Result<bool, StoreError> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(unix_ms % 1000 * 1_000_000).unwrap_or_default(),
        },
        last_modification: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
    };
    match utimensat(CWD, path, &times, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(failed("set the time of", path)(error.into())),
    }
}

/// Writes all of `data` at `offset`.
pub(super) fn write_at(file: &File, data: &[u8], mut offset: u64) -> io::Result<()> {
    for step in data.chunks(STEP) {
        write_small(file, step, offset)?;
        offset += step.len() as u64;
    }
    Ok(())
}

/// Reads `len` bytes at `offset`, fewer only where the file ends.
pub(super) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        // The spare capacity is not zeroed first, unlike a slice for `FileExt::read_at`.
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Reads into `bytes` from `offset`, and says how many came: fewer only where the file ends.
pub(super) fn fill_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads into `bytes` from `offset` what lies in the page cache there, and says how many bytes that
/// is. Never waits for the disk.
///
/// None come also when the file system cannot do this, or the file cannot be read: [`fill_at`] says
/// which.
pub(super) fn fill_cached_at(file: &File, bytes: &mut [u8], offset: u64) -> usize {
    let mut bytes = [IoSliceMut::new(bytes)];
    loop {
        match rustix::io::preadv2(file, &mut bytes, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => return read,
            Err(Errno::INTR) => {}
            Err(_) => return 0,
        }
    }
}

/// Lets the disk begin to read what will be asked for, where the file system can.
pub(super) fn will_need(file: &File, offset: u64, len: u64) {
    // Without it the reads themselves wait, no more.
    let _ = rustix::fs::fadvise(
        file,
        offset,
        std::num::NonZeroU64::new(len),
        Advice::WillNeed,
    );
}

/// Keeps the system from reading more than it is asked for: what comes unasked into the page cache
/// was proven by nobody.
pub(super) fn read_exactly(file: &File) {
    // Where this is not known, less is found before it is served.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
}

/// Lets go of what was read and will not be again.
pub(super) fn wont_need(file: &File, offset: u64, len: u64) {
    // It would only stay longer.
    let _ = rustix::fs::fadvise(
        file,
        offset,
        std::num::NonZeroU64::new(len),
        Advice::DontNeed,
    );
}

/// Writes a file whole under its name: a reader finds the old file or the new one. `durable` also
/// syncs its data; the directory is the caller's to sync.
pub(super) fn write_whole(
    temp: &Path,
    path: &Path,
    bytes: &[u8],
    durable: bool,
) -> Result<(), StoreError> {
    let write = || {
        let file = create(temp)?;
        write_small(&file, bytes, 0)?;
        if durable {
            file.sync_all()?;
            taped!(synced(&file));
        }
        rename(temp, path)
    };
    write().map_err(|error| {
        // Left behind it would be swept at the next start; the error that counts is the first.
        let _ = fs::remove_file(temp);
        failed("write", path)(error)
    })
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync directory", path))?;
    taped!(synced_dir(path));
    Ok(())
}

/// Removes a file and says whether it was there.
pub(super) fn remove(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => {
            taped!(removed(path));
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// The length of a file, or `None` when it is not there.
pub(super) fn length(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// The names in a directory; those that are no text are skipped with a warning.
pub(super) fn names(path: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let name = entry.map_err(failed("list", path))?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            Err(name) => foreign(path, &name.to_string_lossy()),
        }
    }
    Ok(names)
}

/// Says that a name in the store's directory is not one of ours.
pub(super) fn foreign(dir: &Path, name: &str) {
    tracing::warn!(dir = %dir.display(), name, "ignoring a file that is not the store's");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_volume_has_its_own_error() {
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            let error = failed("write", Path::new("/x"))(errno.into());
            assert!(matches!(error, StoreError::Full), "{error}");
        }
        let error = failed("write", Path::new("/x"))(Errno::IO.into());
        assert!(error.to_string().contains("write /x"), "{error}");
    }

    #[test]
    fn writing_to_a_full_device_is_full() {
        let path = Path::new("/dev/full");
        let Ok(file) = File::options().write(true).open(path) else {
            return;
        };
        let error = write_at(&file, &[1; 10], 0).map_err(failed("write", path));
        assert!(matches!(error, Err(StoreError::Full)));
    }

    #[test]
    fn reads_stop_at_the_end_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_whole(&dir.path().join("t"), &path, &[7; 100], true).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(read_at(&file, 90, 50).unwrap(), [7; 10]);
        assert!(read_at(&file, 200, 50).unwrap().is_empty());
        assert_eq!(names(dir.path()).unwrap(), ["f"]);
    }
}
