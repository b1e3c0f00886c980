//! What is wrong with a plan file, and where.

use std::ops::Range;

/// Why a plan file was not taken: the line, what it says, and what it should say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", self.place())]
pub struct PlanError {
    line: Option<(usize, String)>,
    what: String,
}

/// Something wrong at a place of the text.
#[derive(Debug)]
pub(super) struct Fault {
    /// Where, in bytes from the start of the text.
    pub(super) span: Range<usize>,
    /// What, and what to do.
    pub(super) what: String,
}

impl PlanError {
    /// The number of the line at fault, from 1, where there is one.
    pub fn line(&self) -> Option<usize> {
        self.line.as_ref().map(|(number, _)| *number)
    }

    pub(super) fn new(text: &str, fault: Fault) -> Self {
        Self {
            line: Some(line_at(text, fault.span.start)),
            what: fault.what,
        }
    }

    pub(super) fn parse(text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().map(|span| line_at(text, span.start));
        Self {
            line,
            what: with_hint(error.message()),
        }
    }

    fn place(&self) -> String {
        match &self.line {
            Some((number, line)) if line.is_empty() => format!("line {number}: "),
            Some((number, line)) => format!("line {number}, `{line}`: "),
            None => String::new(),
        }
    }
}

/// The most of a line that is shown, in characters.
const SHOWN: usize = 60;

/// The number of the line with this byte, and what is on it.
fn line_at(text: &str, byte: usize) -> (usize, String) {
    let before = text.get(..byte).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    let mut shown: String = line.chars().take(SHOWN).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    (number, shown)
}

/// Turns serde's "unknown field `a`, expected one of `b`, `c`" into the nearest key that exists, or
/// all of them when none is near.
fn with_hint(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field ") else {
        return message.to_owned();
    };
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<_> = quoted.collect();
    match nearest(unknown, &known) {
        Some(near) => format!("unknown key `{unknown}`, did you mean `{near}`?"),
        None => format!("unknown key `{unknown}`; here can be: {}", known.join(", ")),
    }
}

/// A word that looks like another: a third of its letters may differ, or the end be missing.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let started = known.iter().find(|it| it.starts_with(word));
    let distance = |it: &&&str| strsim::damerau_levenshtein(it, word);
    let close = known.iter().min_by_key(distance);
    let close = close.filter(|it| distance(it) <= word.len().div_ceil(3));
    close.or(started).copied()
}
