//! Who the members are: a list in the configuration, a file that is read again when it changes, or DNS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kraken_core::net::announce::TrackerClient;
use kraken_core::net::origin::OriginCluster;
use kraken_core::origin::RingMember;
use kraken_registry::tags::client::TagClient;
use tokio_util::sync::CancellationToken;

use crate::config::{self, OriginEntry};
use crate::dns::{DnsName, Found};
use crate::process::StartError;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Where it is said who the origins are.
#[derive(Debug, Clone)]
pub(crate) enum Origins {
    Listed(Vec<RingMember>),
    File(PathBuf),
    Dns(DnsName),
}

impl Origins {
    /// By one of the keys `origins`, `origins_file` and `origins_dns`.
    ///
    /// # Errors
    /// None or several are given, or an entry makes no sense.
    pub(crate) fn of(
        listed: &[OriginEntry],
        file: Option<&PathBuf>,
        dns: Option<&DnsName>,
    ) -> Result<Self, StartError> {
        match (listed, file, dns) {
            ([], Some(file), None) => Ok(Self::File(file.clone())),
            ([], None, Some(dns)) => Ok(Self::Dns(dns.clone())),
            (listed, None, None) => Ok(Self::Listed(config::ring(listed)?)),
            _ => Err(StartError::Config(
                "origins, origins_file and origins_dns: give one of them".into(),
            )),
        }
    }

    /// Who they are now. DNS is waited for, up to a minute, until it names anybody, and `own` if this is
    /// one of them.
    ///
    /// # Errors
    /// The file cannot be read, an entry makes no sense, or DNS names nobody.
    pub(crate) async fn now(&self, own: Option<&str>) -> Result<Vec<RingMember>, StartError> {
        match self {
            Self::Listed(members) => Ok(members.clone()),
            Self::File(file) => read(file),
            Self::Dns(dns) => {
                let suits = |found: &[Found]| {
                    own.is_none_or(|own| found.iter().any(|member| member.name == own))
                };
                ring(&dns.first(suits).await?)
            }
        }
    }

    /// Hands over who they are whenever that changes, until the token says otherwise. What makes no
    /// sense changes nothing.
    pub(crate) fn follow(
        self,
        until: &CancellationToken,
        changed: impl Fn(Vec<RingMember>) -> Result<(), String> + Send + Sync + 'static,
    ) {
        match self {
            Self::Listed(_) => {}
            Self::File(file) => {
                let following = follow(file, changed);
                tokio::spawn(until.clone().run_until_cancelled_owned(following));
            }
            Self::Dns(dns) => dns.follow(until, move |found| {
                let members = ring(&found).map_err(|error| error.to_string())?;
                changed(members)
            }),
        }
    }

    /// Lets a client of the origins follow.
    pub(crate) fn follow_with(self, origins: &OriginCluster, until: &CancellationToken) {
        let origins = origins.clone();
        self.follow(until, move |members| {
            origins.set(members);
            Ok(())
        });
    }
}

fn read(file: &Path) -> Result<Vec<RingMember>, StartError> {
    config::ring(&config::load::<Vec<OriginEntry>>(file)?)
}

fn ring(found: &[Found]) -> Result<Vec<RingMember>, StartError> {
    let entry = |member: &Found| OriginEntry {
        name: member.name.clone(),
        url: member.url.clone(),
        weight: Default::default(),
        zone: None,
    };
    config::ring(&found.iter().map(entry).collect::<Vec<_>>())
}

async fn follow(file: PathBuf, changed: impl Fn(Vec<RingMember>) -> Result<(), String>) {
    // What it says first is handed over again: it may have changed since the start.
    let mut before = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = text(&file).await;
        if now == before || now.is_none() {
            continue;
        }
        before = now;
        let read = read(&file).map_err(|error| error.to_string());
        match read.and_then(&changed) {
            Ok(()) => tracing::info!(file = %file.display(), "the origins are others now"),
            Err(error) => {
                tracing::error!(error, "the origins stay as they were");
            }
        }
    }
}

