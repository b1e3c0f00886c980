//! Whether a process is well, as probes of supervisors ask it.

use std::time::Duration;

use kraken::Failure;
use kraken::operator::failed;

use crate::args::health::HealthArgs;
use crate::{operator, say};

/// Longer than any process takes that is well.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends well if the process is.
pub(crate) async fn look(args: HealthArgs) -> Result<(), Failure> {
    let process = operator(&args.process, args.tls)?;
    let (path, word) = match args.live {
        true => ("/health", "it answers"),
        false => ("/readiness", "it is ready"),
    };
    let answer = tokio::time::timeout(PATIENCE, process.send("GET", path)).await;
    let silent = |_| Failure::Other(format!("no answer within {} s", PATIENCE.as_secs()));
    answer.map_err(silent)?.map_err(failed)?;
    say(word)
}
