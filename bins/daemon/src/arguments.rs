//! What the command line of a process says.

use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches as _};

use crate::settings::Sources;

/// Where the configuration of a process is.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// A file with the configuration. Several lie on top of each other: later ones win.
    #[arg(long = "config", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Sets one key, such as `limits.upload=300MB`, whatever files and environment say.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        Self::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
    }

    pub(crate) fn sources(self) -> Sources {
        Sources::new(self.files, self.set)
    }
}
