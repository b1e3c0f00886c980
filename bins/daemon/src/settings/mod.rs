//! Where a process gets its configuration from: files on top of each other, variables of the environment,
//! and the command line.
//!
//! | file | |
//! |---|---|
//! | `node` | what stands where, before it has types |
//! | `read`, `write` | YAML |
//! | `environment` | variables and `--set` |
//! | `problem` | from there to types, and what is told when that fails |
//! | `expected` | what should stand where something else does, in words |
//! | `schema` | what can stand where, by the types |
//! | `reference` | tables of all keys, for the documentation |

mod environment;
mod expected;
#[cfg(test)]
mod mistakes;
mod node;
#[cfg(test)]
mod page;
mod problem;
mod read;
#[cfg(test)]
mod reference;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

pub(crate) use self::schema::Schema;

use self::node::{Node, Place, Source, Value, Wrong};
use crate::config::ConfigError;
use crate::problems::Problems;

/// Files that a configuration may consist of.
const MOST_FILES: usize = 64;
/// Files that extend each other in a row.
const LONGEST_CHAIN: usize = 16;
/// The key of a file that names what it lies on top of.
const EXTENDS: &str = "extends";

/// Where a configuration comes from. Later layers win: files in their order, each on top of those that it
/// extends, then variables of the environment, then what the command line sets.
#[derive(Clone, Default)]
pub struct Sources {
    files: Vec<PathBuf>,
    variables: Vec<(String, String)>,
    flags: Vec<String>,
}

impl Sources {
    /// Files, what the command line sets (`limits.upload=300MB`), and the environment of this process.
    pub fn new(files: Vec<PathBuf>, flags: Vec<String>) -> Self {
        Self {
            files,
            variables: environment::variables(),
            flags,
        }
    }

    /// Only these files, whatever the environment says.
    pub fn files(files: Vec<PathBuf>) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    /// What all layers together say.
    ///
    /// # Errors
    /// [`ConfigError`] with the file, the line and what is wrong there.
    pub fn load<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, ConfigError> {
        let layers = self.layers(&Schema::of::<T>())?;
        tracing::debug!(files = ?layers.files, "the configuration is read");
        layers.typed()
    }

    /// All layers on top of each other.
    pub(crate) fn layers(&self, schema: &Schema) -> Result<Layers, ConfigError> {
        let shape = Some(schema.shape());
        let mut reading = Reading {
            files: Vec::new(),
            chain: Vec::new(),
            schema,
        };
        let mut layers = Vec::new();
        for file in &self.files {
            layers.push(reading.file(file)?);
        }
        for (name, value) in &self.variables {
            layers.push(environment::variable(name, value)?);
        }
        for flag in &self.flags {
            layers.push(environment::flag(flag)?);
        }
        // What is missing is missing in the last file.
        let last = self.files.last();
        let last = last.map_or(Source::Text, |file| Source::File(file.as_path().into()));
        let mut layers = layers.into_iter();
        let mut node = layers.next().unwrap_or_else(|| {
            let nothing = Vec::new();
            Node::map(Place::whole(last.clone()), nothing)
        });
        layers.for_each(|layer| node.overlay(layer, shape));
        node.place = Place::whole(last);
        Ok(Layers {
            node,
            files: reading.files,
        })
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        let names: Vec<_> = self.variables.iter().map(|(name, _)| name).collect();
        let keys = self.flags.iter().map(|flag| flag.split('=').next());
        let keys: Vec<_> = keys.collect();
        f.debug_struct("Sources")
            .field("files", &self.files)
            .field("variables", &names)
            .field("flags", &keys)
            .finish()
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, file) in self.files.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", file.display())?;
        }
        Ok(())
    }
}

/// A configuration before it has types.
pub(crate) struct Layers {
    node: Node,
    /// All files that were read.
    files: Vec<PathBuf>,
}

impl Layers {
    /// A single text.
    #[cfg(test)]
    pub(crate) fn of_text(text: &str) -> Result<Self, ConfigError> {
        let node = read::read(text, &Source::Text)?;
        let files = Vec::new();
        Ok(Self { node, files })
    }

    /// All files that were read.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Looks at the files of another one from now on.
    pub(crate) fn follow_files_of(&mut self, other: &Self) {
        self.files.clone_from(&other.files);
    }

    /// The keys whose values are not those of another one.
    pub(crate) fn differs_in(&self, other: &Self) -> Vec<String> {
        let keys = [&self.node, &other.node].map(Node::keys);
        let keys: BTreeSet<_> = keys.into_iter().flatten().collect();
        let is_same = |key: &str| match (self.node.entry(key), other.node.entry(key)) {
            (Some(a), Some(b)) => a.node.says_the_same(&b.node),
            (a, b) => a.is_none() && b.is_none(),
        };
        let differ = keys.into_iter().filter(|key| !is_same(key));
        differ.map(str::to_owned).collect()
    }

