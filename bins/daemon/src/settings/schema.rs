//! What a configuration can say, as its types have it.

use schemars::JsonSchema;
use serde_json::Value as Json;

use super::node::{Entry, Node, Place, Source, Value};

/// The JSON schema of a type.
pub(crate) struct Schema(Json);

impl Schema {
    pub(crate) fn of<C: JsonSchema>() -> Self {
        Self(schemars::schema_for!(C).to_value())
    }

    #[cfg(test)]
    pub(crate) const fn json(&self) -> &Json {
        &self.0
    }

    /// The schema of one file, which may extend others.
    pub(crate) fn of_a_file(&self) -> Json {
        let mut schema = self.0.clone();
        let keys = schema.get_mut("properties").and_then(Json::as_object_mut);
        if let Some(keys) = keys {
            let extends = serde_json::json!({
                "description": "Files beside this one that it lies on top of.",
                "type": ["string", "array"],
                "items": {"type": "string"},
            });
            keys.insert(super::EXTENDS.into(), extends);
        }
        // What others lack stands in the files that are extended.
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("required");
        }
        schema
    }

    pub(crate) const fn shape(&self) -> Shape<'_> {
        let (root, at) = (&self.0, &self.0);
        Shape { root, at }
    }
}

/// What can stand at one place.
#[derive(Clone, Copy)]
pub(crate) struct Shape<'s> {
    root: &'s Json,
    at: &'s Json,
}

impl<'s> Shape<'s> {
    const fn to(self, at: &'s Json) -> Self {
        let root = self.root;
        Self { root, at }
    }

    /// A type by its name.
    #[cfg(test)]
    pub(crate) fn at_type(self, name: &str) -> Option<Self> {
        let at = self.root.get("$defs")?.get(name)?;
        Some(self.to(at))
    }

    /// A word about it, such as `description`.
    pub(crate) fn word(self, name: &str) -> Option<&'s Json> {
        self.at.get(name)
    }

    pub(crate) fn text(self, name: &str) -> &'s str {
        self.word(name).and_then(Json::as_str).unwrap_or_default()
    }

    /// The type that it refers to, whether it may be absent or not.
    pub(crate) fn resolved(mut self) -> Self {
        loop {
            let referred = self.at.get("$ref").and_then(Json::as_str);
            let there = referred.and_then(|path| self.root.pointer(path.trim_start_matches('#')));
            if let Some(there) = there {
                self.at = there;
                continue;
            }
            let is_something = |it: &&Json| it.get("type") != Some(&"null".into());
            let either = self.at.get("anyOf").and_then(Json::as_array);
            match either.map(|all| all.iter().filter(is_something).collect::<Vec<_>>()) {
                Some(some) if some.len() == 1 => self.at = some[0],
                _ => return self,
            }
        }
    }

    /// The name of the type that it refers to.
    #[cfg(test)]
    pub(crate) fn type_name(self) -> Option<&'s str> {
        let direct = |at: &'s Json| at.get("$ref").and_then(Json::as_str);
        let either = self.at.get("anyOf").and_then(Json::as_array);
        let path = direct(self.at).or_else(|| either?.iter().find_map(direct))?;
        path.rsplit('/').next()
    }

    pub(crate) fn may_be_absent(self) -> bool {
        let null = Json::from("null");
        let kinds = self.at.get("type").and_then(Json::as_array);
        kinds.is_some_and(|kinds| kinds.contains(&null))
            || self
                .at
                .get("anyOf")
                .and_then(Json::as_array)
                .is_some_and(|all| all.iter().any(|it| it.get("type") == Some(&null)))
    }

    /// Its keys with what stands there.
    pub(crate) fn keys(self) -> impl Iterator<Item = (&'s str, Self)> {
        let keys = self.resolved().at.get("properties");
        let keys = keys.and_then(Json::as_object).into_iter().flatten();
        keys.map(move |(key, at)| (key.as_str(), self.to(at)))
    }

    pub(crate) fn requires(self, key: &str) -> bool {
        let required = self.resolved().at.get("required").and_then(Json::as_array);
        required.is_some_and(|keys| keys.iter().any(|it| it == key))
    }

    /// What an item of a list is.
    pub(crate) fn item(self) -> Option<Self> {
        let items = self.resolved().at.get("items")?;
        Some(self.to(items))
    }

    /// The kinds that it is one of.
    pub(crate) fn kinds(self) -> impl Iterator<Item = Self> {
        let kinds = self.resolved().at.get("oneOf").and_then(Json::as_array);
        let kinds = kinds.into_iter().flatten();
        kinds.map(move |at| self.to(at))
    }

    /// The words that it is one of.
    pub(crate) fn words(self) -> Vec<&'s str> {
        let kinds = self.kinds().map(|kind| kind.text("const"));
        let words = self.resolved().at.get("enum").and_then(Json::as_array);
        let words = words.into_iter().flatten().filter_map(Json::as_str);
        kinds.chain(words).filter(|word| !word.is_empty()).collect()
    }

    /// Whether it is one of several maps with one key each, which says what kind it is.
    pub(crate) fn is_choice(self) -> bool {
        self.kinds().any(|kind| kind.keys().next().is_some())
    }

    /// What stands at a key, also of one of several kinds.
    pub(crate) fn key(self, key: &str) -> Option<Self> {
        let mut own = self.keys();
        let found = own.find_map(|(name, shape)| (name == key).then_some(shape));
        found.or_else(|| {
            let mut of_kinds = self.kinds().flat_map(Self::keys);
            of_kinds.find_map(|(name, shape)| (name == key).then_some(shape))
        })
    }

    pub(crate) fn is_secret(self) -> bool {
        self.resolved().word("writeOnly") == Some(&Json::Bool(true))
    }
}

