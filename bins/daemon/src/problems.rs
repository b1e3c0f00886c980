//! What is wrong with a configuration: all of it at once, each with its place.
//!
//! What checks a part of a configuration names keys as they are inside that part; whoever has the part says
//! under which key it stands (`Problems::under`), and whoever has read the files, in which line
//! (`Problems::located`).

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use crate::config::ConfigError;
use crate::process::StartError;
use crate::settings::Layers;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In which file or variable, at which line, once that is known.
    at: Option<String>,
    /// At which key, such as `volumes[1].weight`; none is the whole.
    key: String,
    /// A key to point at when that one is absent.
    near: Option<String>,
    what: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All that is wrong, nothing of it twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// All of them, in the order in which they were found.
    pub fn all(&self) -> &[Problem] {
        &self.0
    }

    pub(crate) fn one(key: impl Into<String>, what: impl Display) -> Self {
        let mut found = Self::default();
        found.add(key, what);
        found
    }

    pub(crate) fn add(&mut self, key: impl Into<String>, what: impl Display) {
        self.push(Problem {
            at: None,
            key: key.into(),
            near: None,
            what: what.to_string(),
        });
    }

    /// About a key that is absent, which another one asks for.
    pub(crate) fn missing(&mut self, key: &str, near: &str, what: impl Display) {
        self.push(Problem {
            at: None,
            key: key.to_owned(),
            near: Some(near.to_owned()),
            what: what.to_string(),
        });
    }

    fn push(&mut self, problem: Problem) {
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// Keeps what went wrong; of a success what there is.
    pub(crate) fn of<T>(&mut self, result: Result<T, impl Into<Self>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                error.into().0.into_iter().for_each(|it| self.push(it));
                None
            }
        }
    }

    /// The same of an error that names no key.
    pub(crate) fn at<T>(&mut self, key: &str, result: Result<T, impl Display>) -> Option<T> {
        self.of(result.map_err(|error| Self::one(key, error)))
    }

    /// Items of a list, with their keys, of which no two may be the same.
    pub(crate) fn twice(&mut self, items: impl IntoIterator<Item = (String, String)>) {
        let mut seen = BTreeSet::new();
        for (key, item) in items {
            if seen.contains(&item) {
                self.add(key, format!("{item} is there twice: once is enough"));
            } else {
                seen.insert(item);
            }
        }
    }

    /// The same of a part that stands at `key`.
    pub(crate) fn under(mut self, key: &str) -> Self {
        let whole = |inner: &str| match inner {
            "" => key.to_owned(),
            inner if inner.starts_with('[') => format!("{key}{inner}"),
            inner => format!("{key}.{inner}"),
        };
        // What has a place already is about another file.
        for problem in self.0.iter_mut().filter(|it| it.at.is_none()) {
            problem.key = whole(&problem.key);
            problem.near = problem.near.as_deref().map(whole);
        }
        self
    }

    /// The same with the places of the keys.
    pub(crate) fn located(mut self, layers: &Layers) -> Self {
        for problem in self.0.iter_mut().filter(|it| it.at.is_none()) {
            let near = problem
                .near
                .as_deref()
                .filter(|_| !layers.has(&problem.key));
            problem.at = layers.place_of(near.unwrap_or(&problem.key));
        }
        self
    }

    /// The value, if nothing is wrong.
    ///
    /// # Errors
    /// What is.
    pub(crate) fn done<T>(self, value: T) -> Result<T, Self> {
        match self.0.is_empty() {
            true => Ok(value),
            false => Err(self),
        }
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = &self.0[..] {
            return write!(f, "the configuration is wrong: {one}");
        }
        write!(f, "the configuration is wrong in {} places:", self.0.len())?;
        self.0.iter().try_for_each(|one| write!(f, "\n  {one}"))
    }
}

impl std::error::Error for Problems {}

impl From<ConfigError> for Problems {
    fn from(error: ConfigError) -> Self {
        let (at, what) = match error {
            ConfigError::Parse { at, what } => (Some(at), what),
            ConfigError::Read { path, source } => {
                (None, format!("cannot read {}: {source}", path.display()))
            }
        };
        Self(vec![Problem {
            at,
            key: String::new(),
            near: None,
            what,
        }])
    }
}

impl From<StartError> for Problems {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Wrong(problems) => problems,
            StartError::File(error) => error.into(),
            error => Self::one("", error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_get_the_part_in_front_and_then_their_places() {
        let text = "a:\n  - {b: 1}\n  - {b: 2, c: 3}\nd: {e: 4}\n";
        let layers = Layers::of_text(text).unwrap();
        let mut found = Problems::one("[1].c", "wrong");
        found.add("", "wrong as a whole");
        found.missing("[0].c", "[0].b", "needed");
        let mut found = found.under("a");
        found.add("d.e", "wrong");
        found.add("d.f", "missing");
        found.add("g", "missing");
        let told: Vec<_> = found
            .located(&layers)
            .all()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            [
                "line 3, column 15: a[1].c: wrong",
                "line 1, column 1: a: wrong as a whole",
                "line 2, column 9: a[0].c: needed",
                "line 4, column 8: d.e: wrong",
                "line 4, column 1: d.f: missing",
                "g: missing",
            ]
        );
    }

    #[test]
    fn one_is_told_in_a_line_and_several_in_lines_of_their_own() {
        let mut found = Problems::one("a", "wrong");
        assert_eq!(found.to_string(), "the configuration is wrong: a: wrong");
        found.add("b", "wrong");
        found.add("b", "wrong");
        assert_eq!(
            found.to_string(),
            "the configuration is wrong in 2 places:\n  a: wrong\n  b: wrong"
        );
        let items = ["x", "y", "x"].iter().zip(0..);
        found.twice(items.map(|(item, at)| (format!("c[{at}]"), (*item).to_owned())));
        assert!(
            found
                .to_string()
                .ends_with("c[2]: x is there twice: once is enough")
        );
    }
}
