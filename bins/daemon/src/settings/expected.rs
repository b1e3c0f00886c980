//! What can stand at a place, in plain words: for whoever wrote something else there.

use serde_json::Value as Json;

use super::node::{Node, Value};
use super::schema::Shape;

/// Keys of a map that are named, at most.
const NAMED: usize = 6;

/// Says that something else is expected than what is there. `words` are told where the types have none.
pub(super) fn mismatch(shape: Option<Shape<'_>>, node: &Node, words: &str) -> String {
    let expected = shape.and_then(expected);
    let expected = expected.as_deref().unwrap_or(words);
    match found(node) {
        None => format!("{expected} is expected here, and there is nothing"),
        // One that is too large, or has a fraction.
        Some("a number") if expected.contains("number") => format!("{expected} is expected here"),
        Some(found) => format!("{expected} is expected here, not {found}"),
    }
}

/// What is expected at a place, such as "a rate such as `300MB/s`"; nothing when the types do not say.
pub(super) fn expected(shape: Shape<'_>) -> Option<String> {
    let shape = shape.resolved();
    if shape.is_secret() {
        return Some("a secret ({file: PATH}, {env: NAME} or {text: SECRET})".into());
    }
    if shape.is_choice() {
        let kinds: Vec<_> = shape.kinds().flat_map(Shape::keys).collect();
        let kinds: Vec<_> = kinds.iter().map(|(key, _)| *key).collect();
        return Some(format!("a map with one of the keys {}", kinds.join(", ")));
    }
    let words = shape.words();
    if !words.is_empty() {
        let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        return Some(format!("one of {}", words.join(", ")));
    }
    if let Some(keys) = keys(shape) {
        return Some(format!("a map of keys ({keys})"));
    }
    if !shape.text("title").is_empty() {
        return Some(titled(shape));
    }
    if let Some(item) = shape.item() {
        return Some(match keys(item) {
            Some(keys) => format!("a list of maps ({keys})"),
            None => "a list".into(),
        });
    }
    plain(shape)
}

/// The keys of a map, those that it must have in front.
fn keys(shape: Shape<'_>) -> Option<String> {
    let mut keys: Vec<_> = shape.keys().map(|(key, _)| key).collect();
    keys.sort_by_key(|key| !shape.requires(key));
    let more = if keys.len() > NAMED { ", …" } else { "" };
    keys.truncate(NAMED);
    (!keys.is_empty()).then(|| keys.join(", ") + more)
}

/// A type that has a name, with an example.
fn titled(shape: Shape<'_>) -> String {
    let title = shape.text("title");
    let is_complete = title.starts_with("a ") || title.starts_with('`') || title.contains(':');
    let article = match title.chars().next() {
        _ if is_complete || title.ends_with('s') => "",
        Some('a' | 'e' | 'i' | 'o' | 'u') => "an ",
        _ => "a ",
    };
    let example = shape.word("examples").and_then(|all| all.get(0)?.as_str());
    match example {
        Some(example) => format!("{article}{title} such as `{example}`"),
        None => format!("{article}{title}"),
    }
}

fn plain(shape: Shape<'_>) -> Option<String> {
    let kinds = shape.word("type");
    let first = kinds.and_then(Json::as_array).and_then(|all| all.first());
    let kind = first.or(kinds).and_then(Json::as_str);
    let bound = |name: &str| shape.word(name).and_then(Json::as_u64);
    Some(match kind? {
        "string" => "text".into(),
        "boolean" => "`true` or `false`".into(),
        "number" => "a number".into(),
        "integer" => match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            (Some(least), None) => format!("a whole number, {least} or more,"),
            (None, _) => "a whole number".into(),
        },
        "array" => "a list".into(),
        "object" => "a map of keys".into(),
        _ => return None,
    })
}

/// What is there: nothing, when it is `null`. No value is repeated.
fn found(node: &Node) -> Option<&'static str> {
    match &node.value {
        _ if node.is_null() => None,
        Value::List(_) => Some("a list"),
        Value::Map(_) => Some("a map of keys"),
        Value::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => Some("a number"),
        Value::Scalar { .. } => Some("text"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::Source;
    use super::super::read::read;
    use super::super::schema::Schema;
    use super::*;
    use crate::origin::OriginConfig;

    fn node(text: &str) -> Node {
        let read = read(text, &Source::Text).map_err(|wrong| wrong.what);
        read.unwrap()
    }

    #[test]
    fn every_key_says_in_words_what_it_expects() {
        let schema = Schema::of::<OriginConfig>();
        let of = |key: &str| {
            let mut keys = key.split('.');
            keys.try_fold(schema.shape(), |shape, key| match key {
                "[]" => shape.item(),
                key => shape.key(key),
            })
        };
        for (key, words) in [
            ("store", "text"),
            ("replicas", "a whole number, 0 or more,"),
            ("limits", "a map of keys (download, upload)"),
            ("limits.upload", "a rate such as `300MB/s`"),
            ("heal.after", "a time such as `60s`"),
            ("transport", "one of `quic`, `tcp`, `auto`"),
            ("peer_listen", "IP:PORT such as `0.0.0.0:7603`"),
            ("origins", "a list of maps (name, url, weight, zone)"),
            ("origins.[].weight", "a number"),
            ("quic_mtu", "a whole number from 1200 to 9000"),
            (
                "backend",
                "a map with one of the keys local_disk, s3, gcs, azure, webhdfs, http, registry, shadow, noop, \
                 memory",
            ),
            (
                "backend.s3.secret_access_key",
                "a secret ({file: PATH}, {env: NAME} or {text: SECRET})",
            ),
            (
                "tls",
                "a map of keys (ca, cert, key, crl, key_password, roles)",
            ),
            ("tls.roles", ""),
        ] {
            let told = expected(of(key).unwrap()).unwrap_or_default();
            assert_eq!(told, words, "{key}");
        }
    }

    #[test]
    fn what_is_there_is_named_without_repeating_it() {
        for (text, words) in [
            ("[a]", "x is expected here, not a list"),
            ("{a: 1}", "x is expected here, not a map of keys"),
            ("hunter2", "x is expected here, not text"),
            ("17", "x is expected here, not a number"),
            ("'17'", "x is expected here, not text"),
        ] {
            assert_eq!(mismatch(None, &node(text), "x"), words);
        }
        let nothing = node("a:").take("a").unwrap().node;
        let told = mismatch(None, &nothing, "x");
        assert_eq!(told, "x is expected here, and there is nothing");
    }
}
