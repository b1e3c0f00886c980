//! The page about configurations says what the types say.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::node::{Node, Source, Value};
use super::read::read;
use super::reference::{all_keys, tables};
use super::schema::Schema;

const BEGIN: &str =
    "<!-- what follows is made by `cargo test -p kraken-daemon page`, see there -->\n";
const END: &str = "<!-- until here -->\n";
/// Set, the test writes the reference anew instead of comparing it.
const WRITE: &str = "KRAKEN_TEST_WRITE_REFERENCE";

fn processes() -> Vec<(&'static str, Schema)> {
    vec![
        ("agent", Schema::of::<crate::agent::AgentConfig>()),
        ("origin", Schema::of::<crate::origin::OriginConfig>()),
        ("tracker", Schema::of::<crate::tracker::TrackerConfig>()),
        ("proxy", Schema::of::<crate::proxy::ProxyConfig>()),
        (
            "build-index",
            Schema::of::<crate::build_index::BuildIndexConfig>(),
        ),
    ]
}

fn path() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../docs/configuration.md")
}

/// The page, around the reference in it.
fn parts(page: &str) -> (&str, &str, &str) {
    let (before, rest) = page.split_once(BEGIN).expect("the page has a reference");
    let (reference, after) = rest.split_once(END).expect("the reference has an end");
    (before, reference, after)
}

#[test]
fn the_reference_is_that_of_the_types() {
    let page = std::fs::read_to_string(path()).unwrap();
    let (before, found, after) = parts(&page);
    let expected = format!("\n{}\n", tables(&processes()));
    if std::env::var_os(WRITE).is_some() {
        let page = format!("{before}{BEGIN}{expected}{END}{after}");
        std::fs::write(path(), page).unwrap();
        return;
    }
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(
        found == expected,
        "docs/configuration.md is not what the types say: run it again with {WRITE}=1.\nThe first \
         line that differs: {differs:#?}"
    );
}

#[test]
fn every_key_on_the_page_exists() {
    let page = std::fs::read_to_string(path()).unwrap();
    let mut known = all_keys(&processes());
    known.insert("extends".into());
    let mut unknown = BTreeSet::new();
    for block in page.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap_or_default();
        let node = read(text, &Source::Text).unwrap_or_else(|wrong| {
            panic!("{}: {}\n{text}", wrong.place, wrong.what);
        });
        keys(&node, &mut |key| {
            if !known.contains(key) {
                unknown.insert(key.to_owned());
            }
        });
    }
    let (before, _, after) = parts(&page);
    for line in [before, after].into_iter().flat_map(str::lines) {
        let cell = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split('`').next());
        let Some(cell) = cell else { continue };
        let word = cell.split([':', ' ']).next().unwrap_or_default();
        let is_key = word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if is_key && !known.contains(word) {
            unknown.insert(word.to_owned());
        }
    }
    assert!(unknown.is_empty(), "no such keys: {unknown:?}");
}

fn keys(node: &Node, told: &mut impl FnMut(&str)) {
    match &node.value {
        Value::Scalar { .. } => {}
        Value::List(items) => items.iter().for_each(|item| keys(item, told)),
        Value::Map(entries) => {
            for entry in entries {
                told(&entry.key);
                keys(&entry.node, told);
            }
        }
    }
}
