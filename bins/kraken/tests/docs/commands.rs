//! The commands of `kraken` are those of docs/commands.md, and no page uses others.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use regex::Regex;

use crate::{pages, read};

fn help(command: &[&str]) -> String {
    let ran = Command::new(env!("CARGO_BIN_EXE_kraken"))
        .args(command)
        .arg("--help")
        .output();
    String::from_utf8(ran.unwrap().stdout).unwrap()
}

/// The names below `Commands:` in a help.
fn below(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names
        .filter(|it| *it != "help")
        .map(str::to_string)
        .collect()
}

/// Every command with its help: `tag`, `tag ls`.
fn commands() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for name in below(&help(&[])) {
        let text = help(&[&name]);
        for part in below(&text) {
            all.insert(format!("{name} {part}"), help(&[&name, &part]));
        }
        all.insert(name, text);
    }
    assert!(all.len() > 20, "{all:?}");
    all
}

/// What pages show as typed: lines of their blocks, and code within text that begins with `kraken`.
fn shown(page: &str) -> Vec<String> {
    let page = page.replace("\\\n", " ");
    let (mut lines, mut is_block) = (Vec::new(), false);
    let inline = Regex::new(r"`(kraken [^`]+)`").unwrap();
    let typed = Regex::new(r"(?:^|[\s;&|(/])(kraken [a-z][^#;|&)']*)").unwrap();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block || line.starts_with("    ") {
            lines.extend(typed.captures_iter(line).map(|it| it[1].to_string()));
        } else {
            lines.extend(inline.captures_iter(line).map(|it| it[1].to_string()));
        }
    }
    lines
}

/// The command that a line calls, and the flags that it gives.
fn called(line: &str) -> (Vec<&str>, Vec<&str>) {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let flags = words.iter().filter(|it| it.starts_with("--"));
    let flags = flags.map(|it| {
        it.split('=')
            .next()
            .unwrap()
            .trim_end_matches([',', '.', ':', '`', ']'])
    });
    let is_name =
        |it: &&&str| it.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !it.starts_with('-');
    let names = words.iter().take_while(is_name).take(2).copied().collect();
    (names, flags.collect())
}

/// What is wrong about a line, if anything.
fn mistake(line: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let (names, flags) = called(line);
    let [first, rest @ ..] = &names[..] else {
        return None;
    };
    // A word of the text before it, as in "the kraken repository", is no call.
    if ["command", "repository"].contains(first) {
        return None;
    }
    let Some(mut text) = known.get(*first) else {
        return Some(format!("{line:?}: there is no such command"));
    };
    let has_parts = known.keys().any(|it| it.starts_with(&format!("{first} ")));
    if let (true, [second, ..]) = (has_parts, rest) {
        match known.get(&format!("{first} {second}")) {
            Some(help) => text = help,
            None => return Some(format!("{line:?}: there is no such command")),
        }
    }
    let help = |flag: &&&str| !Regex::new(&format!(r"{flag}\b")).unwrap().is_match(text);
    let unknown = flags.iter().filter(|it| **it != "--help").find(help);
    unknown.map(|flag| format!("{line:?}: there is no {flag}"))
}

#[test]
fn commands_are_documented_and_what_is_documented_exists() {
    let known = commands();
    let page = read("docs/commands.md");
    let is_leaf = |name: &&String| !known.keys().any(|it| it.starts_with(&format!("{name} ")));
    for command in known.keys().filter(is_leaf) {
        let row = Regex::new(&format!(r"(?m)^\| `kraken {command}\b[^`]*` \|")).unwrap();
        assert!(
            row.is_match(&page),
            "docs/commands.md has no row of kraken {command}"
        );
    }
    let mut mistakes = BTreeSet::new();
    for (path, text) in pages() {
        for line in shown(&text) {
            let found = mistake(&line, &known);
            mistakes.extend(found.map(|it| format!("{}: {it}", path.display())));
        }
    }
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

#[test]
fn mistakes_in_pages_are_seen() {
    let known = commands();
    for (line, fine) in [
        ("kraken tag ls team/app", true),
        ("kraken tag list team/app", false),
        ("kraken tags", false),
        ("kraken store gc --dry-run --idle 12h", true),
        ("kraken store gc --dryrun", false),
        ("kraken store --json", false),
        ("kraken store ls --json", true),
    ] {
        assert_eq!(mistake(line, &known).is_none(), fine, "{line}");
    }
}
