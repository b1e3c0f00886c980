//! Streams that keep their word about length.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

/// Passes exactly `want` bytes. One more or one fewer becomes the error that `wrong` makes of
/// what was wanted and what came, so that a body never ends short in silence.
pub(crate) fn exact<E: Send + 'static>(
    stream: BoxStream<'static, Result<Bytes, E>>,
    want: u64,
    wrong: fn(u64, u64) -> E,
) -> BoxStream<'static, Result<Bytes, E>> {
    stream::try_unfold(
        (stream, 0),
        move |(mut stream, seen): (_, u64)| async move {
            match BoxStream::<Result<Bytes, E>>::try_next(&mut stream).await? {
                Some(chunk) => {
                    let seen = seen + chunk.len() as u64;
                    if seen > want {
                        return Err(wrong(want, seen));
                    }
                    Ok(Some((chunk, (stream, seen))))
                }
                None if seen == want => Ok(None),
                None => Err(wrong(want, seen)),
            }
        },
    )
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(chunks: &[&'static str], want: u64) -> Result<usize, (u64, u64)> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|c| Ok(Bytes::from_static(c.as_bytes())))
            .collect();
        let stream = exact(stream::iter(chunks).boxed(), want, |want, seen| {
            (want, seen)
        });
        stream
            .try_fold(0, |sum, chunk| async move { Ok(sum + chunk.len()) })
            .await
    }

    #[tokio::test]
    async fn short_and_long_streams_end_in_an_error() {
        assert_eq!(run(&["ab", "c"], 3).await, Ok(3));
        assert_eq!(run(&[], 0).await, Ok(0));
        assert_eq!(run(&["ab"], 3).await, Err((3, 2)));
        assert_eq!(run(&["ab", "cd"], 3).await, Err((3, 4)));
    }
}
