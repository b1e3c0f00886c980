//! A configuration before it has types: what stands where.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::schema::Shape;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a file.
    File(Arc<Path>),
    /// In a text that has no name.
    Text,
    /// In a variable of the environment, with this name.
    Variable(Arc<str>),
    /// In a `--set` of the command line, with this key.
    Flag(Arc<str>),
    /// Nowhere: it is the default.
    Default,
}

/// A place in a source; lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) source: Source,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Place {
    /// The source as a whole.
    pub(crate) const fn whole(source: Source) -> Self {
        let (line, column) = (0, 0);
        Self {
            source,
            line,
            column,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = (self.line, self.column);
        match &self.source {
            Source::File(path) if line == 0 => write!(f, "{}", path.display()),
            Source::File(path) => write!(f, "{}:{line}:{column}", path.display()),
            Source::Text => write!(f, "line {line}, column {column}"),
            Source::Variable(name) => f.write_str(name),
            Source::Flag(key) => write!(f, "--set {key}"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// A value, and where it stands.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Clone)]
pub(crate) enum Value {
    /// Text; what it is a number or a switch of is decided by the key's type.
    Scalar {
        text: String,
        /// Without quotes, so that it may be a number, a switch, or nothing.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) const fn map(place: Place, entries: Vec<Entry>) -> Self {
        let value = Value::Map(entries);
        Self { place, value }
    }

    /// The value of `keys`, which lies as deep as there are keys.
    pub(crate) fn nested(place: &Place, keys: &[&str], value: Value) -> Self {
        let leaf = Self {
            place: place.clone(),
            value,
        };
        keys.iter().rev().fold(leaf, |node, key| {
            let entry = Entry {
                key: (*key).to_owned(),
                place: place.clone(),
                node,
            };
            Self::map(place.clone(), vec![entry])
        })
    }

    pub(crate) fn is_null(&self) -> bool {
        let Value::Scalar { text, plain: true } = &self.value else {
            return false;
        };
        ["", "~", "null", "Null", "NULL"].contains(&text.as_str())
    }

    /// The keys of a map.
    pub(crate) fn keys(&self) -> Vec<&str> {
        match &self.value {
            Value::Map(entries) => entries.iter().map(|entry| entry.key.as_str()).collect(),
            Value::Scalar { .. } | Value::List(_) => Vec::new(),
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            Value::Scalar { .. } | Value::List(_) => None,
        }
    }

    /// Takes a key out of a map.
    pub(crate) fn take(&mut self, key: &str) -> Option<Entry> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let index = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(index))
    }

    /// Whether both say the same, wherever they say it.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Value::Scalar { text: a, plain: p }, Value::Scalar { text: b, plain: q }) => {
                a == b && (p == q || !(self.is_null() || other.is_null()))
            }
            (Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.says_the_same(b))
            }
            (Value::Map(a), Value::Map(b)) => {
                let same = |entry: &Entry| {
                    let other = other.entry(&entry.key);
                    other.is_some_and(|other| other.node.says_the_same(&entry.node))
                };
                a.len() == b.len() && a.iter().all(same)
            }
            _ => false,
        }
    }

    /// Lays `over` on top: maps are merged, everything else is replaced, and nothing (`null`) takes away
    /// what was below. Of a choice, the kind above replaces another one below.
    pub(crate) fn overlay(&mut self, over: Self, shape: Option<Shape<'_>>) {
        let (below, above) = match (&mut self.value, over.value) {
            (Value::Map(below), Value::Map(above)) => (below, above),
            (_, value) => {
                let place = over.place;
                *self = Self { place, value };
                return;
            }
        };
        let is_there = |own: &Entry| above.iter().any(|other| other.key == own.key);
        if shape.is_some_and(Shape::is_choice) && above.iter().any(|it| !it.node.is_null()) {
            below.retain(is_there);
        }
        for entry in above {
            let shape = shape.and_then(|shape| shape.key(&entry.key));
            let index = below.iter().position(|other| other.key == entry.key);
            match index {
                Some(index) if entry.node.is_null() => {
                    below.remove(index);
                }
                Some(index) => {
                    let other = &mut below[index];
                    other.place = entry.place;
                    other.node.overlay(entry.node, shape);
                }
                None => below.push(entry),
            }
        }
    }
}

/// What is wrong, and where.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) place: Place,
    pub(crate) what: String,
}

impl Wrong {
    pub(crate) fn new(place: &Place, what: impl Into<String>) -> Self {
        Self {
            place: place.clone(),
            what: what.into(),
        }
    }
}
