//! `kraken doctor`.

use std::process::ExitCode;

use kraken::{Failure, doctor};

use crate::args::doctor::DoctorArgs;
use crate::say;

/// Looks at everything and says what is wrong; success is when nothing failed.
pub(crate) async fn examine(args: DoctorArgs) -> Result<ExitCode, Failure> {
    let diagnosis = match &args.dir {
        Some(dir) => doctor::examine_cluster(dir).await?,
        None => {
            let agent = doctor::agent_at(&args.face.agent, &args.face.tls.config())?;
            doctor::examine(&agent, &args.root).await
        }
    };
    say(&match args.json {
        true => serde_json::json!(diagnosis).to_string(),
        false => diagnosis.text(),
    })?;
    Ok(ExitCode::from(u8::from(!diagnosis.green)))
}
