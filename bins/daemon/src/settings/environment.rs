//! Keys in variables of the environment, and in `--set` of the command line.

use super::node::{Node, Place, Source, Value, Wrong};
use super::read::read;

/// What the names of variables begin with: `KRAKEN_LIMITS__UPLOAD` is `limits.upload`.
const PREFIX: &str = "KRAKEN_";

/// Variables that mean something to the programs and their tests, but are no keys.
const OTHERS: [&str; 26] = [
    "KRAKEN_AGENT",
    "KRAKEN_BIN",
    "KRAKEN_BUILD_INDEX",
    "KRAKEN_CA",
    "KRAKEN_CA_DIR",
    "KRAKEN_CERT",
    "KRAKEN_CHART_CONFIGS",
    "KRAKEN_CHROMIUM",
    "KRAKEN_CLIENTS_INSIDE",
    "KRAKEN_GARBAGE_SECONDS",
    "KRAKEN_IMAGE",
    "KRAKEN_KEY",
    "KRAKEN_KEY_PASSWORD_FILE",
    "KRAKEN_LOGIN",
    "KRAKEN_ORIGIN",
    "KRAKEN_OUT",
    "KRAKEN_PROCESS",
    "KRAKEN_PROXY",
    "KRAKEN_REGISTRY_CA",
    "KRAKEN_REGISTRY_CERT",
    "KRAKEN_REGISTRY_KEY",
    "KRAKEN_REQUIRE_CLIENTS",
    "KRAKEN_REQUIRE_SERVERS",
    "KRAKEN_SCREENSHOTS",
    "KRAKEN_TRACKER",
    "KRAKEN_WITHOUT_PYPI",
];

/// The variables of this process that name keys, in the order of their names.
pub(super) fn variables() -> Vec<(String, String)> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        names_key(&name, &value).then_some((name, value))
    });
    let mut variables: Vec<_> = variables.collect();
    variables.sort();
    variables
}

fn names_key(name: &str, value: &str) -> bool {
    name.starts_with(PREFIX)
        && !name.starts_with("KRAKEN_TEST_")
        && !OTHERS.contains(&name)
        && !is_service_link(name, value)
}

/// Whether Kubernetes sets it for a service that is named `kraken-…`.
fn is_service_link(name: &str, value: &str) -> bool {
    let has_number = name.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
        let mut parts = rest.split('_');
        let number = parts.next().unwrap_or_default().parse::<u16>();
        number.is_ok() && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    });
    let is_port_of = |end: &str| {
        let rest = name.strip_suffix(end);
        rest.is_some_and(|rest| rest.rsplit_once("_PORT_").is_some())
    };
    has_number
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT") && value.contains("://")
        || ["_ADDR", "_PROTO", "_PORT"].into_iter().any(is_port_of)
}

/// The key of a variable, with its value.
///
/// # Errors
/// A part of the name is empty, or the value is no YAML.
pub(super) fn variable(name: &str, value: &str) -> Result<Node, Wrong> {
    let place = Place::whole(Source::Variable(name.into()));
    let key = name.strip_prefix(PREFIX).unwrap_or(name).to_lowercase();
    let keys: Vec<_> = key.split("__").collect();
    nested(&place, &keys, value)
}

/// `limits.upload=300MB` of the command line.
///
/// # Errors
/// There is no `=`, a part of the key is empty, or the value is no YAML.
pub(super) fn flag(text: &str) -> Result<Node, Wrong> {
    let Some((key, value)) = text.split_once('=') else {
        let place = Place::whole(Source::Flag("…".into()));
        return Err(Wrong::new(
            &place,
            "write KEY=VALUE, such as limits.upload=300MB",
        ));
    };
    let place = Place::whole(Source::Flag(key.into()));
    let keys: Vec<_> = key.split('.').collect();
    nested(&place, &keys, value)
}

fn nested(place: &Place, keys: &[&str], value: &str) -> Result<Node, Wrong> {
    if keys.iter().any(|key| key.is_empty()) {
        return Err(Wrong::new(place, "a part of the key is empty"));
    }
    let value = value.trim();
    // All else is the value as it is: a password may look like YAML.
    if !value.starts_with(['{', '[', '"', '\'']) {
        let text = value.to_owned();
        let value = Value::Scalar { text, plain: true };
        return Ok(Node::nested(place, keys, value));
    }
    let read = read(value, &place.source)?;
    Ok(Node::nested(place, keys, read.value))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn variables_of_others_are_left_alone() {
        for (name, value) in [
            ("KRAKEN_LOGIN", "a:b"),
            ("KRAKEN_TEST_SERVERS", "1"),
            ("HOME", "/root"),
            ("KRAKEN_TRACKER_SERVICE_HOST", "10.0.0.1"),
            ("KRAKEN_TRACKER_SERVICE_PORT_HTTP", "7601"),
            ("KRAKEN_TRACKER_PORT", "tcp://10.0.0.1:7601"),
            ("KRAKEN_TRACKER_PORT_7601_TCP", "tcp://10.0.0.1:7601"),
            ("KRAKEN_TRACKER_PORT_7601_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(!names_key(name, value), "{name}");
        }
        for name in [
            "KRAKEN_LIMITS__UPLOAD",
            "KRAKEN_STORE",
            "KRAKEN_TRACKERS_DNS__PORT",
            "KRAKEN_X",
        ] {
            assert!(names_key(name, "1"), "{name}");
        }
    }

    /// The names of variables in a text.
    fn names(text: &str) -> impl Iterator<Item = &str> {
        let starts = text.match_indices(PREFIX);
        starts.map(|(start, _)| {
            let rest = &text[start..];
            let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c == '_'));
            &rest[..end.unwrap_or(rest.len())]
        })
    }

    #[test]
    fn variables_of_the_scripts_are_left_alone() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut next = ["deploy", ".ci", "Makefile"]
            .map(|it| root.join(it))
            .to_vec();
        let mut seen = 0;
        while let Some(path) = next.pop() {
            if path.is_dir() {
                let entries = fs::read_dir(path).unwrap();
                next.extend(entries.map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = fs::read(&path).unwrap();
            for name in names(&String::from_utf8_lossy(&text)) {
                assert!(!names_key(name, "1"), "{name} in {}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn names_and_flags_lead_to_keys() {
        let node = variable("KRAKEN_LIMITS__UPLOAD", "300MB").map_err(|wrong| wrong.what);
        let upload = node.unwrap().entry("limits").unwrap().node.clone();
        let upload = upload.entry("upload").unwrap();
        assert_eq!(upload.place.to_string(), "KRAKEN_LIMITS__UPLOAD");
        let node = flag("trackers=[https://a:1, 'https://b:1']").map_err(|wrong| wrong.what);
        let trackers = node.unwrap().entry("trackers").unwrap().node.clone();
        assert!(matches!(trackers.value, Value::List(items) if items.len() == 2));
        let node = flag("password=a: {b").map_err(|wrong| wrong.what).unwrap();
        let text = &node.entry("password").unwrap().node.value;
        assert!(matches!(text, Value::Scalar { text, .. } if text == "a: {b"));
        for (wrong, says) in [
            ("limits.upload", "KEY=VALUE"),
            ("limits..upload=1", "empty"),
            ("trackers=[hunter2", "--set trackers"),
        ] {
            let wrong = flag(wrong).err().unwrap();
            let told = format!("{}: {}", wrong.place, wrong.what);
            assert!(told.contains(says) && !told.contains("hunter"), "{told}");
        }
    }
}
