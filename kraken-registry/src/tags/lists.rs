//! Lists of tags and repositories, out of what several owners say.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use futures::stream::{FuturesUnordered, StreamExt as _};
use kraken_proto::Digest;

use super::TagError;
use super::owner::PAGE;
use super::ring::TagRing;
use super::store::Listed;
use crate::link::{LINKS, RegisterName};

impl TagRing {
    /// Up to `n` tags whose `repository:tag` begins with `prefix`, behind `after`.
    ///
    /// # Errors
    /// Too few build-indexes answer.
    pub async fn page(
        &self,
        prefix: &str,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let mut names = self.page_registers(prefix, n, after).await?;
        // Links stand behind all tags.
        names.truncate(names.partition_point(|it| !it.0.starts_with(LINKS)));
        Ok(names.into_iter().map(|(name, _)| name).collect())
    }

    /// Up to `n` tags and links of all repositories, behind `after`, and what each points to; nothing once
    /// it was removed.
    pub(crate) async fn page_all(
        &self,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<(String, Option<Digest>)>, TagError> {
        self.page_listed("", n, after, |listed| Some((listed.name, listed.digest)))
            .await
    }

    /// Up to `n` registers whose names begin with `prefix`, behind `after`, and what each points to.
    pub(super) async fn page_registers(
        &self,
        prefix: &str,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<(String, Digest)>, TagError> {
        self.page_listed(prefix, n, after, |it| Some((it.name, it.digest?)))
            .await
    }

    /// The same of what `take` takes.
    async fn page_listed<T>(
        &self,
        prefix: &str,
        n: usize,
        after: Option<&str>,
        take: impl Fn(Listed) -> Option<T>,
    ) -> Result<Vec<T>, TagError> {
        // Of one repository its owners know all; of several, all have to be asked.
        let repo = RegisterName::repo_of(prefix);
        let view = self.view();
        let lists = view.asked();
        let (owners, enough) = match repo {
            Some(repo) => {
                let owning = view.owning(repo);
                let enough = owning.enough();
                (owning.owners, enough)
            }
            None => {
                let all = view.owners().map(|(_, owner)| owner.clone());
                (all.collect(), view.enough())
            }
        };
        let mut names = Vec::new();
        let mut after = after.map(str::to_owned);
        while names.len() < n {
            // Those that were removed are among them.
            let pages = owners
                .iter()
                .map(|owner| owner.page((prefix, &lists), PAGE, after.as_deref()));
            let pages = gather(pages, enough).await?;
            let (listed, last) = merge(pages, PAGE);
            names.extend(listed.into_iter().filter_map(&take));
            match last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        names.truncate(n);
        Ok(names)
    }

    /// Up to `n` repositories that have tags, behind `last`.
    ///
    /// # Errors
    /// Too few build-indexes answer.
    pub(super) async fn page_repositories(
        &self,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let mut names: Vec<String> = Vec::new();
        let mut after = last.map(str::to_owned);
        while names.len() < n {
            let (told, until) = self.told_repositories(after.as_deref()).await?;
            for (name, is_certain) in told {
                if names.len() == n {
                    break;
                }
                // One of its owners may have missed that its last tag was removed.
                let prefix = format!("{name}:");
                if is_certain || !self.page(&prefix, 1, None).await?.is_empty() {
                    names.push(name);
                }
            }
            match until {
                Some(until) => after = Some(until),
                None => break,
            }
        }
        Ok(names)
    }

    /// The repositories behind `after` that an owner of theirs tells of, and whether all of these that
    /// answer do; and up to which name that is all there is.
    async fn told_repositories(
        &self,
        after: Option<&str>,
    ) -> Result<(BTreeMap<String, bool>, Option<String>), TagError> {
        let view = self.view();
        let lists = &view.asked();
        let asked = view.owners().map(|(name, owner)| async move {
            let page = owner.repositories(lists, PAGE, after).await;
            page.map(|page| (name, page))
        });
        let pages = gather(asked, view.enough()).await?;
        let pages: BTreeMap<_, _> = pages.into_iter().collect();
        let ends = pages.values().filter(|page| page.len() >= PAGE);
        let until = ends.filter_map(|page| page.last()).min().cloned();
        let all = pages.values().flatten();
        let all: BTreeSet<_> = all
            .filter(|name| until.as_ref().is_none_or(|until| *name <= until))
            .collect();
        let mut told = BTreeMap::new();
        for name in all {
            let owners = view.owning(name).names;
            let answers = owners.iter().filter_map(|owner| pages.get(owner));
            let says: Vec<_> = answers
                .map(|page| page.binary_search(name).is_ok())
                .collect();
            if says.contains(&true) {
                told.insert(name.clone(), !says.contains(&false));
            }
        }
        Ok((told, until))
    }
}

/// The first `enough` answers.
pub(super) async fn gather<T>(
    asked: impl Iterator<Item = impl Future<Output = Result<T, String>>>,
    enough: usize,
) -> Result<Vec<T>, TagError> {
    let mut asked: FuturesUnordered<_> = asked.collect();
    let (mut answers, mut reasons) = (Vec::new(), Vec::new());
    while answers.len() < enough {
        match asked.next().await {
            Some(Ok(answer)) => answers.push(answer),
            Some(Err(reason)) => reasons.push(reason),
            None => return Err(TagError::Unavailable(reasons.join("; "))),
        }
    }
    Ok(answers)
}

/// What several owners say of the tags behind some name, each of them up to `asked`: of each tag the
/// latest, and up to which name that is all; `None` when it is all there is.
pub(super) fn merge(pages: Vec<Vec<Listed>>, asked: usize) -> (Vec<Listed>, Option<String>) {
    // Behind the end of a full page its owner may know more.
    let ends = pages.iter().filter(|page| page.len() >= asked);
    let until = ends
        .filter_map(|page| Some(page.last()?.name.clone()))
        .min();
    let mut latest = BTreeMap::<String, Listed>::new();
    for listed in pages.into_iter().flatten() {
        if until.as_ref().is_some_and(|until| listed.name > *until) {
            continue;
        }
        let known = latest
            .entry(listed.name.clone())
            .or_insert_with(|| listed.clone());
        if listed.accepted > known.accepted {
            *known = listed;
        }
    }
    (latest.into_values().collect(), until)
}

#[cfg(test)]
mod tests {
    use kraken_proto::tags::register::Ballot;

    use super::*;

    fn listed(name: &str, round: u64, is_set: bool) -> Listed {
        Listed {
            name: name.into(),
            accepted: Ballot { round, proposer: 1 },
            digest: is_set.then(|| Digest::of(b"it")),
        }
    }

    #[test]
    fn of_two_lists_the_later_word_counts_and_no_gap_is_left() {
        let one = vec![listed("a:1", 5, true), listed("a:4", 1, true)];
        let other = vec![
            listed("a:1", 9, false),
            listed("a:2", 2, true),
            listed("a:3", 2, true),
        ];
        let (all, until) = merge(vec![one.clone(), other.clone()], 3);
        let names: Vec<_> = all
            .iter()
            .map(|it| (&*it.name, it.digest.is_some()))
            .collect();
        assert_eq!(names, [("a:1", false), ("a:2", true), ("a:3", true)]);
        assert_eq!(until.as_deref(), Some("a:3"), "the second may know more");
        let (all, until) = merge(vec![one, other], 9);
        assert_eq!((all.len(), until), (4, None));
    }
}
