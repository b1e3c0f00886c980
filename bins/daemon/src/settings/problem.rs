//! From a configuration to types, and what is told when that fails.

use std::cell::RefCell;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};
use serde_saphyr::{Error, MessageFormatter as _, UserMessageFormatter};

use super::expected::{expected, mismatch};
use super::node::{Entry, Node, Place, Value, Wrong};
use super::schema::{Schema, Shape};
use super::write::write;

/// What a configuration says, with types.
///
/// # Errors
/// The first thing that is wrong, with its place, and the key that may be meant. Values are not repeated,
/// as a secret may be among them, except by types that check their own text.
pub(super) fn typed<T: DeserializeOwned + JsonSchema>(node: &Node) -> Result<T, Wrong> {
    attempt::<T, _>(node, |found, error| found.told(error))
}

/// All that is wrong, in the order in which it is found: what is wrong is left out, and the rest looked at
/// again. At most [`MOST`] of it.
pub(super) fn all_wrong<T: DeserializeOwned + JsonSchema>(node: &Node) -> Vec<Wrong> {
    let (mut node, mut wrong) = (node.clone(), Vec::new());
    let mut gaps: Vec<Vec<Step>> = Vec::new();
    while wrong.len() < MOST {
        let tried = attempt::<T, _>(&node, |mut found, error| {
            found.steps = before(&gaps, &found.steps);
            let culprit = found.culprit(error);
            let follows = gaps.iter().any(|gap| found.follows_from(error, gap));
            let told = (!follows).then(|| found.told(error));
            (told, culprit)
        });
        let Err((told, culprit)) = tried else {
            break;
        };
        wrong.extend(told);
        if culprit.is_empty() || !node.leave_out(&after(&gaps, &culprit)) {
            break;
        }
        gaps.push(culprit);
    }
    wrong
}

/// Problems that are told at once.
const MOST: usize = 100;

fn attempt<T: DeserializeOwned + JsonSchema, E>(
    node: &Node,
    told: impl FnOnce(Found<'_>, &Error) -> E,
) -> Result<T, E> {
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
        let schema = Schema::of::<T>();
        let root = Found::root(node, schema.shape());
        let found = match path.take() {
            Some(path) => root.follow(&path),
            None => root,
        };
        told(found, error.without_snippet())
    })
}

/// One step down into a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
}

/// The steps of a key, such as `volumes[1].weight`.
fn steps(key: &str) -> impl Iterator<Item = Step> {
    key.split('.')
        .filter(|part| !part.is_empty())
        .flat_map(|part| {
            let (word, items) = part.split_at(part.find('[').unwrap_or(part.len()));
            let word = (!word.is_empty()).then(|| Step::Key(word.to_owned()));
            let items = items
                .split('[')
                .filter_map(|it| it.trim_end_matches(']').parse().ok());
            word.into_iter().chain(items.map(Step::Item))
        })
}

/// Where a key stands: its value, if that is a scalar.
///
/// # Errors
/// It is absent: where that is in which it would stand.
pub(super) fn find(root: &Node, key: &str) -> Result<Place, Place> {
    let (mut node, mut place) = (root, Place::whole(root.place.source.clone()));
    for step in steps(key) {
        let next = match (&step, &node.value) {
            (Step::Key(key), Value::Map(_)) => {
                let entry = node.entry(key);
                entry.map(|entry| (&entry.node, &entry.place))
            }
            (Step::Item(index), Value::List(items)) => {
                let item = items.get(*index);
                item.map(|item| (item, &item.place))
            }
            _ => None,
        };
        let Some((below, at)) = next else {
            return Err(place);
        };
        (node, place) = (below, at.clone());
    }
    match node.value {
        Value::Scalar { .. } if !node.is_null() => Ok(node.place.clone()),
        _ => Ok(place),
    }
}

/// Steps as they were before something was left out: items behind that have moved up.
fn before(gaps: &[Vec<Step>], steps: &[Step]) -> Vec<Step> {
    let mut whole: Vec<Step> = Vec::new();
    for step in steps {
        let mut step = step.clone();
        if let Step::Item(index) = &mut step {
            let mut gone: Vec<_> = gaps_in(gaps, &whole).collect();
            gone.sort_unstable();
            *index = gone
                .iter()
                .fold(*index, |at, gap| at + usize::from(*gap <= at));
        }
        whole.push(step);
    }
    whole
}

/// The opposite: where something is now.
fn after(gaps: &[Vec<Step>], whole: &[Step]) -> Vec<Step> {
    let steps = whole.iter().enumerate().map(|(depth, step)| match step {
        Step::Item(index) => {
            let gone = gaps_in(gaps, &whole[..depth]).filter(|gap| gap < index);
            Step::Item(index - gone.count())
        }
        key @ Step::Key(_) => key.clone(),
    });
    steps.collect()
}

/// The items of one list that were left out.
fn gaps_in<'g>(gaps: &'g [Vec<Step>], list: &'g [Step]) -> impl Iterator<Item = usize> + 'g {
    gaps.iter().filter_map(move |gap| match gap.split_last()? {
        (Step::Item(index), rest) if rest == list => Some(*index),
        _ => None,
    })
}

impl Node {
    /// Takes out what is there; says whether something was.
    fn leave_out(&mut self, steps: &[Step]) -> bool {
        let Some((last, rest)) = steps.split_last() else {
            return false;
        };
        let mut node = self;
        for step in rest {
            let next = match (step, &mut node.value) {
                (Step::Key(key), Value::Map(entries)) => {
                    let entry = entries.iter_mut().find(|entry| entry.key == *key);
                    entry.map(|entry| &mut entry.node)
                }
                (Step::Item(index), Value::List(items)) => items.get_mut(*index),
                _ => None,
            };
            let Some(next) = next else {
                return false;
            };
            node = next;
        }
        match (last, &mut node.value) {
            (Step::Key(key), _) => node.take(key).is_some(),
            (Step::Item(index), Value::List(items)) if *index < items.len() => {
                items.remove(*index);
                true
            }
            _ => false,
        }
    }
}

