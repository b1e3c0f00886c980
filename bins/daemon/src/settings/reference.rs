//! The reference of all keys in `docs/configuration.md`, as the types have them.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::schema::{Schema, Shape};

/// A key of one or several processes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    key: String,
    kind: String,
    default: String,
    text: String,
}

/// The type whose keys have a table of their own: it stands at many places, and in itself.
const STORAGE: &str = "BackendConfig";

/// Tables of the keys of all processes, and of the storages that a `backend` can be.
pub(super) fn tables(processes: &[(&str, Schema)]) -> String {
    let mut rows: Vec<(Row, Vec<&str>)> = Vec::new();
    for (name, schema) in processes {
        for row in rows_of(schema.shape(), "") {
            match rows.iter_mut().find(|(other, _)| *other == row) {
                Some((_, processes)) => processes.push(name),
                None => rows.push((row, vec![name])),
            }
        }
    }
    rows.sort();
    let mut text = "| key | of | what | default | |\n|---|---|---|---|---|\n".to_owned();
    for (row, of) in rows {
        let others = processes.iter().map(|(name, _)| *name);
        let others: Vec<_> = others.filter(|name| !of.contains(name)).collect();
        let of = match others[..] {
            [] => "all".to_owned(),
            [other] => format!("all but {other}"),
            _ => of.join(", "),
        };
        let Row {
            key,
            kind,
            default,
            text: told,
        } = row;
        text += &format!("| `{key}` | {of} | {kind} | {default} | {told} |\n");
    }
    text +=
        "\nA storage, such as `backend`, has one of these keys, which says what kind it is:\n\n";
    text += "| key | what | default | |\n|---|---|---|---|\n";
    let mut storage = processes.iter().find_map(|(_, schema)| storage(schema));
    for row in storage.take().unwrap_or_default() {
        let Row {
            key,
            kind,
            default,
            text: told,
        } = row;
        text += &format!("| `{key}` | {kind} | {default} | {told} |\n");
    }
    text
}

fn storage(schema: &Schema) -> Option<Vec<Row>> {
    let path = format!("/$defs/{STORAGE}");
    schema.json().pointer(&path)?;
    let mut rows = rows_of(schema.shape().at_type(STORAGE)?, "");
    rows.sort();
    Some(rows)
}

/// The keys at a place and below it.
fn rows_of(shape: Shape<'_>, path: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let own = shape.keys().map(|(key, at)| (key, at, shape, false));
    let of_kinds = shape.kinds().flat_map(|kind| {
        let of = move |(key, at)| (key, at, kind, true);
        kind.keys().map(of)
    });
    for (key, at, owner, is_kind) in own.chain(of_kinds) {
        let path = match path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        let told = [if is_kind { owner } else { at }, at.resolved()];
        let told = told.map(|it| it.text("description"));
        rows.push(Row {
            key: path.clone(),
            kind: kind_of(at),
            default: default_of(at, owner.requires(key) && !is_kind),
            text: cell(
                told.into_iter()
                    .find(|it| !it.is_empty())
                    .unwrap_or_default(),
            ),
        });
        let (below, path) = match at.item() {
            Some(item) => (item, format!("{path}[]")),
            None => (at, path),
        };
        if below.type_name() != Some(STORAGE) && !below.is_secret() {
            rows.extend(rows_of(below, &path));
        }
    }
    rows
}

/// What can stand at a place, in words.
fn kind_of(shape: Shape<'_>) -> String {
    if shape.type_name() == Some(STORAGE) {
        return "storage".into();
    }
    let resolved = shape.resolved();
    if resolved.is_secret() {
        return "secret".into();
    }
    let title = resolved.text("title");
    let is_whole = resolved.keys().next().is_some() || resolved.is_choice();
    if is_whole || title.is_empty() {
        return plain_kind(resolved);
    }
    title.to_owned()
}

fn plain_kind(shape: Shape<'_>) -> String {
    let words = shape.words().into_iter().map(|it| format!("`{it}`"));
    let words: Vec<_> = words.collect();
    if !words.is_empty() {
        return words.join(", ");
    }
    if let Some(item) = shape.item() {
        return format!("list of {}", kind_of(item));
    }
    let kinds = shape.word("type");
    let kinds = kinds
        .and_then(Json::as_array)
        .and_then(|all| all.first())
        .or(kinds);
    match kinds.and_then(Json::as_str) {
        Some("string") => "text".into(),
        Some("integer" | "number") => "number".into(),
        Some("boolean") => "`true`, `false`".into(),
        _ => "map".into(),
    }
}

fn default_of(shape: Shape<'_>, is_required: bool) -> String {
    // Of a key whose default is another one for each value of another key.
    if let Some(Json::Object(each)) = shape.word("x-defaults") {
        let each = each.iter().filter_map(|(of, it)| Some((of, it.as_str()?)));
        let each: Vec<_> = each.map(|(of, it)| format!("`{it}` ({of})")).collect();
        return each.join(", ");
    }
    match shape.word("default") {
        _ if is_required => "required".into(),
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) if text.is_empty() => "empty".into(),
        Some(Json::String(text)) => format!("`{text}`"),
        Some(Json::Array(items)) if items.is_empty() => String::new(),
        Some(Json::Object(_)) => String::new(),
        Some(json) => format!("`{json}`"),
    }
}

/// Text for one cell of a table.
fn cell(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

/// All keys that there are, wherever.
#[cfg(test)]
pub(super) fn all_keys(processes: &[(&str, Schema)]) -> BTreeSet<String> {
    fn collect(json: &Json, keys: &mut BTreeSet<String>) {
        match json {
            Json::Object(map) => {
                let properties = map.get("properties").and_then(Json::as_object);
                keys.extend(properties.into_iter().flat_map(|it| it.keys().cloned()));
                map.values().for_each(|json| collect(json, keys));
            }
            Json::Array(items) => items.iter().for_each(|json| collect(json, keys)),
            _ => {}
        }
    }
    let mut keys = BTreeSet::new();
    for (_, schema) in processes {
        collect(schema.json(), &mut keys);
    }
    keys
}
