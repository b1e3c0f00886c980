//! Scopes: what a client wants a token for, as the specification of the Docker project's registry
//! writes it (`repository:team/app:pull,push`, `registry:catalog:*`).

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::May;
use crate::error::{Code, RegistryError};
use crate::name::RepoName;

/// Bytes of all scopes of one request, scopes in it, and actions in one of them.
const LONGEST: usize = 8 << 10;
const MOST: usize = 32;
const MOST_ACTIONS: usize = 8;

/// The name of the repository that stands for the list of all repositories.
pub(super) const CATALOG: &str = "";

/// What is wanted of one repository, or of the list of them, which is called [`CATALOG`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) name: String,
    pub(super) may: BTreeSet<May>,
}

/// One grant of a token, in its claim `access`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

impl May {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

impl Grant {
    /// What is granted of what is wanted.
    pub(super) fn new(scope: &Scope, is_granted: impl Fn(May) -> bool) -> Option<Self> {
        let granted = scope.may.iter().filter(|may| is_granted(**may));
        let granted: Vec<_> = granted.map(|may| may.as_str().to_owned()).collect();
        if granted.is_empty() {
            return None;
        }
        Some(match scope.name.as_str() {
            CATALOG => Self {
                kind: "registry".into(),
                name: "catalog".into(),
                actions: vec!["*".into()],
            },
            name => Self {
                kind: "repository".into(),
                name: name.into(),
                actions: granted,
            },
        })
    }

    /// Whether it covers something.
    pub(super) fn covers(&self, name: &str, what: May) -> bool {
        let has = |action: &str| self.actions.iter().any(|it| it == action || it == "*");
        match name {
            CATALOG => self.kind == "registry" && self.name == "catalog" && has("*"),
            name => {
                // Some servers write what kind of image it holds behind it.
                let kind = self.kind.split('(').next().unwrap_or_default();
                kind == "repository" && self.name == name && has(what.as_str())
            }
        }
    }

