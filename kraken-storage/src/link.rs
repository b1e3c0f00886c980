//! A blob's file under another name, without a second copy of its bytes where the file system can do
//! that.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::ioctl_ficlone;

/// How a file got its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// It shares the blocks of the other until one of the two is changed (Btrfs, XFS).
    Reflink,
    /// It is the same file under a second name: nobody may write to it.
    HardLink,
    /// It has a copy, as neither was possible: another file system, or somebody else's file.
    Copy,
}

/// Gives the file `from` the name `to`, too, or a copy of its bytes that name: by reflink, by hard link
/// or by copying, whichever works first. `check` looks at it under another name first; what is at `to` is
/// replaced in one step, and only by what it finds right.
///
/// # Errors
/// Of `check`; `from` is no plain file or cannot be read, or `to` not be written. `to` is as it was then.
pub fn link_or_copy<E: From<io::Error>>(
    from: &Path,
    to: &Path,
    check: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<Linked, E> {
    let new = beside(to)?;
    let _ = fs::remove_file(&new);
    let made = make(from, &new).map_err(E::from).and_then(|linked| {
        check(&new)?;
        fs::rename(&new, to)?;
        // A rename between two names of one file does nothing, and leaves both.
        let _ = fs::remove_file(&new);
        Ok(linked)
    });
    made.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

fn make(from: &Path, to: &Path) -> io::Result<Linked> {
    // Nothing that could block, or is somebody else's, such as a pipe or a link.
    if !fs::symlink_metadata(from)?.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is no plain file",
        ));
    }
    let source = File::open(from)?;
    let file = create(to)?;
    if ioctl_ficlone(&file, &source).is_ok() {
        file.sync_all()?;
        return Ok(Linked::Reflink);
    }
    drop(file);
    fs::remove_file(to)?;
    match fs::hard_link(from, to) {
        Ok(()) => return Ok(Linked::HardLink),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let mut file = create(to)?;
    io::copy(&mut &source, &mut file)?;
    file.sync_all()?;
    Ok(Linked::Copy)
}

/// A new file that nobody else reads before it is known to be right.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A name in the same directory, which nobody else uses.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let no_name = || io::Error::new(ErrorKind::InvalidInput, "the path names no file");
    let mut name = path.file_name().ok_or_else(no_name)?.to_os_string();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{number}.new", std::process::id()));
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn fine(_: &Path) -> io::Result<()> {
        Ok(())
    }

    #[test]
    fn a_link_has_the_bytes_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, [7; 100_000]).unwrap();
        fs::write(&to, "old").unwrap();
        for _ in 0..2 {
            let linked = link_or_copy(&from, &to, fine).unwrap();
            assert_ne!(linked, Linked::Copy, "one file system, one owner");
            assert_eq!(fs::read(&to).unwrap(), [7; 100_000]);
            let one = fs::metadata(&from).unwrap().ino() == fs::metadata(&to).unwrap().ino();
            assert_eq!(one, linked == Linked::HardLink);
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing is left"
        );
    }

    #[test]
    fn on_another_file_system_bytes_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("SKIPPED: there is no /dev/shm");
            return;
        };
        let (from, to) = (dir.path().join("from"), other.path().join("to"));
        fs::write(&from, "bytes").unwrap();
        if fs::metadata(dir.path()).unwrap().dev() == fs::metadata(other.path()).unwrap().dev() {
            eprintln!("SKIPPED: the temporary directory is on /dev/shm, too");
            return;
        }
        assert_eq!(link_or_copy(&from, &to, fine).unwrap(), Linked::Copy);
        assert_eq!(fs::read(&to).unwrap(), b"bytes");
    }

    #[test]
    fn what_is_not_there_leaves_the_other_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        fs::write(&to, "old").unwrap();
        let error = link_or_copy(&dir.path().join("from"), &to, fine).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        assert!(link_or_copy(&to, Path::new("/"), fine).is_err());
        let wrong = |_: &Path| Err(io::Error::other("wrong bytes"));
        let from = dir.path().join("other");
        fs::write(&from, "new").unwrap();
        assert!(link_or_copy(&from, &to, wrong).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"old");
        std::os::unix::fs::symlink(&from, dir.path().join("link")).unwrap();
        assert!(link_or_copy(&dir.path().join("link"), &to, fine).is_err());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            3,
            "nothing is left"
        );
    }
}
