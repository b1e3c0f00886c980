//! Database files that come into being whole.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes the file `path`, if it is not there, by `make` under another name. Durable.
///
/// A process that dies while a database writes its first pages leaves a file that is no database:
/// under its own name none could be opened there ever after.
///
/// # Errors
/// `make` failed, or the directory cannot be written; there is no file `path` then.
pub fn make_once<E>(path: &Path, make: impl FnOnce(&Path) -> Result<(), E>) -> io::Result<()>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if path.exists() {
        return Ok(());
    }
    let new = path.with_added_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    make(&new).map_err(io::Error::other)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
