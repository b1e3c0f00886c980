//! A blob's file under another name, without a second copy of its bytes where the file system can do
//! that.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

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
/// or by copying, whichever works first. What is at `to` is replaced, in one step.
///
/// # Errors
/// `from` cannot be read, or `to` not be written. `to` is as it was then.
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<Linked> {
    let new = beside(to)?;
    let _ = fs::remove_file(&new);
    let made = make(from, &new).and_then(|linked| {
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
    let source = File::open(from)?;
    let file = File::create_new(to)?;
    if ioctl_ficlone(&file, &source).is_ok() {
        return Ok(Linked::Reflink);
    }
    drop(file);
    fs::remove_file(to)?;
    match fs::hard_link(from, to) {
        Ok(()) => return Ok(Linked::HardLink),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let mut file = File::create_new(to)?;
    io::copy(&mut &source, &mut file)?;
    file.sync_all()?;
    Ok(Linked::Copy)
}

/// A name in the same directory, which nobody else uses.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let no_name = || io::Error::new(ErrorKind::InvalidInput, "the path names no file");
    let mut name = path.file_name().ok_or_else(no_name)?.to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_link_has_the_bytes_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, [7; 100_000]).unwrap();
        fs::write(&to, "old").unwrap();
        for _ in 0..2 {
            let linked = link_or_copy(&from, &to).unwrap();
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
        assert_eq!(link_or_copy(&from, &to).unwrap(), Linked::Copy);
        assert_eq!(fs::read(&to).unwrap(), b"bytes");
    }

    #[test]
    fn what_is_not_there_leaves_the_other_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        fs::write(&to, "old").unwrap();
        let error = link_or_copy(&dir.path().join("from"), &to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        assert!(link_or_copy(&to, Path::new("/")).is_err());
    }
}
