//! Files that are ours, in places where others' may be.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Said;
use crate::Failure;

/// The first line of each file of ours.
pub(super) const MARK: &str =
    "# Written by `kraken runtime install`; `kraken runtime remove` removes it.\n";
/// What is put behind the name of a file that was there before.
const BEFORE: &str = ".before-kraken";

fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    Failure::io(format!("read {}", path.display()))
}

/// A file's text, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(reading(path)(error)),
    }
}

/// Writes a file in one step: who reads it sees what was before, or all of what is new.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let writing = || Failure::io(format!("write {}", path.display()));
    // Where it points to, if it is a link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(writing())?;
    }
    let new = beside(path, ".kraken-new");
    fs::write(&new, text).map_err(writing())?;
    if let Ok(before) = fs::metadata(path) {
        fs::set_permissions(&new, before.permissions()).map_err(writing())?;
    }
    fs::rename(&new, path).map_err(writing())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Keeps a copy of what others wrote.
pub(super) fn keep(path: &Path) -> Result<Option<Said>, Failure> {
    let before = beside(path, BEFORE);
    if !path.exists() {
        return Ok(None);
    }
    if before.exists() {
        // Of an earlier installation, and not to be lost either.
        let what = format!(
            "{} and {} are both of somebody else's: move one of them away",
            path.display(),
            before.display()
        );
        return Err(Failure::Other(what));
    }
    let copied = fs::copy(path, &before);
    copied.map_err(Failure::io(format!("copy {}", path.display())))?;
    let what = format!("{} is kept as {}", path.display(), before.display());
    Ok(Some(Said::well(what)))
}

/// Writes a file of ours. One of others' in its place is kept.
pub(super) fn put(path: &Path, text: &str) -> Result<Vec<Said>, Failure> {
    let text = format!("{MARK}{text}");
    let before = read(path)?;
    if before.as_deref() == Some(text.as_str()) {
        return Ok(vec![Said::well(format!(
            "{} is as it must be",
            path.display()
        ))]);
    }
    let mut said = Vec::new();
    if before.is_some_and(|before| !before.starts_with(MARK)) {
        said.extend(keep(path)?);
    }
    replace(path, &text)?;
    said.push(Said::well(format!("wrote {}", path.display())));
    Ok(said)
}

/// Whether a file of ours is there and says this.
pub(super) fn compare(path: &Path, text: &str) -> Result<Said, Failure> {
    Ok(match read(path)? {
        Some(found) if found == format!("{MARK}{text}") => {
            Said::well(format!("{} is as it must be", path.display()))
        }
        Some(_) => Said::amiss(format!(
            "{} says something else: run kraken runtime install again",
            path.display()
        )),
        None => Said::amiss(format!(
            "{} is missing: run kraken runtime install",
            path.display()
        )),
    })
}

/// What others wrote there before.
pub(super) fn before(path: &Path) -> Result<Option<String>, Failure> {
    read(&beside(path, BEFORE))
}

/// Puts back what others wrote there before.
pub(super) fn put_back(path: &Path) -> Result<(), Failure> {
    let back = fs::rename(beside(path, BEFORE), path);
    back.map_err(Failure::io(format!("put {} back", path.display())))
}

/// Removes a file.
pub(super) fn delete(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Removes a file of ours, and puts back what was there before.
pub(super) fn take_out(path: &Path) -> Result<Option<Said>, Failure> {
    if !read(path)?.is_some_and(|text| text.starts_with(MARK)) {
        return Ok(None);
    }
    let before = beside(path, BEFORE);
    let removing = || Failure::io(format!("remove {}", path.display()));
    let what = if before.exists() {
        fs::rename(&before, path).map_err(removing())?;
        format!("{} is what it was before", path.display())
    } else {
        delete(path)?;
        format!("removed {}", path.display())
    };
    Ok(Some(Said::well(what)))
}