    /// As a scope is written.
    pub(super) fn text(&self) -> String {
        format!("{}:{}:{}", self.kind, self.name, self.actions.join(","))
    }
}

/// The scope that a request needs, as a challenge names it.
pub(super) fn needed(name: &str, what: May) -> String {
    match (name, what) {
        (CATALOG, _) => "registry:catalog:*".into(),
        // Who pushes asks what is there.
        (name, May::Push) => format!("repository:{name}:pull,push"),
        (name, what) => format!("repository:{name}:{}", what.as_str()),
    }
}

/// Reads the scopes of a request: several parameters, of which each may hold several. What is of no kind
/// that there is here is left out.
///
/// # Errors
/// 400, with the one that makes no sense.
pub(super) fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Scope>, RegistryError> {
    let (mut scopes, mut length, mut count) = (Vec::new(), 0, 0);
    for text in texts {
        length += text.len();
        if length > LONGEST {
            return Err(bad(format!("scope: {LONGEST} bytes at most")));
        }
        for one in text.split(' ').filter(|it| !it.is_empty()) {
            count += 1;
            if count > MOST {
                return Err(bad(format!("scope: {MOST} at most for one token")));
            }
            scopes.extend(scope(one)?);
        }
    }
    Ok(scopes)
}

/// 400.
pub(super) fn bad(what: impl Into<String>) -> RegistryError {
    RegistryError::new(Code::Unsupported, what).with_status(http::StatusCode::BAD_REQUEST)
}

fn scope(text: &str) -> Result<Option<Scope>, RegistryError> {
    let shown: String = text.chars().take(64).collect();
    let wrong = |why: &str| {
        bad(format!(
            "scope {shown:?}: {why}; write repository:NAME:pull,push or registry:catalog:*"
        ))
    };
    let (kind, rest) = text.split_once(':').ok_or_else(|| wrong("no type"))?;
    // A name may hold a colon, before a port.
    let (name, actions) = rest.rsplit_once(':').ok_or_else(|| wrong("no actions"))?;
    let class = kind.split_once('(');
    let (kind, class) = class.map_or((kind, None), |(kind, class)| (kind, Some(class)));
    let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_kind = !kind.is_empty() && is_word(kind);
    let is_class = |class: &str| class.strip_suffix(')').is_some_and(is_word);
    if !is_kind || !class.is_none_or(is_class) {
        return Err(wrong("this is no type"));
    }
    let actions: Vec<_> = actions.split(',').collect();
    if actions.len() > MOST_ACTIONS || !actions.iter().all(|it| *it == "*" || is_word(it)) {
        return Err(wrong("these are no actions"));
    }
    let all = [May::Pull, May::Push, May::Delete];
    let has = |may: &May| actions.iter().any(|it| *it == "*" || *it == may.as_str());
    let may = all.into_iter().filter(has).collect();
    match (kind, name) {
        ("registry", "catalog") => {
            let name = CATALOG.to_owned();
            let may = actions.contains(&"*").then_some(May::Pull);
            Ok(Some(Scope {
                name,
                may: may.into_iter().collect(),
            }))
        }
        ("repository", name) => {
            let name = RepoName::from_str(name).map_err(|error| wrong(&error.to_string()))?;
            let name = name.as_str().to_owned();
            Ok(Some(Scope { name, may }))
        }
        _ => Ok(None),
    }
}

/// Takes a text for scopes of a request for a token.
///
/// # Panics
/// A grant of all that is wanted does not cover it, or is read as another scope.
#[cfg(feature = "fuzzing")]
pub fn fuzz(text: &str) {
    for scope in parse([text].into_iter()).into_iter().flatten() {
        let Some(grant) = Grant::new(&scope, |_| true) else {
            assert!(scope.may.is_empty());
            continue;
        };
        assert!(scope.may.iter().all(|may| grant.covers(&scope.name, *may)));
        let again = parse([grant.text().as_str()].into_iter());
        assert_eq!(again.ok(), Some(vec![scope]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<Scope>, RegistryError> {
        parse([text].into_iter())
    }

    fn of(name: &str, may: &[May]) -> Scope {
        Scope {
            name: name.into(),
            may: may.iter().copied().collect(),
        }
    }

    #[test]
    fn scopes_are_read_as_clients_write_them() {
        let all = [May::Pull, May::Push, May::Delete];
        for (text, wanted) in [
            ("", vec![]),
            ("repository:a/b:pull", vec![of("a/b", &[May::Pull])]),
            ("repository:a:pull,push", vec![of("a", &all[..2])]),
            ("repository:a:*", vec![of("a", &all)]),
            ("repository(plugin):a:pull", vec![of("a", &all[..1])]),
            ("repository:a:", vec![of("a", &[])]),
            ("repository:a:invent", vec![of("a", &[])]),
            ("registry:catalog:*", vec![of(CATALOG, &[May::Pull])]),
            ("registry:catalog:pull", vec![of(CATALOG, &[])]),
            ("registry:other:*", vec![]),
            ("secret:host:5000/x:read", vec![]),
            (
                "repository:a:pull  repository:b:push",
                vec![of("a", &[May::Pull]), of("b", &[May::Push])],
            ),
        ] {
            assert_eq!(read(text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_scope() {
        let many = "repository:a:pull ".repeat(MOST + 1);
        for wrong in [
            "repository",
            "repository:a",
            ":a:pull",
            "repository:A:pull",
            "repository:registry.example.com:5000/a:pull",
            "repository::pull",
            "repository:../a:pull",
            "repository:a:PULL",
            "repository:a:pull;push",
            "repository(:a:pull",
            "repository(x:a:pull",
            "Repository:a:pull",
            "repository:a:pull,pull,pull,pull,pull,pull,pull,pull,pull",
            &many,
            &format!("repository:a:{}", "x".repeat(LONGEST)),
        ] {
            let error = read(wrong).unwrap_err();
            assert_eq!(error.status().as_u16(), 400, "{wrong}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }

    #[test]
    fn a_grant_covers_what_it_names() {
        let all = of("a", &[May::Pull, May::Push, May::Delete]);
        let grant = Grant::new(&all, |may| may != May::Push).unwrap();
        assert_eq!(grant.text(), "repository:a:pull,delete");
        assert!(grant.covers("a", May::Pull) && grant.covers("a", May::Delete));
        assert!(!grant.covers("a", May::Push) && !grant.covers("a/b", May::Pull));
        assert!(!grant.covers(CATALOG, May::Pull));
        assert_eq!(Grant::new(&all, |_| false), None);
        let catalog = Grant::new(&of(CATALOG, &[May::Pull]), |_| true).unwrap();
        assert_eq!(catalog.text(), needed(CATALOG, May::Pull));
        assert!(catalog.covers(CATALOG, May::Pull) && !catalog.covers("catalog", May::Pull));
    }

    proptest! {
        #[test]
        fn no_scope_panics_or_names_what_is_no_repository(text in "[a-z:,()*/. A-Z0-9é]{0,60}") {
            for scope in read(&text).unwrap_or_default() {
                prop_assert!(scope.name == CATALOG || scope.name.parse::<RepoName>().is_ok());
            }
        }
    }
}
