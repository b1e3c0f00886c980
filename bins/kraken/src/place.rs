//! Where a file is to be written: looked at before anything is fetched for it, and written there at once or not
//! at all.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

use crate::Failure;

/// What the system's mask of modes leaves of this is a new file's.
const MODE: u32 = 0o666;

/// Refuses a path at which no file can be. `name` is what one might be called in a directory.
///
/// # Errors
/// A directory is there ([`Failure::Argument`]), or the one that it would be in is not.
pub fn for_file(path: &Path, name: &str) -> Result<(), Failure> {
    let shown = path.display();
    if path.is_dir() || path.file_name().is_none() {
        let better = path.join(name);
        return Err(Failure::Argument(format!(
            "{shown} is a directory: name the file to write, such as {}",
            better.display()
        )));
    }
    let dir = directory(path);
    match dir.is_dir() {
        true => Ok(()),
        false => Err(Failure::Other(format!(
            "{shown} cannot be written, as there is no directory {0}: make it (mkdir -p {0}), or name another file",
            dir.display()
        ))),
    }
}

/// Refuses a path at which no directory can be.
///
/// # Errors
/// Something else is there: [`Failure::Argument`].
pub fn for_directory(path: &Path) -> Result<(), Failure> {
    match path.exists() && !path.is_dir() {
        true => Err(Failure::Argument(format!(
            "{} is a file: name a directory; one that is not there is made",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// Refuses what is no file that can be read.
///
/// # Errors
/// It is a directory ([`Failure::Argument`]), or not there.
pub fn readable(path: &Path) -> Result<(), Failure> {
    let about = std::fs::metadata(path);
    match about.map_err(Failure::io(format!("read {}", path.display())))? {
        about if about.is_dir() => Err(Failure::Argument(format!(
            "{} is a directory, and a blob is a single file: name one, or push an image in the OCI image layout with \
             kraken push {0} REPOSITORY:TAG",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// A file beside `path` that is removed unless it is put there with [`put`].
///
/// # Errors
/// It cannot be made.
pub fn beside(path: &Path) -> Result<NamedTempFile, Failure> {
    let made = Builder::new()
        .prefix(".kraken-")
        .suffix(".part")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory(path));
    made.map_err(Failure::io(format!("write {}", path.display())))
}

/// Puts a file that was made by [`beside`] at `path`.
///
/// # Errors
/// It cannot: it is gone then.
pub fn put(file: NamedTempFile, path: &Path) -> Result<(), Failure> {
    let put = file.persist(path).map_err(|error| error.error);
    put.map(drop)
        .map_err(Failure::io(format!("write {}", path.display())))
}

/// Writes a file, at once or not at all.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut file = beside(path)?;
    let written = file.write_all(bytes);
    written.map_err(Failure::io(format!("write {}", path.display())))?;
    put(file, path)
}

fn directory(path: &Path) -> &Path {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    dir.unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_where_nothing_can_be_written_are_told_with_what_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let (file, none) = (dir.path().join("file"), dir.path().join("none/file"));
        for_file(&file, "x").unwrap();
        for_file(Path::new("file-of-here"), "x").unwrap();
        write(&file, b"1").unwrap();
        for_file(&file, "x").unwrap();
        let said = for_file(dir.path(), "name").unwrap_err();
        let better = dir.path().join("name");
        assert!(
            said.to_string().ends_with(better.to_str().unwrap()),
            "{said}"
        );
        assert_eq!(said.exit_code(), 2);
        let said = for_file(&none, "x").unwrap_err();
        assert!(said.to_string().contains("mkdir -p"), "{said}");
        assert_eq!(said.exit_code(), 1);
        assert!(for_file(Path::new("/"), "x").is_err());
        assert_eq!(for_directory(&file).unwrap_err().exit_code(), 2);
        for_directory(&none).unwrap();
        for_directory(dir.path()).unwrap();
        readable(&file).unwrap();
        let said = readable(dir.path()).unwrap_err();
        assert!(said.to_string().contains("kraken push"), "{said}");
        assert_eq!(readable(&none).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn what_is_not_put_is_gone_and_what_is_put_is_for_whom_the_mask_lets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(beside(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        write(&path, b"new").unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
