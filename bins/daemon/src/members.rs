//! Who the origins are: a list in the configuration, or a file that is read again when it changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kraken_core::net::origin::OriginCluster;
use kraken_core::origin::RingMember;
use tokio_util::sync::CancellationToken;

use crate::config::{self, OriginEntry};
use crate::process::StartError;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The origins that a configuration names, in it or in a file.
///
/// # Errors
/// Both or none are given, the file cannot be read, or an entry makes no sense.
pub(crate) fn origins(
    listed: &[OriginEntry],
    file: Option<&Path>,
) -> Result<Vec<RingMember>, StartError> {
    match (listed, file) {
        ([], Some(file)) => config::ring(&config::load::<Vec<OriginEntry>>(file)?),
        (listed, None) => config::ring(listed),
        (_, Some(_)) => Err(StartError::Config(
            "origins and origins_file: give one of them".into(),
        )),
    }
}

/// Reads the file again when it changes, and hands over who is in it, until the token says otherwise.
/// A file that makes no sense changes nothing.
pub(crate) fn follow(
    file: Option<&Path>,
    until: &CancellationToken,
    changed: impl Fn(Vec<RingMember>) -> Result<(), String> + Send + Sync + 'static,
) {
    let Some(file) = file.map(Path::to_path_buf) else {
        return;
    };
    let following = async move {
        // What it says first is handed over again: it may have changed since the start.
        let mut before = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = text(&file).await;
            if now == before || now.is_none() {
                continue;
            }
            before = now;
            let read = origins(&[], Some(&file)).map_err(|error| error.to_string());
            match read.and_then(&changed) {
                Ok(()) => tracing::info!(file = %file.display(), "the origins are others now"),
                Err(error) => {
                    tracing::error!(error, "the origins stay as they were");
                }
            }
        }
    };
    tokio::spawn(until.clone().run_until_cancelled_owned(following));
}

/// Lets a client of the origins follow the file.
pub(crate) fn follow_with(origins: &OriginCluster, file: Option<&Path>, until: &CancellationToken) {
    let origins = origins.clone();
    follow(file, until, move |members| {
        origins.set(members);
        Ok(())
    });
}

/// What the file says; nothing while it is being replaced.
async fn text(file: &PathBuf) -> Option<String> {
    tokio::fs::read_to_string(file).await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const ONE: &str = "- {name: origin-1, url: 'https://a:1'}\n";
    const TWO: &str =
        "- {name: origin-1, url: 'https://a:1'}\n- {name: origin-2, url: 'https://b:1'}\n";

    #[test]
    fn the_origins_are_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("origins.yaml");
        std::fs::write(&file, TWO).unwrap();
        assert_eq!(origins(&[], Some(&file)).unwrap().len(), 2);
        let listed: Vec<OriginEntry> = config::parse(ONE).unwrap();
        assert_eq!(origins(&listed, None).unwrap().len(), 1);
        let says = |listed: &[OriginEntry], file: Option<&Path>| {
            origins(listed, file).unwrap_err().to_string()
        };
        assert!(says(&listed, Some(&file)).contains("one of them"));
        assert!(says(&[], None).contains("at least one"));
        assert!(says(&[], Some(&dir.path().join("none"))).contains("cannot read"));
        std::fs::write(&file, "- {name: origin-1, address: 'https://a:1'}").unwrap();
        assert!(says(&[], Some(&file)).contains("url"));
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again_and_nonsense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("origins.yaml");
        std::fs::write(&file, ONE).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (until, told) = (CancellationToken::new(), seen.clone());
        follow(Some(&file), &until, move |members| {
            told.lock().unwrap().push(members.len());
            Ok(())
        });
        tokio::time::sleep(LOOK + Duration::from_millis(500)).await;
        for text in ["nonsense: [", TWO] {
            std::fs::write(&file, text).unwrap();
            tokio::time::sleep(LOOK + Duration::from_millis(500)).await;
        }
        for _ in 0..100 {
            if *seen.lock().unwrap() == [1, 2] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
        until.cancel();
    }
}
