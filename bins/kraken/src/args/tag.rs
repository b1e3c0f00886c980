//! What `kraken tag` takes.

use clap::{ArgGroup, Args, Subcommand};
use kraken_core::Digest;
use kraken_registry::name::{RepoName, TagName};
use kraken_registry::tags::client::OnlyIf;

use super::indexes::IndexArgs;

/// What to do with tags, and who keeps them.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    #[command(subcommand)]
    pub(crate) command: TagCommand,
    #[command(flatten)]
    pub(crate) indexes: IndexArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TagCommand {
    /// Lists the tags of a repository, in the order of their names.
    Ls {
        /// The repository.
        repository: RepoName,
        /// Prints one JSON object a line and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Shows what a tag points to and what it pointed to, the latest first.
    History {
        /// The tag, as repository:tag.
        tag: TagName,
        /// Prints one JSON object a line and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Lets a tag point to an image that is there: another one, or what it was at a version.
    #[command(
        group(ArgGroup::new("what").required(true).args(["digest", "to_version"])),
        group(ArgGroup::new("condition").args(["if_version", "if_absent"])),
    )]
    Set {
        /// The tag, as repository:tag.
        tag: TagName,
        /// The image's manifest, as sha256:….
        digest: Option<Digest>,
        /// What it was at this version of its history, instead.
        #[arg(long, value_name = "VERSION")]
        to_version: Option<u64>,
        /// Only as long as it is at this version.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
        /// Only if it does not exist.
        #[arg(long)]
        if_absent: bool,
    },
    /// Removes a tag. Its image stays, and can be pulled by its digest.
    Rm {
        /// The tag, as repository:tag.
        tag: TagName,
        /// Only as long as it is at this version.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
}

/// What the two conditions of a command mean.
pub(crate) fn only_if(if_version: Option<u64>, if_absent: bool) -> OnlyIf {
    match (if_version, if_absent) {
        (Some(version), _) => OnlyIf::Version(version),
        (None, true) => OnlyIf::Absent,
        (None, false) => OnlyIf::Any,
    }
}
