//! Configuration files of every process: whatever is wrong is told, with the file that it is in.

#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use kraken_daemon::Sources;
use kraken_daemon::agent::AgentConfig;
use kraken_daemon::build_index::BuildIndexConfig;
use kraken_daemon::config::ConfigError;
use kraken_daemon::origin::OriginConfig;
use kraken_daemon::proxy::ProxyConfig;
use kraken_daemon::tracker::TrackerConfig;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static DIR: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    if may_leave(bytes) {
        return;
    }
    let path = DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(begin);
        dir.path().join("process.yaml")
    });
    fs::write(&path, bytes).expect("it can be written");
    let sources = Sources::files(vec![path.clone()]);
    judge(&path, sources.load::<AgentConfig>());
    judge(&path, sources.load::<OriginConfig>());
    judge(&path, sources.load::<TrackerConfig>());
    judge(&path, sources.load::<ProxyConfig>());
    judge(&path, sources.load::<BuildIndexConfig>());
});

/// A directory with another file, that inputs may extend.
fn begin() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let base = "log: debug\nextends: []\n";
    fs::write(dir.path().join("base.yaml"), base).expect("it can be written");
    dir
}

/// Whether it may extend a file of another directory, which would be read whatever it is. A path to one has a
/// slash, and quotes with a backslash in them can hide both the slash and the key.
fn may_leave(bytes: &[u8]) -> bool {
    let has = |byte: u8| bytes.contains(&byte);
    let extends = bytes.windows(7).any(|part| part == b"extends");
    (extends && has(b'/')) || (has(b'"') && has(b'\\'))
}

fn judge<T>(path: &Path, read: Result<T, ConfigError>) {
    if let Err(error) = read {
        let said = error.to_string();
        // It may be the other one that is wrong.
        let dir = path.parent().expect("it is in a directory");
        let dir = dir.to_string_lossy();
        assert!(said.contains(&*dir), "{said}: without the file");
    }
}
