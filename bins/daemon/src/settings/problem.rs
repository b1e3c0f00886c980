//! From a configuration to types, and what is told when that fails.

use std::cell::RefCell;

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};
use serde_saphyr::{Error, MessageFormatter as _, UserMessageFormatter};

use super::node::{Entry, Node, Place, Value, Wrong};
use super::write::write;

/// What a configuration says, with types.
///
/// # Errors
/// The first thing that is wrong, with its place, and the key that may be meant. Values are not repeated,
/// as a secret may be among them, except by types that check their own text.
pub(super) fn typed<T: DeserializeOwned>(node: &Node) -> Result<T, Wrong> {
    let text = write(node, &|_| None);
    let options = serde_saphyr::options! { with_snippet: false };
    let path = RefCell::new(None);
    let read = serde_saphyr::with_deserializer_from_str_with_options(&text, options, |from| {
        serde_path_to_error::deserialize(from).map_err(|error| {
            path.replace(Some(error.path().clone()));
            error.into_inner()
        })
    });
    read.map_err(|error| {
        let found = path.take().map(|path| Found::at(node, &path));
        let found = found.unwrap_or_else(|| Found::root(node));
        found.told(error.without_snippet())
    })
}

/// A place in a configuration by the keys that lead there.
struct Found<'n> {
    node: &'n Node,
    /// What leads to the node; nothing leads to the root and to items of lists.
    entry: Option<&'n Entry>,
    path: String,
}

impl<'n> Found<'n> {
    const fn root(node: &'n Node) -> Self {
        Self {
            node,
            entry: None,
            path: String::new(),
        }
    }

    /// As far as the keys lead.
    fn at(root: &'n Node, path: &Path) -> Self {
        let mut found = Self::root(root);
        for segment in path {
            match (segment, &found.node.value) {
                (Segment::Seq { index }, Value::List(items)) if *index < items.len() => {
                    found.path += &format!("[{index}]");
                    (found.node, found.entry) = (&items[*index], None);
                }
                (Segment::Map { key } | Segment::Enum { variant: key }, _) => {
                    let Some(entry) = found.node.entry(key) else {
                        break;
                    };
                    let dot = if found.path.is_empty() { "" } else { "." };
                    found.path += &format!("{dot}{key}");
                    (found.node, found.entry) = (&entry.node, Some(entry));
                }
                _ => break,
            }
        }
        found
    }

    /// What the error says, at the key or value that it is about.
    fn told(self, error: &Error) -> Wrong {
        let mut place = self.node.place.clone();
        let mut path = self.path;
        let what = match error {
            Error::SerdeUnknownField {
                field, expected, ..
            } => {
                // The path may lead to the key that is unknown.
                let here = self.entry.filter(|entry| entry.key == *field);
                let inside = self.node.entry(field);
                if let Some(entry) = inside.or(here) {
                    place = entry.place.clone();
                }
                if inside.is_none() && here.is_some() {
                    path.truncate(path.rfind('.').unwrap_or(0));
                }
                unknown("key", field, expected)
            }
            Error::SerdeUnknownVariant {
                variant, expected, ..
            } => match self.node.entry(variant) {
                Some(entry) => {
                    place = entry.place.clone();
                    unknown("key", variant, expected)
                }
                // It may be a secret that stands at the wrong place.
                None => match nearest(variant, expected) {
                    Some(near) => format!(
                        "did you mean `{near}`? Here can be: {}",
                        expected.join(", ")
                    ),
                    None => format!("here can be: {}", expected.join(", ")),
                },
            },
            Error::SerdeMissingField { field, .. } => {
                if self.entry.is_none() && path.is_empty() {
                    place = Place::whole(place.source);
                }
                format!("the key `{field}` is missing")
            }
            Error::SerdeInvalidType {
                unexpected,
                expected,
                ..
            }
            | Error::SerdeInvalidValue {
                unexpected,
                expected,
                ..
            } => {
                let kind = unexpected.split([' ', '`']).next().unwrap_or_default();
                format!("{expected} is expected here, not a {kind}")
            }
            error => UserMessageFormatter.format_message(error).into_owned(),
        };
        let what: String = what.chars().filter(|c| !c.is_control()).collect();
        match path.is_empty() {
            true => Wrong { place, what },
            false => Wrong {
                place,
                what: format!("{path}: {what}"),
            },
        }
    }
}

/// Says that a word is none of those that can be, and which is meant, or which there are.
pub(super) fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    let word: String = word.chars().take(SHOWN).collect();
    match nearest(&word, known) {
        Some(near) => format!("unknown {what} `{word}`, did you mean `{near}`?"),
        None => format!("unknown {what} `{word}`; here can be: {}", known.join(", ")),
    }
}

/// Characters of an unknown word that are repeated.
const SHOWN: usize = 80;

/// A word that looks like another: a third of its letters may differ, or the end be missing.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let distance = |it: &&&str| strsim::damerau_levenshtein(it, &word);
    let close = known.iter().min_by_key(distance);
    let close = close.filter(|it| distance(it) <= word.chars().count().div_ceil(3));
    let begun = || {
        known
            .iter()
            .find(|it| word.len() > 2 && it.starts_with(&word))
    };
    close.or_else(begun).copied()
}
