//! Who the members are: a list in the configuration, a file that is read again when it changes, or DNS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::BaseUrl;
use kraken_core::net::origin::OriginCluster;
use kraken_core::origin::RingMember;
use kraken_registry::tags::client::TagClient;
use tokio_util::sync::CancellationToken;

use crate::config::{self, OriginEntry};
use crate::dns::{DnsName, Found};
use crate::problems::Problems;
use crate::process::StartError;

/// The URL of a member of a cluster, which nobody talks to but over mutual TLS.
///
/// # Errors
/// It is none, in words.
pub(crate) fn member_url(text: &str) -> Result<BaseUrl, String> {
    let url: BaseUrl = text.parse().map_err(|error| format!("{error}"))?;
    match url.as_str().starts_with("https://") {
        true => Ok(url),
        false => Err(format!(
            "{text}: members of a cluster speak mutual TLS only, so this begins with https://"
        )),
    }
}

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Where it is said who the origins are.
#[derive(Debug, Clone)]
pub(crate) enum Origins {
    Listed(Vec<RingMember>),
    File(PathBuf),
    Dns(DnsName),
}

/// What the keys of the origins say.
pub(crate) type OriginsFrom<'c> = (&'c [OriginEntry], Option<&'c PathBuf>, Option<&'c DnsName>);
/// What the keys of the trackers or of the build-indexes say.
pub(crate) type UrlsFrom<'c> = (&'c [String], Option<&'c PathBuf>, Option<&'c DnsName>);

impl Origins {
    /// By one of the keys `origins`, `origins_file` and `origins_dns`.
    ///
    /// # Errors
    /// None or several are given, or an entry makes no sense.
    pub(crate) fn of(
        listed: &[OriginEntry],
        file: Option<&PathBuf>,
        dns: Option<&DnsName>,
    ) -> Result<Self, Problems> {
        match (listed, file, dns) {
            ([], Some(file), None) => Ok(Self::File(file.clone())),
            ([], None, Some(dns)) => {
                dns.check().map_err(|wrong| wrong.under("origins_dns"))?;
                Ok(Self::Dns(dns.clone()))
            }
            (listed, None, None) => {
                let ring = config::ring(listed);
                Ok(Self::Listed(ring.map_err(|wrong| wrong.under("origins"))?))
            }
            (_, _, dns) => Err(several("origins", dns.is_some())),
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
            Self::File(file) => Ok(read(file)?),
            Self::Dns(dns) => {
                let suits = |found: &[Found]| {
                    own.is_none_or(|own| found.iter().any(|member| member.name == own))
                };
                Ok(ring(&dns.first(suits).await?)?)
            }
        }
    }

    /// The list itself, if they are listed.
    pub(crate) fn listed(self) -> Option<Vec<RingMember>> {
        match self {
            Self::Listed(members) => Some(members),
            Self::File(_) | Self::Dns(_) => None,
        }
    }