impl Node {
    /// Adds the defaults of all keys that are absent.
    pub(super) fn add_defaults(&mut self, shape: Shape<'_>) {
        match &mut self.value {
            Value::Scalar { .. } => {}
            Value::List(items) => {
                if let Some(shape) = shape.item() {
                    items.iter_mut().for_each(|item| item.add_defaults(shape));
                }
            }
            Value::Map(entries) => {
                for entry in &mut *entries {
                    if let Some(shape) = shape.key(&entry.key) {
                        entry.node.add_defaults(shape);
                    }
                }
                for (key, at) in shape.keys() {
                    if entries.iter().all(|entry| entry.key != key) && !shape.requires(key) {
                        entries.extend(default_entry(key, at));
                    }
                }
            }
        }
    }

    /// Hides what is secret.
    pub(super) fn mask(&mut self, shape: Option<Shape<'_>>) {
        let is_secret = shape.is_some_and(Shape::is_secret);
        match &mut self.value {
            Value::Scalar { text, .. } => *text = without_login(text),
            Value::List(items) => {
                let shape = shape.and_then(Shape::item);
                items.iter_mut().for_each(|item| item.mask(shape));
            }
            Value::Map(entries) => {
                for entry in entries {
                    let hidden = Value::Scalar {
                        text: HIDDEN.to_owned(),
                        plain: false,
                    };
                    if is_secret && entry.key == "text" {
                        entry.node.value = hidden;
                    }
                    entry
                        .node
                        .mask(shape.and_then(|shape| shape.key(&entry.key)));
                }
            }
        }
    }
}

/// What stands in the place of a secret.
const HIDDEN: &str = "(hidden)";

/// A URL without the user and the password in it.
fn without_login(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
        None => text.to_owned(),
    }
}

/// Says of a default that it holds only with some values of other keys, which the key's text names. Written
/// out, it might contradict those.
const CONDITIONAL: &str = "x-conditional";

fn default_entry(key: &str, shape: Shape<'_>) -> Option<Entry> {
    if shape.word(CONDITIONAL) == Some(&Json::Bool(true)) {
        return None;
    }
    let place = Place::whole(Source::Default);
    let mut node = match shape.word("default") {
        Some(default) => node_of(default)?,
        None if shape.may_be_absent() => return None,
        None => Node::map(place.clone(), Vec::new()),
    };
    node.add_defaults(shape);
    let is_empty = matches!(&node.value, Value::Map(entries) if entries.is_empty());
    (!is_empty).then(|| Entry {
        key: key.to_owned(),
        place,
        node,
    })
}

/// A default; nothing of what is null.
fn node_of(json: &Json) -> Option<Node> {
    let place = Place::whole(Source::Default);
    let value = match json {
        Json::Null => return None,
        Json::Bool(_) | Json::Number(_) => Value::Scalar {
            text: json.to_string(),
            plain: true,
        },
        Json::String(text) => Value::Scalar {
            text: text.clone(),
            plain: means_itself(text),
        },
        Json::Array(items) => Value::List(items.iter().filter_map(node_of).collect()),
        Json::Object(keys) => {
            let entries = keys.iter().filter_map(|(key, json)| {
                let (key, place) = (key.clone(), place.clone());
                node_of(json).map(|node| Entry { key, place, node })
            });
            Value::Map(entries.collect())
        }
    };
    Some(Node { place, value })
}

/// Whether text is the same with and without quotes.
fn means_itself(text: &str) -> bool {
    let switches = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let is_number = text.parse::<f64>().is_ok() || text.starts_with("0x") || text.starts_with("0o");
    let is_word = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    is_word && !is_number && !switches.contains(&text.to_lowercase().as_str())
}
