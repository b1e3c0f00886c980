//! `kraken replicate`.

use kraken::Failure;
use kraken::replicate::{self, Indexes};
use kraken_registry::name::TagName;
use serde_json::json;

use crate::args::indexes::IndexArgs;
use crate::args::replicate::{ReplicateArgs, ReplicateCommand};
use crate::say;

/// Asks all build-indexes, and says what came of it.
pub(crate) async fn work_on_replication(args: ReplicateArgs) -> Result<(), Failure> {
    let IndexArgs { build_index, tls } = args.indexes;
    let indexes = Indexes::new(&build_index, &tls.config())?;
    match args.command {
        ReplicateCommand::Status { json } => {
            let (parts, silent) = indexes.status().await;
            if json {
                parts
                    .iter()
                    .try_for_each(|part| say(&json!(part).to_string()))?;
            } else {
                say(&replicate::table(&parts).to_string())?;
            }
            replicate::check(&parts, silent)
        }
        ReplicateCommand::Now { what } => match what.parse::<TagName>() {
            Ok(tag) => {
                let remotes = indexes.send_now(&tag).await?;
                say(&format!("{tag} is being sent to {remotes} clusters"))
            }
            Err(_) => {
                indexes.tell(&what, "now").await?;
                say(&format!("all that waits for {what} is tried now"))
            }
        },
        ReplicateCommand::Again { remote } => {
            indexes.tell(&remote, "again").await?;
            say(&format!(
                "{remote} gets all that it lacks of what the rules send"
            ))
        }
        ReplicateCommand::Pause { remote } => {
            indexes.tell(&remote, "pause").await?;
            say(&format!(
                "nothing is sent to {remote} until `kraken replicate resume {remote}`"
            ))
        }
        ReplicateCommand::Resume { remote } => {
            indexes.tell(&remote, "resume").await?;
            say(&format!("images go to {remote}"))
        }
    }
}