/// Where it is said where trackers or build-indexes are.
#[derive(Debug, Clone)]
pub(crate) enum Urls {
    Listed(Vec<String>),
    Dns(DnsName),
}

impl Urls {
    /// By the key `key`, or the same with `_dns`.
    ///
    /// # Errors
    /// Both are given, or none.
    pub(crate) fn of(
        key: &str,
        listed: Vec<String>,
        dns: Option<DnsName>,
    ) -> Result<Self, StartError> {
        match dns {
            None if listed.is_empty() => Err(StartError::Config(format!(
                "{key}: name at least one, or give {key}_dns"
            ))),
            None => Ok(Self::Listed(listed)),
            Some(dns) if listed.is_empty() => Ok(Self::Dns(dns)),
            Some(_) => Err(StartError::Config(format!(
                "{key} and {key}_dns: give one of them"
            ))),
        }
    }

    /// Where they are now; nowhere while DNS does not say, as what is here already can be served
    /// without them.
    ///
    /// # Errors
    /// No name server can be asked, by the configuration.
    pub(crate) async fn now(&self) -> Result<Vec<String>, StartError> {
        match self {
            Self::Listed(urls) => Ok(urls.clone()),
            Self::Dns(dns) => Ok(urls(dns.at_once().await?.unwrap_or_default())),
        }
    }

    fn follow(
        self,
        until: &CancellationToken,
        changed: impl Fn(Vec<String>) -> Result<(), String> + Send + Sync + 'static,
    ) {
        if let Self::Dns(dns) = self {
            dns.follow(until, move |found| changed(urls(found)));
        }
    }

    /// Lets a client of the trackers follow.
    pub(crate) fn follow_trackers(self, trackers: &TrackerClient, until: &CancellationToken) {
        let trackers = trackers.clone();
        self.follow(until, move |urls| {
            trackers.set(&urls).map_err(|error| error.to_string())
        });
    }

    /// Lets a client of the build-indexes follow.
    pub(crate) fn follow_tags(self, tags: &TagClient, until: &CancellationToken) {
        let tags = tags.clone();
        self.follow(until, move |urls| {
            tags.set(urls);
            Ok(())
        });
    }
}

fn urls(found: Vec<Found>) -> Vec<String> {
    found.into_iter().map(|member| member.url).collect()
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

    #[tokio::test]
    async fn the_origins_are_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("origins.yaml");
        std::fs::write(&file, TWO).unwrap();
        let listed: Vec<OriginEntry> = config::parse(ONE).unwrap();
        let dns: DnsName = config::parse("name: origins.example.com").unwrap();
        let count = async |listed: &[OriginEntry], file: Option<&PathBuf>| {
            let origins = Origins::of(listed, file, None)?;
            origins.now(None).await.map(|members| members.len())
        };
        assert_eq!(count(&[], Some(&file)).await.unwrap(), 2);
        assert_eq!(count(&listed, None).await.unwrap(), 1);
        for (listed, file, dns) in [
            (&listed[..], Some(&file), None),
            (&[], Some(&file), Some(&dns)),
            (&listed, None, Some(&dns)),
        ] {
            let error = Origins::of(listed, file, dns).unwrap_err().to_string();
            assert!(error.contains("one of them"), "{error}");
        }
        let says = async |file: Option<&PathBuf>| count(&[], file).await.unwrap_err().to_string();
        assert!(says(None).await.contains("at least one"));
        assert!(
            says(Some(&dir.path().join("none")))
                .await
                .contains("cannot read")
        );
        std::fs::write(&file, "- {name: origin-1, address: 'https://a:1'}").unwrap();
        assert!(says(Some(&file)).await.contains("url"));
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again_and_nonsense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("origins.yaml");
        std::fs::write(&file, ONE).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (until, told) = (CancellationToken::new(), seen.clone());
        Origins::File(file.clone()).follow(&until, move |members| {
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
