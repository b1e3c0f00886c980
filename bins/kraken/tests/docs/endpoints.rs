//! The endpoints of docs/openapi.yaml are the routes in the code.

use std::collections::BTreeSet;

use kraken_registry::Route;
use regex::Regex;
use serde_json::Value;

use crate::{files, read, root};

type Endpoints = BTreeSet<(String, String)>;

/// Paths as both sides write them: `{x}` for any parameter, and no slash behind.
fn normal(path: &str) -> String {
    let parameter = Regex::new(r"\{[^}]*\}").unwrap();
    let path = parameter.replace_all(path, "{x}");
    path.trim_end_matches('/').to_string()
}

/// What stands between the parenthesis that is open at the start of a text and its end.
fn argument(text: &str) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    panic!("no end: {text}");
}

fn methods(code: &str) -> Vec<String> {
    let method = Regex::new(r"\b(get|post|put|patch|delete|head)(?:::<[^>]*>)?\(").unwrap();
    method
        .captures_iter(code)
        .map(|it| it[1].to_string())
        .collect()
}

/// What a name stands for in a file: a variable, or a function.
fn meaning<'a>(file: &'a str, name: &str) -> &'a str {
    let variable = Regex::new(&format!(r"(?s)let {name} = (.*?);\n")).unwrap();
    let function = Regex::new(&format!(r"(?s)fn {name}\b.*?\{{(.*?)\n\}}")).unwrap();
    let found = variable.captures(file).or_else(|| function.captures(file));
    found.map_or("", |it| it.get(1).unwrap().as_str())
}

/// The routes of one file. Below `/v2/` it is the registry's own grammar that counts.
fn routes(file: &str, found: &mut Endpoints) {
    let code = file.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let path = Regex::new(r#"\A\s*"(/[^"]*)",(?s)(.*)\z"#).unwrap();
    for call in code.split(".route(").skip(1) {
        let Some(parts) = path.captures(argument(call)) else {
            continue;
        };
        if parts[1].starts_with("/v2") {
            continue;
        }
        let mut methods = methods(&parts[2]);
        if methods.is_empty() {
            let name = parts[2]
                .trim()
                .trim_end_matches(',')
                .split([':', '('])
                .next()
                .unwrap();
            methods = self::methods(meaning(code, name));
        }
        assert!(!methods.is_empty(), "no method: {}", &parts[0]);
        found.extend(methods.into_iter().map(|it| (normal(&parts[1]), it)));
    }
}

fn in_code() -> Endpoints {
    let mut found = Endpoints::new();
    for dir in [
        "kraken-core/src",
        "kraken-net/src",
        "kraken-registry/src",
        "bins/daemon/src",
    ] {
        for (path, text) in files(dir, &["rs"]) {
            if !path.ends_with("tests.rs") {
                let mut own = Endpoints::new();
                routes(&text, &mut own);
                // The console nests what its pages ask.
                let is_nested = path.ends_with("console/api.rs");
                let under = if is_nested { "/console/api" } else { "" };
                found.extend(
                    own.into_iter()
                        .map(|(at, method)| (format!("{under}{at}"), method)),
                );
            }
        }
    }
    found
}

fn documented() -> Endpoints {
    let path = root().join("docs/openapi.yaml");
    let document: Value = kraken_daemon::config::load(&path).unwrap();
    let mut found = Endpoints::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods
            .as_object()
            .unwrap()
            .keys()
            .filter(|it| *it != "parameters")
        {
            found.insert((path.clone(), method.clone()));
        }
    }
    found
}

#[test]
fn endpoints_are_documented_and_what_is_documented_exists() {
    let code = in_code();
    assert!(code.len() > 60, "{code:#?}");
    let documented: Endpoints = documented()
        .into_iter()
        .map(|(path, it)| (normal(&path), it))
        .collect();
    let documented: Endpoints = documented
        .into_iter()
        .filter(|it| !it.0.starts_with("/v2"))
        .collect();
    let missing: Vec<_> = code.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/openapi.yaml: {missing:#?}");
    let wrong: Vec<_> = documented.difference(&code).collect();
    assert!(
        wrong.is_empty(),
        "in docs/openapi.yaml, and nowhere else: {wrong:#?}"
    );
}

#[test]
fn the_registry_s_endpoints_are_those_of_its_grammar() {
    let grammar = read("kraken-registry/src/route.rs");
    let grammar = grammar
        .split("pub enum Route {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    let variant = Regex::new(r"(?m)^    ([A-Z]\w*)").unwrap();
    let variants: BTreeSet<_> = variant
        .captures_iter(grammar)
        .map(|it| it[1].to_string())
        .collect();
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut named = BTreeSet::new();
    for (path, _) in documented().iter().filter(|it| it.0.starts_with("/v2")) {
        if path == "/v2/token" {
            continue;
        }
        let path = path
            .replace("{name}", "team/app")
            .replace("{digest}", &digest);
        let path = path
            .replace("{reference}", "v1")
            .replace("{id}", "an-upload");
        let route = format!(
            "{:?}",
            Route::parse(&path).unwrap_or_else(|it| panic!("{path}: {it}"))
        );
        named.insert(route.split(['(', ' ']).next().unwrap().to_string());
    }
    assert_eq!(
        variants, named,
        "left: the grammar; right: docs/openapi.yaml"
    );
}
