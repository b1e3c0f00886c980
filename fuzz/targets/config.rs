//! Configuration files of every process: whatever is wrong is told, with the file that it is in.

#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

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
    // Files that others name would be read, whatever they are.
    if bytes.windows(7).any(|part| part == b"extends") {
        return;
    }
    let path = DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(|| tempfile::tempdir().expect("a directory"));
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

fn judge<T>(path: &PathBuf, read: Result<T, ConfigError>) {
    if let Err(error) = read {
        let said = error.to_string();
        let file = path.to_string_lossy();
        assert!(said.contains(&*file), "{said}: without the file");
    }
}
