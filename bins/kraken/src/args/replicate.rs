//! What `kraken replicate` takes.

use clap::{Args, Subcommand};

use super::indexes::IndexArgs;

/// What to do about images on their way to other clusters, and whom to ask.
#[derive(Debug, Args)]
pub(crate) struct ReplicateArgs {
    #[command(subcommand)]
    pub(crate) command: ReplicateCommand,
    #[command(flatten)]
    pub(crate) indexes: IndexArgs,
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
    /// Sends all that the rules send to a cluster once more, such as to one that was made anew under its name.
    Again {
        /// The other cluster's name.
        remote: String,
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
