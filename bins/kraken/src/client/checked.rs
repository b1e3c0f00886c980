//! Bytes that pass, hashed and counted.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kraken_core::Digest;
use kraken_core::net::http::ByteStream;
use sha2::{Digest as _, Sha256};

use crate::Failure;

/// What has passed of a body, hashed and counted.
pub(super) struct Seen(Arc<Mutex<(Sha256, u64)>>);

impl Seen {
    pub(super) fn watch(
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> (ByteStream, Self) {
        let seen = Arc::new(Mutex::new((Sha256::new(), 0)));
        let hashing = seen.clone();
        let body = bytes.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                let mut seen = hashing.lock().unwrap_or_else(PoisonError::into_inner);
                seen.0.update(chunk);
                seen.1 += chunk.len() as u64;
            }
        });
        (body.boxed(), Self(seen))
    }

    pub(super) fn so_far(&self) -> (Digest, u64) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (Digest::from_bytes(seen.0.clone().finalize().into()), seen.1)
    }
}

/// Counts and hashes what passes, and knows at the end whether it was right.
#[derive(Debug)]
pub struct Checked {
    expected: Digest,
    hash: Sha256,
    /// Bytes that passed.
    pub bytes: u64,
}

impl Checked {
    /// Nothing has passed yet.
    pub fn new(expected: Digest) -> Self {
        Self {
            expected,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// A chunk passes.
    pub fn update(&mut self, chunk: &[u8]) {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
    }

    /// Everything has passed: was it the blob?
    ///
    /// # Errors
    /// [`Failure::WrongBytes`].
    pub fn finish(self) -> Result<u64, Failure> {
        let found = Digest::from_bytes(self.hash.finalize().into());
        if found == self.expected {
            Ok(self.bytes)
        } else {
            Err(Failure::WrongBytes {
                what: "a blob".into(),
                expected: self.expected,
                found,
            })
        }
    }
}
