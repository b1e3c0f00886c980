//! `kraken drain`: an origin hands its share over before it goes.

use std::time::Duration;

use kraken_daemon::leave::Leaving;

use crate::Failure;
use crate::operator::{Operator, failed};

/// The longest answer that is read, in bytes.
const ANSWER: usize = 4 << 10;
/// How often in a row it may not answer.
const FAILURES: u32 = 10;
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
    say: impl Fn(&Leaving) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut state = ask(origin, "POST").await?;
    let (mut said, mut failures) = (None, 0);
    while state.blobs > 0 {
        if said.as_ref() != Some(&state) {
            say(&state)?;
            said = Some(state.clone());
        }
        tokio::time::sleep(LOOK).await;
        state = match ask(origin, "GET").await {
            Ok(state) => state,
            Err(error) if failures >= FAILURES => return Err(error),
            Err(_) => {
                failures += 1;
                continue;
            }
        };
        failures = 0;
        if !state.leaving {
            return Err(Failure::Argument(
                "the origin does not leave any more: it was restarted, or told to stay".into(),
            ));
        }
    }
    Ok(())
}
