//! `kraken gc`: blobs that nothing refers to any more go.

use kraken_registry::garbage::{Collected, GarbageOptions};

use crate::Failure;
use crate::operator::{Operator, failed};

/// The longest answer that is read, in bytes.
const ANSWER: usize = 4 << 10;

/// Lets a build-index collect, and waits until it has.
///
/// # Errors
/// The build-index does not answer, or an origin or another build-index cannot take part.
pub async fn collect(index: &Operator, options: GarbageOptions) -> Result<Collected, Failure> {
    let answer = index.post("/x/garbage", &options).await.map_err(failed)?;
    answer.json(ANSWER).await.map_err(failed)
}

/// What was collected, for people.
pub fn told(collected: &Collected, dry_run: bool) -> String {
    let Collected {
        referenced,
        garbage,
        removed,
        removed_stored,
        unlisted,
        ..
    } = collected;
    let mut text = format!("{referenced} blobs are referenced, {garbage} are not");
    if !dry_run {
        text =
            format!("{text}; {removed} are gone from the origins, {removed_stored} from storages");
        if removed < garbage {
            text = format!("{text}; the rest is too young, or being worked on");
        }
    }
    if *unlisted > 0 {
        text = format!("{text}; {unlisted} storages cannot tell what they hold");
    }
    text
}