    /// Who they are where that is written down.
    ///
    /// # Errors
    /// The file cannot be read, or an entry makes no sense.
    pub(crate) fn written(&self) -> Result<Option<Vec<RingMember>>, Problems> {
        match self {
            Self::Listed(members) => Ok(Some(members.clone())),
            Self::File(file) => read(file).map(Some),
            Self::Dns(_) => Ok(None),
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
                let following = follow(file, read, changed);
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

/// More than one key says who the members are.
fn several(key: &str, has_dns: bool) -> Problems {
    let second = if has_dns { "dns" } else { "file" };
    let what = format!("{key}, {key}_file and {key}_dns exclude each other: leave one of them");
    Problems::one(format!("{key}_{second}"), what)
}

fn read(file: &Path) -> Result<Vec<RingMember>, Problems> {
    let (origins, layers) = config::load_placed::<Vec<OriginEntry>>(file)?;
    config::ring(&origins).map_err(|wrong| wrong.located(&layers))
}

fn ring(found: &[Found]) -> Result<Vec<RingMember>, Problems> {
    let entry = |member: &Found| OriginEntry {
        name: member.name.clone(),
        url: member.url.clone(),
        weight: Default::default(),
        zone: None,
    };
    config::ring(&found.iter().map(entry).collect::<Vec<_>>())
}

async fn follow<T>(
    file: PathBuf,
    read: impl Fn(&Path) -> Result<T, Problems>,
    changed: impl Fn(T) -> Result<(), String>,
) {
    // What it says first is handed over again: it may have changed since the start.
    let mut before = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = text(&file).await;
        if now == before || now.is_none() {
            continue;
        }
        let is_first = before.is_none();
        before = now;
        let read = read(&file).map_err(|error| error.to_string());
        match read.and_then(&changed) {
            Ok(()) if is_first => {}
            Ok(()) => tracing::info!(file = %file.display(), "the members are others now"),
            Err(error) => {
                let file = file.display();
                tracing::error!(%file, error, "the members stay as they were");
            }
        }
    }
}

/// Where it is said where trackers or build-indexes are.
#[derive(Debug, Clone)]
pub(crate) enum Urls {
    Listed(Vec<String>),
    File(PathBuf),
    Dns(DnsName),
}

impl Urls {
    /// By the key `key`, or the same with `_file` or `_dns`.
    ///
    /// # Errors
    /// Several are given, or none.
    pub(crate) fn of(
        key: &str,
        listed: Vec<String>,
        file: Option<PathBuf>,
        dns: Option<DnsName>,
    ) -> Result<Self, Problems> {
        match (listed.is_empty(), file, dns) {
            (false, None, None) => Ok(Self::Listed(listed)),
            (true, Some(file), None) => Ok(Self::File(file)),
            (true, None, Some(dns)) => Ok(Self::Dns(dns)),
            (true, None, None) => {
                let what = format!("name at least one, or give {key}_file or {key}_dns");
                Err(Problems::one(key, what))
            }
            (_, _, dns) => Err(several(key, dns.is_some())),
        }
    }

    /// The list itself, if they are listed.
    ///
    /// # Errors
    /// An entry is no URL, or there twice.
    pub(crate) fn listed(self, key: &str) -> Result<Option<Vec<String>>, Problems> {
        self.check(key)?;
        match self {
            Self::Listed(urls) => Ok(Some(urls)),
            Self::File(_) | Self::Dns(_) => Ok(None),
        }
    }

    /// Whether what is written down makes sense.
    ///
    /// # Errors
    /// The file cannot be read, or an entry is no URL, or there twice.
    pub(crate) fn check(&self, key: &str) -> Result<(), Problems> {
        match self {
            Self::Listed(urls) => member_urls(urls).map_err(|wrong| wrong.under(key)),
            Self::File(file) => {
                let read = read_urls(file).map(drop);
                read.map_err(|wrong| wrong.under(&format!("{key}_file")))
            }
            Self::Dns(dns) => dns
                .check()
                .map_err(|wrong| wrong.under(&format!("{key}_dns"))),
        }
    }

    /// Where they are now; nowhere while DNS does not say, as what is here already can be served
    /// without them.
    ///
    /// # Errors
    /// The file cannot be read, or no name server can be asked, by the configuration.
    pub(crate) async fn now(&self) -> Result<Vec<String>, StartError> {
        match self {
            Self::Listed(urls) => Ok(urls.clone()),
            Self::File(file) => Ok(read_urls(file)?),
            Self::Dns(dns) => Ok(urls(dns.at_once().await?.unwrap_or_default())),
        }
    }

    fn follow(
        self,
        until: &CancellationToken,
        changed: impl Fn(Vec<String>) -> Result<(), String> + Send + Sync + 'static,
    ) {
        match self {
            Self::Listed(_) => {}
            Self::File(file) => {
                let following = follow(file, read_urls, changed);
                tokio::spawn(until.clone().run_until_cancelled_owned(following));
            }
            Self::Dns(dns) => dns.follow(until, move |found| changed(urls(found))),
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

/// The list in a file; none is a mistake.
fn read_urls(file: &Path) -> Result<Vec<String>, Problems> {
    let (urls, layers) = config::load_placed::<Vec<String>>(file)?;
    let checked = match urls.is_empty() {
        true => Err(Problems::one("", "name at least one")),
        false => member_urls(&urls),
    };
    checked.map_err(|wrong| wrong.located(&layers))?;
    Ok(urls)
}

impl Problems {
    /// Who the origins are, this one (`own`) among them. Their number, if it is known.
    pub(crate) fn of_origins(&mut self, from: OriginsFrom<'_>, own: Option<&str>) -> Option<usize> {
        let (listed, file, dns) = from;
        let origins = self.of(Origins::of(listed, file, dns))?;
        let written = origins.written();
        let members = self.of(written.map_err(|wrong| wrong.under("origins_file")))??;
        if let Some(own) = own.filter(|own| members.iter().all(|it| it.name != **own)) {
            let names: Vec<_> = members.iter().map(|it| it.name.as_str()).collect();
            let what = format!(
                "{own} is none of the origins, which are {}",
                names.join(", ")
            );
            self.add("name", what);
        }
        Some(members.len())
    }

    /// Where trackers or build-indexes are.
    pub(crate) fn of_urls(&mut self, key: &str, from: UrlsFrom<'_>) {
        let (listed, file, dns) = from;
        let urls = Urls::of(key, listed.to_vec(), file.cloned(), dns.cloned());
        if let Some(urls) = self.of(urls) {
            self.of(urls.check(key));
        }
    }
}

/// Whether each is the URL of a member, and none is there twice.
///
/// # Errors
/// With the keys inside the list.
pub(crate) fn member_urls(urls: &[String]) -> Result<(), Problems> {
    let mut found = Problems::default();
    let mut whole = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        let key = format!("[{index}]");
        if let Some(url) = found.at(&key, member_url(url)) {
            whole.push((key, url.to_string()));
        }
    }
    found.twice(whole);
    found.done(())
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
    async fn trackers_and_build_indexes_may_be_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trackers.yaml");
        let said = async |text: &str| {
            std::fs::write(&file, text).unwrap();
            let urls = Urls::of("trackers", Vec::new(), Some(file.clone()), None).unwrap();
            urls.now().await.map_err(|error| error.to_string())
        };
        let two = said("[https://a:1, 'https://b:2/']").await.unwrap();
        assert_eq!(two.len(), 2);
        assert!(said("[]").await.unwrap_err().contains("at least one"));
        assert!(said("[a]").await.is_err());
        let listed = vec!["https://a:1".to_owned()];
        let both = Urls::of("trackers", listed, Some(file.clone()), None).unwrap_err();
        assert!(both.to_string().contains("one of them"), "{both}");
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
