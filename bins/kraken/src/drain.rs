//! `kraken drain`: an origin hands its share over before it goes.

use std::time::Duration;

use kraken_daemon::leave::Leaving;

use crate::Failure;
use crate::operator::{Operator, failed};

/// The longest answer that is read, in bytes.
const ANSWER: usize = 4 << 10;
/// How often an origin is asked how far it is.
const LOOK: Duration = Duration::from_secs(1);

/// Asks an origin how far it is: with `POST` it begins to hand over, with `DELETE` it takes back.
///
/// # Errors
/// The origin does not answer.
pub async fn ask(origin: &Operator, method: &str) -> Result<Leaving, Failure> {
    let answer = origin.send(method, "/x/leave").await.map_err(failed)?;
    answer.json(ANSWER).await.map_err(failed)
}

/// Lets an origin hand its share over, and waits until it has; says how far it is in between.
///
/// # Errors
/// The origin does not answer, or somebody lets it stay.
pub async fn drain(
    origin: &Operator,
    say: impl Fn(usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut state = ask(origin, "POST").await?;
    let mut said = None;
    while state.blobs > 0 {
        if said != Some(state.blobs) {
            say(state.blobs)?;
            said = Some(state.blobs);
        }
        tokio::time::sleep(LOOK).await;
        state = ask(origin, "GET").await?;
        if !state.leaving {
            return Err(Failure::Argument(
                "the origin stays, as somebody has asked it to".into(),
            ));
        }
    }
    Ok(())
}
