//! `kraken tag`: what tags are and were, and how to change them by hand.

use comfy_table::Table;
use jiff::Timestamp;
use kraken_core::Digest;
use kraken_core::net::Role;
use kraken_core::net::http::HttpClient;
use kraken_core::proto::tags::record::Refusal;
use kraken_daemon::Tls;

use kraken_registry::name::{RepoName, TagName};
use kraken_registry::tags::client::{OnlyIf, TagClient, TagVersion};
use kraken_registry::tags::{LinkService as _, TagError, TagService as _};

use crate::Failure;
use crate::caller::{base_url, silence};
use crate::operator::there;

/// Tags that are asked for at once.
const PAGE: usize = 1000;

/// The tags of a cluster, by its build-indexes: the next is asked when one does not answer.
#[derive(Debug)]
pub struct Tags(TagClient);

impl Tags {
    /// Those that the build-indexes at these base URLs keep, with a certificate of the cluster when one of
    /// them is `https://…`.
    ///
    /// # Errors
    /// A URL or the certificate makes no sense.
    pub fn new(urls: &[String], tls: &Tls) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
        let bases = urls.iter().map(|url| Ok(base_url(url)?.to_string()));
        let urls: Vec<_> = bases.collect::<Result<_, Failure>>()?;
        let identity = match urls.iter().any(|url| url.starts_with("https://")) {
            true => {
                there(tls)?;
                Some(tls.identity()?)
            }
            false => None,
        };
        let http = HttpClient::new(identity.as_ref()).map_err(|error| wrong(&error))?;
        let http = http.calling(&[Role::BuildIndex]);
        let http = http.map_err(|error| wrong(&error))?;
        Ok(Self(TagClient::new(http.raw(), &urls)))
    }

    /// Tells all tags of a repository, in the order of their names.
    ///
    /// # Errors
    /// There was never such a repository, nobody could be asked, or what `tell` gives.
    pub async fn list(
        &self,
        repo: &RepoName,
        mut tell: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut last: Option<String> = None;
        loop {
            let page = self.0.list(repo, PAGE, last.as_deref()).await;
            let page = page.map_err(failed)?;
            for tag in &page {
                tell(tag)?;
            }
            let is_end = page.len() < PAGE;
            last = page.into_iter().next_back().or(last);
            if is_end {
                break;
            }
        }
        if last.is_none() && !self.0.is_known(repo).await.map_err(failed)? {
            return Err(Failure::Registry(format!("there is no repository {repo}")));
        }
        Ok(())
    }

    /// What a tag is and was, the latest first.
    ///
    /// # Errors
    /// It was never set, or nobody could be asked.
    pub async fn history(&self, name: &TagName) -> Result<Vec<TagVersion>, Failure> {
        let history = self.0.history(name).await.map_err(failed)?;
        history.ok_or_else(|| Failure::Registry(format!("there is no tag {name}, nor ever was")))
    }

    /// What a tag pointed to at a version of its history.
    ///
    /// # Errors
    /// The history has no such version, or the tag did not exist at it.
    pub async fn at_version(&self, name: &TagName, version: u64) -> Result<Digest, Failure> {
        let history = self.history(name).await?;
        let mut states = history.iter();
        let state = states.find(|state| state.number() == Some(version));
        let state = state.ok_or_else(|| {
            let what = format!("{name} has no version {version} in its history");
            Failure::Other(format!("{what}: see kraken tag history {name}"))
        })?;
        state.digest.ok_or_else(|| {
            let what = format!("{name} did not exist at version {version}");
            Failure::Other(format!("{what}: remove it with kraken tag rm"))
        })
    }

    /// Lets a tag point to an image. Whether it did not already.
    ///
    /// # Errors
    /// The condition does not hold, the tag is immutable, the image is incomplete, or nobody could be
    /// asked.
    pub async fn set(
        &self,
        name: &TagName,
        digest: Digest,
        only_if: OnlyIf,
    ) -> Result<bool, Failure> {
        let changed = self.0.change_if(name, Some(digest), only_if).await;
        changed.map_err(|error| refused(name, error))
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// It does not exist, is not at that version, or nobody could be asked.
    pub async fn remove(&self, name: &TagName, only_if: OnlyIf) -> Result<(), Failure> {
        let removed = self.0.change_if(name, None, only_if).await;
        match removed.map_err(|error| refused(name, error))? {
            true => Ok(()),
            false => Err(Failure::Registry(format!("there is no tag {name}"))),
        }
    }
}

/// A history as a table; times are in UTC.
pub fn table(history: &[TagVersion]) -> Table {
    let mut table = Table::new();
    table.set_header(["version", "time", "cluster", "digest"]);
    for state in history {
        let digest = state.digest.map(|digest| digest.to_string());
        table.add_row([
            state.version.clone(),
            time(state.time_ms),
            state.cluster.clone(),
            digest.unwrap_or_else(|| "removed".into()),
        ]);
    }
    table
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().map(Timestamp::from_millisecond);
    match time {
        Some(Ok(time)) => format!("{time:.3}"),
        _ => format!("{ms} ms since 1970"),
    }
}

fn refused(name: &TagName, error: TagError) -> Failure {
    let why = match error {
        TagError::Conflict(Refusal::Immutable) => {
            "it is immutable and points to something else; only kraken tag rm changes that".into()
        }
        TagError::Conflict(Refusal::Exists) => "it exists".into(),
        TagError::Conflict(Refusal::Unknown) => "it does not exist".into(),
        TagError::Conflict(Refusal::Changed(version)) => {
            format!("it is at version {}", version.get())
        }
        error => return failed(error),
    };
    Failure::Registry(format!("{name} stays as it is: {why}"))
}

fn failed(error: TagError) -> Failure {
    match error {
        TagError::Unavailable(reason) => {
            Failure::Away(format!("no build-index can answer: {}", silence(&reason)))
        }
        error => Failure::Registry(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_times_and_removals() {
        let state = |digest, version: &str, time_ms| TagVersion {
            digest,
            version: version.into(),
            time_ms,
            cluster: "west".into(),
        };
        let digest = Digest::of(b"image");
        let history = [
            state(None, "115343360000000001", 1_760_000_000_123),
            state(Some(digest), "7", u64::MAX),
        ];
        let text = table(&history).to_string();
        for part in [
            "115343360000000001",
            "2025-10-09T08:53:20.123Z",
            "west",
            "removed",
            &digest.to_string(),
            "18446744073709551615 ms since 1970",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
