//! Bytes on their way to an upload, which go on where they were when the origin restarts.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_proto::Digest;
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::client::OriginClient;
use crate::http::client::READ_IDLE;
use crate::http::{ApiError, ByteStream};

/// What is sent at once, and kept until the origin has it: whoever sends the body does not send it
/// again.
const PORTION: usize = 8 << 20;
/// How long a portion is gathered: others may wait for the bytes.
const GATHER: Duration = Duration::from_millis(50);
/// How long an origin that does not answer is waited for, with what it had of the upload on its disk: a
/// restart takes less, and clients wait about as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Appends a body at `offset`, portion by portion, and returns the new length.
///
/// # Errors
/// The body breaks off; or as [`OriginClient::upload_append`], after the origin was waited for.
pub(super) async fn append(
    client: &OriginClient,
    id: &str,
    offset: u64,
    mut body: ByteStream,
) -> Result<u64, ApiError> {
    let mut at = offset;
    let mut is_first = true;
    loop {
        let (portion, broken) = next_portion(&mut body).await;
        // An empty body is sent, too: it checks the offset.
        if !portion.is_empty() || is_first {
            at = send(client, id, at, portion).await?;
        }
        is_first = false;
        match broken {
            None => {}
            Some(End::Whole) => return Ok(at),
            Some(End::Broken(error)) => return Err(ApiError::Unavailable(error.to_string())),
        }
    }
}

enum End {
    Whole,
    Broken(std::io::Error),
}

async fn next_portion(body: &mut ByteStream) -> (Vec<Bytes>, Option<End>) {
    let (mut portion, mut size) = (Vec::new(), 0);
    let mut until = None;
    while size < PORTION {
        let next = match until {
            None => match timeout(READ_IDLE, body.next()).await {
                Ok(next) => next,
                Err(_) => return (portion, Some(End::Broken(silent()))),
            },
            Some(until) => match timeout_at(until, body.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        match next {
            Some(Ok(chunk)) => {
                size += chunk.len();
                portion.push(chunk);
                until = until.or_else(|| Some(Instant::now() + GATHER));
            }
            Some(Err(error)) => return (portion, Some(End::Broken(error))),
            None => return (portion, Some(End::Whole)),
        }
    }
    (portion, None)
}

fn silent() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing came for too long")
}

/// Sends a portion until the origin has it.
async fn send(
    client: &OriginClient,
    id: &str,
    at: u64,
    mut portion: Vec<Bytes>,
) -> Result<u64, ApiError> {
    let end = at + portion.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    let mut at = at;
    let mut patience = Patience::new(id);
    loop {
        let body = futures::stream::iter(portion.clone().into_iter().map(Ok)).boxed();
        let there = match client.upload_append(id, at, body).await {
            Ok(length) => return Ok(length),
            // What an earlier attempt had sent was still on its way into the file.
            Err(ApiError::RangeInvalid { len }) if len > at && len <= end => len,
            Err(error) => {
                patience.wait(error).await?;
                loop {
                    match client.upload_len(id).await {
                        Ok(length) => break length,
                        Err(error) => patience.wait(error).await?,
                    }
                }
            }
        };
        if there == end {
            return Ok(end);
        }
        if !(at..end).contains(&there) {
            // Before what was kept here, or behind it: somebody else appends, too.
            return Err(ApiError::RangeInvalid { len: there });
        }
        drop_first(&mut portion, there - at);
        at = there;
    }
}

fn drop_first(portion: &mut Vec<Bytes>, mut bytes: u64) {
    portion.retain_mut(|chunk| {
        let cut = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        bytes -= cut as u64;
        let _ = chunk.split_to(cut);
        !chunk.is_empty()
    });
}

/// Waits between attempts, for no longer than [`PATIENCE`] in all.
pub(super) struct Patience {
    until: Instant,
    backoff: Backoff,
    rng: Rng,
}

impl Patience {
    /// For an upload: those of one origin do not come back all at once.
    pub(super) fn new(id: &str) -> Self {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(2));
        Self {
            until: Instant::now() + PATIENCE,
            backoff: Backoff::new(first, longest, Jitter::Equal),
            rng: Rng::seeded(seed_of(id)),
        }
    }

    /// Waits after an error that may pass.
    ///
    /// # Errors
    /// The error, when it will not, or the time is over.
    pub(super) async fn wait(&mut self, error: ApiError) -> Result<(), ApiError> {
        let wait = self.backoff.delay(&mut self.rng);
        let is_over = Instant::now() + wait > self.until;
        if is_over || !matches!(error, ApiError::Unavailable(_)) {
            return Err(error);
        }
        tracing::debug!(%error, ?wait, "an upload waits for its origin");
        sleep(wait).await;
        Ok(())
    }
}

fn seed_of(id: &str) -> u64 {
    let digest = Digest::of(id.as_bytes());
    u64::from_be_bytes(digest.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_arrived_is_not_sent_again() {
        let chunks = [&b"abc"[..], b"de", b"fghi"];
        for cut in 0..=9_u64 {
            let mut portion: Vec<_> = chunks.iter().map(|it| Bytes::from_static(it)).collect();
            drop_first(&mut portion, cut);
            assert_eq!(portion.concat(), b"abcdefghi"[cut as usize..], "{cut}");
        }
    }
}
