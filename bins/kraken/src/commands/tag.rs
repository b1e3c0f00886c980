//! `kraken tag`.

use kraken::Failure;
use kraken::tags::{self, Tags};
use serde_json::json;

use crate::args::indexes::IndexArgs;
use crate::args::tag::{TagArgs, TagCommand, only_if};
use crate::say;

/// Asks the build-indexes, and says what came of it.
pub(crate) async fn work_on_tags(args: TagArgs) -> Result<(), Failure> {
    let IndexArgs { build_index, tls } = args.indexes;
    let tags = Tags::new(&build_index, &tls.config())?;
    match args.command {
        TagCommand::Ls { repository, json } => {
            let tell = |tag: &str| match json {
                true => say(&json!({ "tag": tag }).to_string()),
                false => say(tag),
            };
            tags.list(&repository, tell).await
        }
        TagCommand::History { tag, json } => {
            let history = tags.history(&tag).await?;
            if !json {
                return say(&tags::table(&history).to_string());
            }
            history
                .iter()
                .try_for_each(|state| say(&json!(state).to_string()))
        }
        TagCommand::Set {
            tag,
            digest,
            to_version,
            if_version,
            if_absent,
        } => {
            let digest = match (digest, to_version) {
                (Some(digest), _) => digest,
                (None, Some(version)) => tags.at_version(&tag, version).await?,
                (None, None) => return Err(Failure::Argument("name a digest or a version".into())),
            };
            let only_if = only_if(if_version, if_absent);
            let is_changed = tags.set(&tag, digest, only_if).await?;
            let how = if is_changed {
                "points to"
            } else {
                "points already to"
            };
            say(&format!("{tag} {how} {digest}"))
        }
        TagCommand::Rm { tag, if_version } => {
            tags.remove(&tag, only_if(if_version, false)).await?;
            say(&format!("{tag} is removed"))
        }
    }
}
