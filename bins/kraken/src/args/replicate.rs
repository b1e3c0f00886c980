//! What `kraken replicate` takes.

use clap::{Args, Subcommand};

use super::TlsFiles;

/// What to do about images on their way to other clusters, and whom to ask.
#[derive(Debug, Args)]
pub(crate) struct ReplicateArgs {
    #[command(subcommand)]
    pub(crate) command: ReplicateCommand,
    /// All build-indexes of the cluster, such as https://index-1:7604, with commas: each sends its part.
    #[arg(
        long,
        env = "KRAKEN_BUILD_INDEX",
        global = true,
        value_delimiter = ',',
        default_value = "https://127.0.0.1:7601"
    )]
    pub(crate) build_index: Vec<String>,
    #[command(flatten)]
    pub(crate) tls: TlsFiles,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicateCommand {
    /// Shows what waits for each other cluster, since when, and what it did not take. Fails when something
    /// was refused, or a build-index does not answer.
    Status {
        /// Prints one JSON object a line and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Sends a tag now, or tries all that waits for a cluster at once.
    Now {
        /// A tag as repository:tag, or the name of another cluster.
        what: String,
    },
    /// Sends nothing to a cluster any more, until `resume`.
    Pause {
        /// The other cluster's name.
        remote: String,
    },
    /// Goes on sending to a cluster.
    Resume {
        /// The other cluster's name.
        remote: String,
    },
}
