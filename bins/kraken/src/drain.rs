//! `kraken drain`: an origin hands its share over before it goes.

use std::time::{Duration, Instant};

use kraken_daemon::leave::Leaving;

use crate::Failure;
use crate::operator::{Operator, failed};

/// The longest answer that is read, in bytes.
const ANSWER: usize = 4 << 10;
/// How often in a row it may not answer.
const FAILURES: u32 = 10;
/// How often an origin is asked how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said at least.
const AGAIN: Duration = Duration::from_secs(30);

/// Asks an origin how far it is: with `POST` it begins to hand over, with `DELETE` it takes back.
///
/// # Errors
/// The origin does not answer.
pub async fn ask(origin: &Operator, method: &str) -> Result<Leaving, Failure> {
    let answer = origin.send(method, "/x/leave").await.map_err(failed)?;
    answer.json(ANSWER).await.map_err(failed)
}

/// How far an origin is, and what it waits for.
pub fn told(state: &Leaving) -> String {
    let blobs = match state.blobs {
        1 => "1 blob".to_owned(),
        blobs => format!("{blobs} blobs"),
    };
    let waits = match &state.away[..] {
        [] if state.unfinished > 0 => format!(
            "{} of them still to be written to the storage, or copied (kraken queue ls)",
            state.unfinished
        ),
        [] => "the others copy what they lack".to_owned(),
        [one] => format!("waiting for {one}, which does not answer"),
        away => format!("waiting for {}, which do not answer", away.join(", ")),
    };
    let why = match state.away.is_empty() {
        true => "",
        false => ": nothing is let go before they do, or are off the list of origins",
    };
    format!("{blobs} to hand over; {waits}{why}")
}

/// Lets an origin hand its share over, and waits until it has; says how far it is in between, each time that this
/// changes and twice a minute at least.
///
/// # Errors
/// There is no other origin to take it, this one does not answer, or somebody lets it stay.
pub async fn drain(
    origin: &Operator,
    say: impl Fn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut state = ask(origin, "POST").await?;
    let (mut said, mut failures) = (None, 0);
    while state.blobs > 0 {
        let is_new = |(before, at): &(Leaving, Instant)| *before != state || at.elapsed() > AGAIN;
        if said.as_ref().is_none_or(is_new) {
            say(&told(&state))?;
            said = Some((state.clone(), Instant::now()));
        }
        tokio::time::sleep(LOOK).await;
        state = match ask(origin, "GET").await {
            Ok(state) => state,
            Err(error) if failures >= FAILURES => return Err(error),
            Err(error) => {
                if failures == 0 {
                    say(&format!("{error}; it is asked again, {FAILURES} times"))?;
                }
                failures += 1;
                continue;
            }
        };
        failures = 0;
        if !state.leaving {
            return Err(Failure::Other(
                "the origin does not leave any more: it was restarted, or told to stay".into(),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_is_waited_for() {
        let state = |blobs, away: &[&str]| Leaving {
            leaving: true,
            blobs,
            unfinished: 0,
            away: away.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(
            told(&state(1, &[])),
            "1 blob to hand over; the others copy what they lack"
        );
        let unfinished = Leaving {
            unfinished: 2,
            ..state(3, &[])
        };
        let waits = told(&unfinished);
        assert!(waits.contains("; 2 of them still to be written"), "{waits}");
        for (away, said) in [
            (&["b"][..], "waiting for b, which does not answer: nothing"),
            (
                &["b", "c"],
                "waiting for b, c, which do not answer: nothing",
            ),
        ] {
            let told = told(&state(5, away));
            assert!(told.starts_with("5 blobs") && told.contains(said), "{told}");
        }
    }
}
