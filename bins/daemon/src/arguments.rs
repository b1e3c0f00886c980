//! What the command line of a process says.

use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches as _};

use crate::settings::Sources;

/// Where the configuration of a process is, and what to do with it.
#[derive(Debug, Clone, Default, Args)]
#[command(about = None, long_about = None)]
pub struct ConfigArgs {
    /// A file with the configuration. Several lie on top of each other: later ones win.
    #[arg(
        long = "config",
        value_name = "FILE",
        required_unless_present = "schema"
    )]
    files: Vec<PathBuf>,
    /// Sets one key, such as `limits.upload=300MB/s`, whatever files and environment say.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Says what is wrong with the configuration, and ends: with 0 when nothing is, otherwise with 1.
    /// Starts and touches nothing.
    #[arg(long, conflicts_with_all = ["print_config", "schema"])]
    check_config: bool,
    /// Prints the configuration that all layers make together, with defaults, and ends. Secrets are hidden.
    #[arg(long, conflicts_with = "schema")]
    print_config: bool,
    /// Prints the JSON schema of the configuration, and ends.
    #[arg(long)]
    schema: bool,
}

/// What is done instead of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instead {
    Check,
    Print,
    Schema,
}

impl ConfigArgs {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
    }

    pub(crate) const fn instead(&self) -> Option<Instead> {
        match self {
            Self {
                check_config: true, ..
            } => Some(Instead::Check),
            Self {
                print_config: true, ..
            } => Some(Instead::Print),
            Self { schema: true, .. } => Some(Instead::Schema),
            _ => None,
        }
    }

    pub(crate) fn sources(self) -> Sources {
        Sources::new(self.files, self.set)
    }
}
