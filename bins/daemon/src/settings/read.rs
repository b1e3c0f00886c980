//! YAML as it was written: every key and value with its place.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag,
};

use super::node::{Entry, Node, Place, Source, Value, Wrong};

/// The longest text that is read, in bytes.
pub(super) const LONGEST: u64 = 16 << 20;
/// Values in one text, what aliases stand for included.
const MOST_NODES: usize = 1 << 18;
/// Maps and lists in each other.
const DEEPEST: usize = 64;

/// Reads one document; an empty one is a map without keys.
///
/// # Errors
/// Where it is no YAML, or too much of it. Nothing of the text is repeated but keys: a secret may be in it.
pub(super) fn read(text: &str, source: &Source) -> Result<Node, Wrong> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        source,
        anchors: HashMap::new(),
        nodes: 0,
    };
    let mut document = None;
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::DocumentStart(..) if document.is_some() => {
                return Err(reader.wrong(&span, "a second document begins: one is read"));
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd => {}
            event => document = Some(reader.node(event, &span, 0)?),
        }
    }
    let place = Place::whole(source.clone());
    Ok(match document {
        Some(document) if !document.is_null() => document,
        _ => Node::map(place, Vec::new()),
    })
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    source: &'t Source,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, Wrong> {
        let source = self.source;
        let wrong = |error: ScanError| {
            let mark = error.marker();
            let place = Place {
                source: source.clone(),
                line: mark.line(),
                column: mark.col() + 1,
            };
            // What a parser says may quote the text: only the kind of it is told.
            let what = mend(error.kind()).map_or_else(|| kind(&error), str::to_owned);
            Wrong::new(&place, format!("this is no YAML: {what}"))
        };
        self.parser.next().transpose().map_err(wrong)
    }

    fn inside(&mut self) -> Result<(Event<'t>, Span), Wrong> {
        let end = Place::whole(self.source.clone());
        self.next()?
            .ok_or_else(|| Wrong::new(&end, "it ends too early"))
    }

    fn place(&self, span: &Span) -> Place {
        Place {
            source: self.source.clone(),
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }

    fn wrong(&self, span: &Span, what: &str) -> Wrong {
        Wrong::new(&self.place(span), what)
    }

    fn count(&mut self, nodes: usize, span: &Span) -> Result<(), Wrong> {
        self.nodes += nodes;
        match self.nodes > MOST_NODES {
            true => Err(self.wrong(span, "there are too many values")),
            false => Ok(()),
        }
    }

    fn node(&mut self, event: Event<'t>, span: &Span, depth: usize) -> Result<Node, Wrong> {
        if depth > DEEPEST {
            return Err(self.wrong(span, "maps and lists lie too deep in each other"));
        }
        self.count(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                self.check_tag(tag.as_deref(), "str", span)?;
                let text = text.into_owned();
                (Value::Scalar { text, plain }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", span)?;
                (self.list(depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", span)?;
                (self.map(depth)?, anchor)
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| self.wrong(span, "an alias stands for itself"))?;
                self.count(size(&node), span)?;
                return Ok(node);
            }
            _ => return Err(self.wrong(span, "a value is missing")),
        };
        let place = self.place(span);
        let node = Node { place, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn check_tag(&self, tag: Option<&Tag>, usual: &str, span: &Span) -> Result<(), Wrong> {
        match tag {
            Some(tag) if !tag.is_yaml_core_schema_tag(usual) => {
                Err(self.wrong(span, "tags (such as !this) mean nothing here"))
            }
            _ => Ok(()),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Wrong> {
        let mut items = Vec::new();
        loop {
            match self.inside()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, &span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Wrong> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.inside()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, ..) => key.into_owned(),
                _ => return Err(self.wrong(&span, "a key is a word")),
            };
            let (event, value_span) = self.inside()?;
            let node = self.node(event, &value_span, depth + 1)?;
            if key == "<<" {
                merged.push(node);
                continue;
            }
            if let Some(other) = entries.iter().find(|entry| entry.key == key) {
                let line = other.place.line;
                let what = format!("the key `{key}` stands in line {line} already");
                return Err(self.wrong(&span, &what));
            }
            let place = self.place(&span);
            entries.push(Entry { key, place, node });
        }
        merge_keys(&mut entries, merged)?;
        Ok(Value::Map(entries))
    }
}

/// Adds what `<<` refers to: a map, or several; the map's own keys win.
fn merge_keys(entries: &mut Vec<Entry>, merged: Vec<Node>) -> Result<(), Wrong> {
    for node in merged {
        match node.value {
            Value::Map(more) => {
                for entry in more {
                    if entries.iter().all(|own| own.key != entry.key) {
                        entries.push(entry);
                    }
                }
            }
            Value::List(maps) => merge_keys(entries, maps)?,
            Value::Scalar { .. } => return Err(Wrong::new(&node.place, "<< takes a map")),
        }
    }
    Ok(())
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { .. } => 1,
        Value::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Map(entries) => 1 + entries.iter().map(|it| size(&it.node)).sum::<usize>(),
    }
}

/// What to mend, for the mistakes that are made most.
const fn mend(kind: &ErrorKind) -> Option<&'static str> {
    use ErrorKind as Is;
    Some(match kind {
        Is::UnclosedQuotedScalar | Is::DocumentIndicatorInQuotedScalar => {
            "a quotation mark is opened here and closed nowhere"
        }
        Is::UnclosedFlowCollection { .. }
        | Is::UnexpectedEofFlowSequence
        | Is::UnexpectedEofFlowMapping
        | Is::UnexpectedEofImplicitFlowMapping => "a bracket is opened and closed nowhere",
        Is::MismatchedFlowCollectionEnd { .. } => "a bracket is closed by one of another kind",
        Is::MisplacedFlowCollectionEnd => "a bracket is closed here that was not opened",
        Is::ExpectedFlowMappingSeparator | Is::ExpectedFlowSequenceSeparator => {
            "between brackets there is a comma behind each entry, and the bracket's like at the end"
        }
        Is::TabNotAllowed
        | Is::TabInBlockIndentation
        | Is::TabInIndentation
        | Is::TabAtBlockScalarStart
        | Is::TabInPlainScalar => "here is a tab: indent with blanks",
        Is::InvalidIndentation
        | Is::InvalidBlockScalarIndent
        | Is::InvalidQuotedScalarIndent
        | Is::InvalidFlowScalarIndent
        | Is::ExpectedBlockMappingKey
        | Is::ExpectedBlockSequenceEntry
        | Is::BlockSequenceEntryNotAllowed
        | Is::MappingKeyNotAllowed => "the line is not indented like those that it belongs to",
        Is::MappingValueNotAllowed
        | Is::InvalidColonPlacement
        | Is::InvalidMappingValueWhitespace => {
            "here is a second colon: put text with a colon and a blank in it in quotation marks"
        }
        Is::SimpleKeyExpected | Is::InvalidSimpleKey => {
            "a key is followed by a colon and a blank, as in `key: value`"
        }
        Is::UnknownAnchor | Is::MissingAnchorOrAliasName | Is::UnexpectedCharacter { .. } => {
            "put text that begins with this character in quotation marks"
        }
        Is::UnknownQuotedScalarEscape | Is::InvalidQuotedScalarHexEscape => {
            "write a backslash twice between double quotation marks, or use single ones"
        }
        Is::InvalidTrailingSingleQuotedScalar | Is::InvalidTrailingDoubleQuotedScalar => {
            "there is more behind the closing quotation mark"
        }
        _ => return None,
    })
}

/// The parser's words, up to where they may quote.
fn kind(error: &ScanError) -> String {
    let words = error.info();
    let end = words.find(['\'', '"', '`', ':']).unwrap_or(words.len());
    words[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, key: &str) -> (usize, usize) {
        let node = read(text, &Source::Text).map_err(|wrong| wrong.what);
        let place = &node.unwrap().entry(key).unwrap().place.clone();
        (place.line, place.column)
    }

    fn refused(text: &str) -> String {
        let wrong = read(text, &Source::Text).err().unwrap();
        format!("{}: {}", wrong.place, wrong.what)
    }

    #[test]
    fn every_key_has_its_place() {
        assert_eq!(at("a: 1\n# more\n  \nb:\n  c: 2\n", "b"), (4, 1));
        assert_eq!(at("{a: 1, b: 2}", "b"), (1, 8));
        assert!(read("", &Source::Text).unwrap().entry("a").is_none());
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for (text, says) in [
            (
                "a: 1\nb: 2\na: 3",
                "line 3, column 1: the key `a` stands in line 1 already",
            ),
            ("a: 1\n---\nb: 2", "a second document"),
            ("a: !secret b", "line 1"),
            (
                "a: [1, 2",
                "no YAML: a bracket is opened and closed nowhere",
            ),
            ("a: *b", "no YAML: put text that begins with this character"),
            ("a: 'b", "no YAML: a quotation mark is opened here"),
            (
                "a:\n  b: 1\n c: 2",
                "line 3, column 2: this is no YAML: the line is not indented",
            ),
            (
                "a:\n\tb: 1",
                "line 2, column 2: this is no YAML: here is a tab",
            ),
            (
                "a: b: c",
                "line 1, column 5: this is no YAML: here is a second colon",
            ),
            (
                "a: {b: 1]",
                "line 1, column 4: this is no YAML: a bracket is closed by one",
            ),
            ("a: \"\\q\"", "no YAML: write a backslash twice"),
            ("a: @b", "no YAML: put text that begins with this character"),
            ("? [a]\n: b", "a key is a word"),
            ("a:\n  <<: b", "line 2, column 7: << takes a map"),
        ] {
            let error = refused(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn aliases_stand_for_what_they_name_within_bounds() {
        let text = "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}";
        let node = read(text, &Source::Text)
            .map_err(|wrong| wrong.what)
            .unwrap();
        let d = &node.entry("d").unwrap().node;
        assert_eq!(d.entry("b").unwrap().place.line, 1);
        assert_eq!(d.entry("c").unwrap().place.line, 2);
        let mut bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for level in 1..10 {
            let below = vec![format!("*a{}", level - 1); 8].join(", ");
            bomb += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert!(refused(&bomb).contains("too many values"));
        let deep = format!("a: {}{}", "[".repeat(70), "]".repeat(70));
        assert!(refused(&deep).contains("too deep"), "{}", refused(&deep));
    }

    #[test]
    fn no_error_repeats_a_value() {
        for text in [
            "a: {text: hunter2, ]",
            "a: 'hunter2",
            "a: \"hunter2\\q\"",
            "password: hunter2: x",
            "a: *hunter2",
            "a: !hunter2 b",
        ] {
            let error = refused(text);
            assert!(!error.contains("hunter"), "{error}");
        }
    }
}
