//! A body in portions that are worth a write.

use std::io;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use crate::http::ByteStream;

/// Portions have at least so many bytes, but for the last: small writes cost more in calls than in
/// bytes.
const MIN: usize = 256 << 10;
/// Portions have at most so many bytes, so that uploads share the memory.
const MAX: usize = 1 << 20;

/// Joins small chunks and cuts large ones.
pub(super) struct Portions {
    stream: ByteStream,
    rest: Bytes,
    /// How the stream ended, once it has.
    end: Option<io::Result<()>>,
}

impl Portions {
    pub(super) fn new(stream: ByteStream) -> Self {
        Self {
            stream,
            rest: Bytes::new(),
            end: None,
        }
    }

    /// The next portion, or `None` at the end.
    ///
    /// # Errors
    /// The stream broke off; the bytes in front of the break have been given.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut joined = BytesMut::new();
        while joined.len() < MIN && self.end.is_none() {
            if joined.is_empty() && self.rest.len() >= MIN {
                let portion = self.rest.split_to(self.rest.len().min(MAX));
                return Ok(Some(portion));
            }
            let room = MAX - joined.len();
            joined.extend_from_slice(&self.rest.split_to(self.rest.len().min(room)));
            if self.rest.is_empty() {
                self.pull().await;
            }
        }
        if self.end.is_some() && joined.is_empty() && !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        if !joined.is_empty() {
            return Ok(Some(joined.freeze()));
        }
        self.end.replace(Ok(())).unwrap_or(Ok(())).map(|()| None)
    }

    async fn pull(&mut self) {
        match self.stream.next().await {
            Some(Ok(chunk)) => self.rest = chunk,
            Some(Err(error)) => self.end = Some(Err(error)),
            None => self.end = Some(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn portions(sizes: &[usize], broken: bool) -> (Vec<usize>, Vec<u8>, bool) {
        let mut chunks: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| Ok(Bytes::from(vec![index as u8; *size])))
            .collect();
        if broken {
            chunks.push(Err(io::Error::other("broken")));
        }
        let mut portions = Portions::new(futures::stream::iter(chunks).boxed());
        let (mut found, mut bytes) = (Vec::new(), Vec::new());
        loop {
            match portions.next().await {
                Ok(Some(portion)) => {
                    found.push(portion.len());
                    bytes.extend_from_slice(&portion);
                }
                Ok(None) => return (found, bytes, false),
                Err(_) => return (found, bytes, true),
            }
        }
    }

    #[tokio::test]
    async fn small_chunks_are_joined_and_large_ones_cut() {
        const K: usize = 1 << 10;
        for sizes in [
            vec![],
            vec![1],
            vec![0, 5, 0],
            vec![8 * K; 100],
            vec![5000 * K],
            vec![10 * K, 3000 * K, 1, 256 * K, 7],
            vec![255 * K, 1024 * K, 1024 * K],
        ] {
            for broken in [false, true] {
                let (found, bytes, failed) = portions(&sizes, broken).await;
                let expected: Vec<_> = sizes
                    .iter()
                    .enumerate()
                    .flat_map(|(index, size)| vec![index as u8; *size])
                    .collect();
                assert!(bytes == expected, "{sizes:?}");
                assert_eq!(failed, broken);
                assert!(
                    found.iter().all(|size| *size > 0 && *size <= MAX),
                    "{found:?}"
                );
                let all_but_last = found.split_last().map_or(&[][..], |(_, rest)| rest);
                assert!(all_but_last.iter().all(|size| *size >= MIN), "{found:?}");
            }
        }
    }
}
