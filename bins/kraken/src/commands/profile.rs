//! What the processors are busy with in a process.

use std::time::Duration;

use kraken::Failure;
use kraken::operator::failed;
use kraken::place;

use crate::args::profile::ProfileArgs;
use crate::{operator, say};

/// How much longer than its samples a profile may take: looking up a name may read a large program.
const LOOKING_UP: Duration = Duration::from_secs(120);
/// The longest profile that is read, in bytes.
const LONGEST: usize = 256 << 20;

/// Has samples taken, and prints or keeps them as folded stacks.
pub(crate) async fn take(args: ProfileArgs) -> Result<(), Failure> {
    if let Some(file) = &args.output {
        place::for_file(file, "profile.folded")?;
    }
    let process = operator(&args.process, args.tls)?;
    let (seconds, frequency) = (args.seconds, args.frequency);
    let path = format!("/x/profile?seconds={seconds}&frequency={frequency}");
    let patience = Duration::from_secs(seconds).saturating_add(LOOKING_UP);
    let answer = process.answer("GET", &path, patience).await;
    let answer = answer.map_err(failed)?.successful().await.map_err(failed)?;
    let profile = answer.bytes(LONGEST).await.map_err(failed)?;
    match args.output {
        None => say(String::from_utf8_lossy(&profile).trim_end()),
        Some(file) => place::write(&file, &profile),
    }
}
