//! The page about configurations says what the types say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::Sources;
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

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn path() -> PathBuf {
    root().join("docs/configuration.md")
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
fn defaults_are_those_of_the_types_and_in_the_schema() {
    let page = std::fs::read_to_string(path()).unwrap();
    let (_, reference, _) = parts(&page);
    let schemas = processes();
    for (process, key, default) in [
        ("agent", "eviction.high", "95%"),
        ("agent", "eviction.low", "90%"),
        ("agent", "log", "info"),
        ("agent", "preload.namespace", "k8s.io"),
        ("agent", "preload.hosts_dir", "/etc/containerd/certs.d"),
        ("agent", "preload.timeout", "1h"),
        ("origin", "heal.after", "1m"),
        ("origin", "heal.rate", "100MB/s"),
        ("origin", "backends[].layout", "sharded"),
        ("build-index", "name", "build-index-1"),
        ("build-index", "sources[].every", "10m"),
    ] {
        let (_, schema) = schemas.iter().find(|(name, _)| *name == process).unwrap();
        let shape = key.split('.').fold(schema.shape(), |shape, key| {
            let found = shape.key(key.trim_end_matches("[]")).unwrap();
            if key.ends_with("[]") {
                found.item().unwrap()
            } else {
                found
            }
        });
        let told = shape.word("default").and_then(|it| it.as_str());
        assert_eq!(told, Some(default), "{key}");
        let mut rows = reference
            .lines()
            .filter(|row| row.starts_with(&format!("| `{key}` |")));
        let has = |row: &str| row.contains(process) || row.contains("| all |");
        let row = rows.find(|row| has(row)).unwrap();
        assert!(row.contains(&format!("| `{default}` |")), "{row}");
        assert!(!row.contains("when absent"), "{row}");
    }
    let both = "`/run/containerd/containerd.sock` (containerd), `/run/docker.sock` (docker)";
    assert!(reference.contains(both));
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

/// The blocks of a page that are configurations, with their lines: those in "```yaml". Behind that word stands
/// whose a block is that another program reads, such as "```yaml collector".
fn configurations(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() == "```yaml" {
            let block = lines.by_ref().map(|(_, line)| line);
            let block: Vec<_> = block.take_while(|line| line.trim() != "```").collect();
            blocks.push((number + 1, block.join("\n")));
        }
    }
    blocks
}

/// Reads a part of a configuration over the one that ships for a process.
fn taken_by<T: DeserializeOwned + JsonSchema>(role: &str, part: &Path) -> Result<(), String> {
    let whole = root().join(format!("deploy/config/{role}.yaml"));
    let sources = Sources::files(vec![whole, part.to_path_buf()]);
    let taken = sources.load::<T>().map(drop);
    taken.map_err(|error| format!("{role}: {error}"))
}

#[test]
fn every_configuration_in_the_pages_is_taken_by_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("part.yaml");
    let mut count = 0;
    for page in std::fs::read_dir(root().join("docs")).unwrap() {
        let page = page.unwrap().path();
        if page.extension() != Some("md".as_ref()) {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for (line, block) in configurations(&text) {
            count += 1;
            std::fs::write(&part, &block).unwrap();
            let answers = [
                taken_by::<crate::agent::AgentConfig>("agent", &part),
                taken_by::<crate::origin::OriginConfig>("origin", &part),
                taken_by::<crate::tracker::TrackerConfig>("tracker", &part),
                taken_by::<crate::proxy::ProxyConfig>("proxy", &part),
                taken_by::<crate::build_index::BuildIndexConfig>("build-index", &part),
            ];
            let is_taken = answers.iter().any(Result::is_ok);
            let page = page.display();
            assert!(is_taken, "{page}:{line}: nobody takes it: {answers:#?}");
        }
    }
    assert!(count >= 20, "only {count} blocks were found");
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
