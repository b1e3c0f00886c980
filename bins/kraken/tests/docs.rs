//! The documentation names what exists, and what exists is documented: metrics, commands, endpoints.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/endpoints.rs"]
mod endpoints;
#[path = "docs/metrics.rs"]
mod metrics;
#[path = "docs/openmetrics.rs"]
mod openmetrics;

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files with one of some endings below a directory, with their texts.
fn files(dir: &str, endings: &[&str]) -> Vec<(PathBuf, String)> {
    let (mut found, mut dirs) = (Vec::new(), vec![root().join(dir)]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let ending = path.extension().and_then(|it| it.to_str());
            if path.is_dir() {
                dirs.push(path);
            } else if ending.is_some_and(|it| endings.contains(&it)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "nothing in {dir}");
    found
}

/// The README and all pages of `docs/`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = files("docs", &["md"]);
    pages.push(("README.md".into(), read("README.md")));
    pages.extend(files("deploy", &["md"]));
    pages
}

#[test]
fn links_between_pages_lead_somewhere() {
    let link = regex::Regex::new(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)").unwrap();
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        let path = root().join(path);
        for found in link.captures_iter(&text) {
            let target = path.parent().unwrap().join(&found[1]);
            let heading = found.get(2).map(|it| it.as_str().trim_start_matches('#'));
            let there = target.exists()
                && heading.is_none_or(|it| headings(&target).contains(&it.to_string()));
            if !there {
                wrong.push(format!("{}: {}", path.display(), &found[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What headings are called in links.
fn headings(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let lines = text.lines().filter(|it| it.starts_with('#'));
    let name = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
        kept.collect::<String>().replace(' ', "-")
    };
    lines.map(name).collect()
}
