//! Which cluster copies what to which, and who does the asking.

use kraken_registry::RepoName;

/// Where all is pushed to.
pub(crate) const EAST: usize = 0;
pub(crate) const WEST: usize = 1;
pub(crate) const SOUTH: usize = 2;
/// The names of the clusters.
pub(crate) const NAMES: [&str; 3] = ["east", "west", "south"];

/// Who connects to whom where something is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The cluster with the images sends them.
    Sent,
    /// The cluster that lacks them fetches them.
    Fetched,
}

/// Tags of repositories that begin with a prefix go from one cluster to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) prefix: &'static str,
}

/// The rules among so many clusters. In a loop the second copies back to the first.
pub(crate) fn rules(clusters: usize, is_loop: bool) -> Vec<Rule> {
    let rule = |from, to, prefix| Rule { from, to, prefix };
    let mut rules = vec![rule(EAST, WEST, "team/")];
    if is_loop {
        rules.push(rule(WEST, EAST, "team/"));
    }
    if clusters > SOUTH {
        rules.push(rule(WEST, SOUTH, "team/a"));
    }
    rules
}

/// Whether what is pushed to the first cluster is to be found in another.
pub(crate) fn reaches(rules: &[Rule], at: usize, repo: &RepoName) -> bool {
    at == EAST
        || rules.iter().any(|rule| {
            let is_taken = rule.to == at && repo.as_str().starts_with(rule.prefix);
            is_taken && reaches(rules, rule.from, repo)
        })
}
