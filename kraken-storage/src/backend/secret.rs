//! Passwords and keys: where they come from, and that they are never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::BackendError;

/// A secret, or where to find it. In a configuration `{file: PATH}`, `{env: NAME}` or
/// `{text: SECRET}`. It prints as nothing but that.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Secret {
    /// In a file, without the white space around it.
    File(PathBuf),
    /// In a variable of the environment.
    Env(String),
    /// Here.
    Text(String),
}

/// A secret as a configuration has it. Whatever stands there instead may be the secret itself: no
/// error repeats it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Place {
        file: Option<PathBuf>,
        env: Option<String>,
        text: Option<String>,
        #[serde(flatten)]
        more: BTreeMap<String, IgnoredAny>,
    },
    Other(IgnoredAny),
}

impl TryFrom<Written> for Secret {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, &'static str> {
        match written {
            Written::Place {
                file,
                env,
                text,
                more,
            } if more.is_empty() => match (file, env, text) {
                (Some(file), None, None) => Ok(Self::File(file)),
                (None, Some(env), None) => Ok(Self::Env(env)),
                (None, None, Some(text)) => Ok(Self::Text(text)),
                _ => Err(HOW),
            },
            Written::Place { .. } | Written::Other(_) => Err(HOW),
        }
    }
}

const HOW: &str = "a secret is {file: PATH}, {env: NAME} or {text: SECRET}";

impl Secret {
    /// The secret itself.
    ///
    /// # Errors
    /// The file or the variable is not there, or holds no text.
    pub fn reveal(&self) -> Result<String, BackendError> {
        match self {
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(text.trim().to_string()),
                Err(error) => Err(BackendError::Denied(format!(
                    "the secret in {} cannot be read: {error}",
                    path.display()
                ))),
            },
            Self::Env(name) => std::env::var(name).map_err(|_| {
                BackendError::Denied(format!("the variable {name} with the secret is not set"))
            }),
            Self::Text(text) => Ok(text.clone()),
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let text = || serde_json::json!({"type": "string"});
        schemars::json_schema!({
            "description": "A secret, or where to find it.",
            "type": "object",
            "properties": {"file": text(), "env": text(), "text": text()},
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
            "writeOnly": true,
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_and_not_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "  hunter2\n").unwrap();
        assert_eq!(Secret::File(path).reveal().unwrap(), "hunter2");
        let text = Secret::Text("hunter2".into());
        assert_eq!(text.reveal().unwrap(), "hunter2");
        assert!(!format!("{text:?}").contains("hunter2"));
        let missing = Secret::File(dir.path().join("none")).reveal().unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
        let unset = Secret::Env("KRAKEN_NO_SUCH_SECRET".into()).reveal();
        assert!(matches!(unset, Err(BackendError::Denied(_))));
    }
}
