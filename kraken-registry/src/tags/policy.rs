//! Which tags never move, and whose tags are another registry's.

use std::sync::{Arc, PoisonError, RwLock};

use regex::Regex;

use super::upstream::UpstreamRule;
use crate::name::TagName;

/// What is asked of tags beside a digest.
///
/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct TagPolicy(Arc<RwLock<Arc<Rules>>>);

#[derive(Debug, Clone, Default)]
struct Rules {
    immutable: Vec<Regex>,
    upstreams: Vec<UpstreamRule>,
}

impl TagPolicy {
    /// Tags of which one of these regular expressions matches all of `repository:tag` never point to
    /// anything else once they are set; they can be removed.
    ///
    /// # Errors
    /// A text is no regular expression.
    pub fn new<T: AsRef<str>>(
        immutable: impl IntoIterator<Item = T>,
    ) -> Result<Self, regex::Error> {
        // All of it, whichever alternative would be tried first.
        let whole = |text: T| Regex::new(&format!(r"\A(?:{})\z", text.as_ref()));
        let immutable = immutable.into_iter().map(whole).collect::<Result<_, _>>()?;
        let upstreams = Vec::new();
        let rules = Rules {
            immutable,
            upstreams,
        };
        Ok(Self(Arc::new(RwLock::new(Arc::new(rules)))))
    }

    /// Repositories whose tags are those of another registry: before one of these is told, that registry
    /// is asked as often as the first rule says that matches.
    #[must_use]
    pub fn with_upstreams(self, rules: Vec<UpstreamRule>) -> Self {
        let mut now = (*self.rules()).clone();
        now.upstreams = rules;
        Self(Arc::new(RwLock::new(Arc::new(now))))
    }

    /// Asks what another policy asks from now on, wherever this one is used.
    pub fn replace(&self, by: &Self) {
        let rules = by.rules();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    fn rules(&self) -> Arc<Rules> {
        let rules = self.0.read();
        rules.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_immutable(&self, name: &TagName) -> bool {
        let name = name.to_string();
        self.rules().immutable.iter().any(|it| it.is_match(&name))
    }

    /// The first rule about the tags of other registries that matches.
    pub(super) fn upstream(&self, name: &TagName) -> Option<UpstreamRule> {
        let rules = self.rules();
        let mut rules = rules.upstreams.iter();
        let found = rules.find(|rule| rule.repositories.is_match(name.repo().as_str()));
        found.cloned()
    }
}