    /// Takes over what another one says of these keys.
    pub(crate) fn take_over(&mut self, keys: &[&str], other: &Self) {
        for key in keys {
            drop(self.node.take(key));
            let entry = other.node.entry(key).cloned();
            if let (Some(entry), Value::Map(entries)) = (entry, &mut self.node.value) {
                entries.push(entry);
            }
        }
    }

    /// The whole as YAML: with defaults, where each value comes from, and without secrets.
    pub(crate) fn text(mut self, schema: &Schema) -> String {
        self.node.add_defaults(schema.shape());
        self.node.mask(Some(schema.shape()));
        write::write(&self.node, &|entry| match &entry.node.value {
            Value::Map(entries) if !entries.is_empty() => None,
            _ => Some(entry.place.to_string()),
        })
    }

    pub(crate) fn typed<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, ConfigError> {
        Ok(problem::typed(&self.node)?)
    }

    /// The same, or all that keeps it from having types.
    pub(crate) fn typed_or_all<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, Problems> {
        self.typed().map_err(|first| {
            let mut found = Problems::default();
            for wrong in problem::all_wrong::<T>(&self.node) {
                found.of(Err::<(), _>(ConfigError::from(wrong)));
            }
            found.done(()).err().unwrap_or_else(|| first.into())
        })
    }

    /// Whether a key such as `volumes[1].weight` is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        problem::find(&self.node, key).is_ok()
    }

    /// Where a key stands, or what is above it when it is absent; nowhere in particular when nothing is known.
    pub(crate) fn place_of(&self, key: &str) -> Option<String> {
        let place = problem::find(&self.node, key).unwrap_or_else(|above| above);
        (place != Place::whole(Source::Text)).then(|| place.to_string())
    }
}

/// Reads files and what they extend.
struct Reading<'s> {
    schema: &'s Schema,
    files: Vec<PathBuf>,
    /// Those that extend each other, up to where it is.
    chain: Vec<PathBuf>,
}

impl Reading<'_> {
    fn file(&mut self, path: &Path) -> Result<Node, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.to_path_buf(),
            source,
        };
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        let source = Source::File(path.into());
        let whole = Place::whole(source.clone());
        if size > read::LONGEST {
            let most = read::LONGEST >> 20;
            return Err(Wrong::new(&whole, format!("it is longer than {most} MiB")).into());
        }
        self.files.push(path.to_path_buf());
        if self.files.len() > MOST_FILES {
            let what = format!("these are more than {MOST_FILES} files");
            return Err(Wrong::new(&whole, what).into());
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut node = read::read(&text, &source)?;
        let Some(extends) = node.take(EXTENDS) else {
            return Ok(node);
        };
        let is_itself = path.canonicalize().map_err(unreadable)?;
        if self.chain.contains(&is_itself) {
            return Err(Wrong::new(&extends.place, "extends: it extends itself in the end").into());
        }
        if self.chain.len() == LONGEST_CHAIN {
            let what = format!("extends: more than {LONGEST_CHAIN} files extend each other");
            return Err(Wrong::new(&extends.place, what).into());
        }
        self.chain.push(is_itself);
        let dir = path.parent().unwrap_or_else(|| Path::new(""));
        let shape = Some(self.schema.shape());
        let mut below: Option<Node> = None;
        for name in names(&extends.node)? {
            let layer = self.file(&dir.join(name))?;
            match &mut below {
                Some(below) => below.overlay(layer, shape),
                None => below = Some(layer),
            }
        }
        self.chain.pop();
        Ok(match below {
            Some(mut below) => {
                below.overlay(node, shape);
                below
            }
            None => node,
        })
    }
}

/// One name, or several.
fn names(node: &Node) -> Result<Vec<&str>, Wrong> {
    match &node.value {
        Value::Scalar { text, .. } if !text.is_empty() => Ok(vec![text]),
        Value::List(items) => {
            let names = items.iter().map(|item| match &item.value {
                Value::Scalar { text, .. } if !text.is_empty() => Ok(text.as_str()),
                _ => Err(Wrong::new(
                    &item.place,
                    "extends: the path of a file is expected",
                )),
            });
            names.collect()
        }
        _ => {
            let what = "extends: the path of a file is expected, or a list of them";
            Err(Wrong::new(&node.place, what))
        }
    }
}

impl From<Wrong> for ConfigError {
    fn from(wrong: Wrong) -> Self {
        Self::Parse {
            at: wrong.place.to_string(),
            what: wrong.what,
        }
    }
}