/// A place in a configuration by the keys that lead there.
struct Found<'n> {
    node: &'n Node,
    /// What leads to the node; nothing leads to the root and to items of lists.
    entry: Option<&'n Entry>,
    steps: Vec<Step>,
    /// What can stand there, as far as the types say.
    shape: Option<Shape<'n>>,
}

impl<'n> Found<'n> {
    const fn root(node: &'n Node, shape: Shape<'n>) -> Self {
        Self {
            node,
            entry: None,
            steps: Vec::new(),
            shape: Some(shape),
        }
    }

    /// As far as the keys lead.
    fn follow(mut self, path: &Path) -> Self {
        for segment in path {
            match (segment, &self.node.value) {
                (Segment::Seq { index }, Value::List(items)) if *index < items.len() => {
                    self.steps.push(Step::Item(*index));
                    self.shape = self.shape.and_then(Shape::item);
                    (self.node, self.entry) = (&items[*index], None);
                }
                (Segment::Map { key } | Segment::Enum { variant: key }, _) => {
                    let Some(entry) = self.node.entry(key) else {
                        break;
                    };
                    self.steps.push(Step::Key(key.clone()));
                    self.shape = self.shape.and_then(|shape| shape.key(key));
                    (self.node, self.entry) = (&entry.node, Some(entry));
                }
                _ => break,
            }
        }
        self
    }

    /// What to leave out so that the rest can be looked at.
    fn culprit(&self, error: &Error) -> Vec<Step> {
        let word = match error {
            Error::SerdeUnknownField { field, .. } => Some(field),
            Error::SerdeUnknownVariant { variant, .. } => Some(variant),
            _ => None,
        };
        let inside = word.filter(|word| self.node.entry(word).is_some());
        let inside = inside.map(|word| Step::Key(word.to_owned()));
        self.steps.iter().cloned().chain(inside).collect()
    }

    /// Whether it is only wrong because something in it was left out.
    fn follows_from(&self, error: &Error, gap: &[Step]) -> bool {
        let Some([Step::Key(gone), ..]) = gap.strip_prefix(&self.steps[..]) else {
            return false;
        };
        match error {
            Error::SerdeUnknownField { .. } => false,
            Error::SerdeMissingField { field, .. } => nearest(gone, &[field]).is_some(),
            _ => true,
        }
    }

    /// The keys, as they are told.
    fn path(&self) -> String {
        let mut path = String::new();
        for step in &self.steps {
            match step {
                Step::Item(index) => path += &format!("[{index}]"),
                Step::Key(key) if path.is_empty() => path.clone_from(key),
                Step::Key(key) => path += &format!(".{key}"),
            }
        }
        path
    }

    /// What the error says, at the key or value that it is about.
    fn told(self, error: &Error) -> Wrong {
        let (mut place, mut path) = (self.node.place.clone(), self.path());
        let what = match error {
            Error::SerdeUnknownField {
                field, expected, ..
            } => {
                (place, path) = self.unknown(field);
                unknown("key", field, expected)
            }
            Error::SerdeUnknownVariant {
                variant, expected, ..
            } => match self.node.entry(variant) {
                Some(entry) => {
                    place = entry.place.clone();
                    unknown("key", variant, expected)
                }
                None => other_word(variant, expected),
            },
            Error::SerdeMissingField { field, .. } => {
                if self.entry.is_none() && path.is_empty() {
                    place = Place::whole(place.source);
                }
                self.missing(field)
            }
            error => self.words(error),
        };
        let what: String = what.chars().filter(|c| !c.is_control()).collect();
        let what = match path.is_empty() {
            true => what,
            false => format!("{path}: {what}"),
        };
        Wrong { place, what }
    }

    /// Where an unknown key stands, and in what: the path may lead to it.
    fn unknown(&self, field: &str) -> (Place, String) {
        let here = self.entry.filter(|entry| entry.key == *field);
        let inside = self.node.entry(field);
        let mut path = self.path();
        if inside.is_none() && here.is_some() {
            path.truncate(path.rfind('.').unwrap_or(0));
        }
        let place = inside.or(here).map(|entry| &entry.place);
        (place.unwrap_or(&self.node.place).clone(), path)
    }

    fn missing(&self, field: &str) -> String {
        let goes = self.shape.and_then(|shape| shape.key(field));
        match goes.and_then(expected) {
            Some(goes) => format!("the key `{field}` is missing, which is {goes}"),
            None => format!("the key `{field}` is missing"),
        }
    }

    /// What is wrong with a value: the types say it, or what they expect.
    fn words(&self, error: &Error) -> String {
        match error {
            Error::Message { msg, .. } => msg.clone(),
            Error::ExpectedMappingEndAfterEnumVariantValue { .. } => {
                "one key says of what kind it is, and here are several: leave one of them".into()
            }
            Error::SerdeInvalidType { expected, .. }
            | Error::SerdeInvalidValue { expected, .. } => {
                mismatch(self.shape, self.node, expected)
            }
            error => {
                let words = UserMessageFormatter.format_message(error);
                mismatch(self.shape, self.node, &words)
            }
        }
    }
}

/// Says that a word is none of those that can stand there. It may be a secret that stands at the wrong place: it
/// is not repeated.
fn other_word(word: &str, known: &[&str]) -> String {
    let known_words = known.join(", ");
    match nearest(word, known) {
        Some(near) => format!("did you mean `{near}`? Here can be: {known_words}"),
        None => format!("here can be: {known_words}"),
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
