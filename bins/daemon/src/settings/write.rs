//! YAML of a configuration: in blocks, one scalar a line.

use super::node::{Entry, Node, Value};

/// The text of a value, which reads back as the same. `note` gives the comment of a line.
pub(super) fn write(node: &Node, note: &dyn Fn(&Entry) -> Option<String>) -> String {
    let mut writer = Writer {
        text: String::new(),
        note,
    };
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => writer.map(entries, 0),
        Value::List(items) if !items.is_empty() => writer.list(items, 0),
        value => writer.inline(value, None),
    }
    writer.text
}

struct Writer<'w> {
    text: String,
    note: &'w dyn Fn(&Entry) -> Option<String>,
}

impl Writer<'_> {
    fn map(&mut self, entries: &[Entry], indent: usize) {
        for entry in entries {
            self.text += &" ".repeat(indent);
            self.text += &scalar(&entry.key, true);
            self.text.push(':');
            let note = (self.note)(entry);
            match &entry.node.value {
                Value::Map(more) if !more.is_empty() => {
                    self.end_line(note);
                    self.map(more, indent + 2);
                }
                Value::List(items) if !items.is_empty() => {
                    self.end_line(note);
                    self.list(items, indent + 2);
                }
                value => {
                    self.text.push(' ');
                    self.inline(value, note);
                }
            }
        }
    }

    fn list(&mut self, items: &[Node], indent: usize) {
        for item in items {
            let start = self.text.len();
            match &item.value {
                Value::Map(entries) if !entries.is_empty() => self.map(entries, indent + 2),
                Value::List(items) if !items.is_empty() => self.list(items, indent + 2),
                value => {
                    self.text += &" ".repeat(indent + 2);
                    self.inline(value, None);
                }
            }
            self.text.replace_range(
                start..start + indent + 2,
                &format!("{}- ", " ".repeat(indent)),
            );
        }
    }

    /// What stands behind its key.
    fn inline(&mut self, value: &Value, note: Option<String>) {
        match value {
            Value::Scalar { text, plain } => self.text += &scalar(text, *plain),
            Value::List(_) => self.text += "[]",
            Value::Map(_) => self.text += "{}",
        }
        self.end_line(note);
    }

    fn end_line(&mut self, note: Option<String>) {
        if let Some(note) = note {
            let note: String = note.chars().filter(|c| !c.is_control()).collect();
            self.text += &format!("  # {note}");
        }
        self.text.push('\n');
    }
}

/// Text that reads back as it is: plain where that is what it was and nothing in it means anything.
fn scalar(text: &str, plain: bool) -> String {
    let is_special = |c: char| "-?:,[]{}#&*!|>'\"%@`".contains(c);
    let begins_well = text.starts_with(|c: char| !is_special(c) && !c.is_whitespace())
        || text.starts_with('-') && text[1..].starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let is_safe = |c: char| !c.is_control() && !"\u{85}\u{2028}\u{2029}\u{feff}".contains(c);
    let clear = begins_well
        && !text.ends_with([':', ' '])
        && !text.contains(": ")
        && !text.contains(" #")
        && text.chars().all(is_safe);
    match (plain, clear, text) {
        (true, true, _) => text.to_owned(),
        (true, _, "" | "~") => "null".to_owned(),
        _ => quoted(text),
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted += "\\n",
            '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                quoted += &format!("\\u{:04x}", u32::from(c));
            }
            c if c.is_control() => quoted += &format!("\\u{:04x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::super::node::Source;
    use super::super::read::read;
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        for text in [
            "a: 1\nb: [x, 'y: z', {c: -1, d: []}, [[1], {}]]\ne: {f: {g: ~}}\n",
            "a: 'null'\nb: null\nc: \"tab\\there\"\nd: |\n  two\n  lines\n",
            "'a b: c': 'd #e'\nf: https://a:1/#x\ng: '@h'\nj: '- k'\nl: ' m '\n",
            "- {a: 1, b: {c: 2}}\n- - 1\n  - 2\n- ''\n",
            "a: off\nb: 1.50\nc: 0x1F\nd: -.inf\ne: '\u{feff}x\u{85}'\n",
        ] {
            let node = read(text, &Source::Text)
                .map_err(|wrong| wrong.what)
                .unwrap();
            let written = write(&node, &|_| Some("where".into()));
            let again = read(&written, &Source::Text).map_err(|wrong| wrong.what);
            assert!(node.says_the_same(&again.unwrap()), "{text}\n{written}");
        }
    }

    #[test]
    fn a_file_comes_out_as_one_would_write_it() {
        let text = "a: {b: 300MB, c: [x, {d: 1, e: 2}]}\n";
        let node = read(text, &Source::Text)
            .map_err(|wrong| wrong.what)
            .unwrap();
        let note = |entry: &Entry| Some(format!("line {}", entry.place.line));
        let lines = [
            "a:  # line 1",
            "  b: 300MB  # line 1",
            "  c:  # line 1",
            "    - x",
            "    - d: 1  # line 1",
            "      e: 2  # line 1",
            "",
        ];
        assert_eq!(write(&node, &note), lines.join("\n"));
    }
}
