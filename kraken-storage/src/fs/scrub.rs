//! Reading sealed blobs back, to find what rots before anybody needs it.

use std::num::NonZeroU64;
use std::time::Duration;

use kraken_proto::Digest;

use super::cache::State;
use super::read::Place;
use super::{FsStore, Shared, disk};
use crate::pace::Pace;
use crate::store::{StoreError, Verdict};

/// The wait between two rounds, and after an error.
const REST: Duration = Duration::from_secs(60);

impl FsStore {
    /// Verifies all sealed blobs for ever, one after the other, at `rate` bytes per second at most.
    /// A restart goes on where it was.
    pub async fn scrub(&self, rate: NonZeroU64) {
        let pace = Pace::new(rate);
        loop {
            if let Err(error) = self.scrub_once(&pace).await {
                tracing::error!(%error, "the store cannot be scrubbed");
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// One round over what is left of the last one, or over everything.
    async fn scrub_once(&self, pace: &Pace) -> Result<(), StoreError> {
        let after = self.blocking(|shared| shared.scrubbed()).await?;
        let sealed = self.blocking(|shared| shared.layout.sealed()).await?;
        let rest = sealed
            .into_iter()
            .filter(|it| after.is_none_or(|after| *it > after));
        let (mut blobs, mut damaged) = (0_u64, 0_u64);
        for digest in rest {
            match self.verify_at(digest, Some(pace)).await {
                Ok(Verdict::Damaged) => damaged += 1,
                Ok(Verdict::Right) => blobs += 1,
                Ok(Verdict::Absent) => {}
                // The others are to be looked at all the same.
                Err(error) => tracing::error!(%digest, %error, "a blob cannot be scrubbed"),
            }
            self.blocking(move |shared| shared.set_scrubbed(Some(digest)))
                .await?;
        }
        self.blocking(|shared| shared.set_scrubbed(None)).await?;
        match damaged {
            0 => tracing::debug!(blobs, "the store is scrubbed"),
            _ => tracing::warn!(
                blobs,
                damaged,
                "the store is scrubbed, and some was damaged"
            ),
        }
        Ok(())
    }

    /// Reads a blob back, no faster than `pace`.
    ///
    /// What lies in the page cache is read from there, as it is what would be served; what does not
    /// is read from the disk, and not kept in the cache.
    pub(super) async fn verify_at(
        &self,
        digest: Digest,
        pace: Option<&Pace>,
    ) -> Result<Verdict, StoreError> {
        let (mut piece, mut bytes) = (0, 0);
        loop {
            // Before the blob is held: who waits to change it keeps others from reading it.
            if let Some(pace) = pace {
                pace.pass(bytes).await;
            }
            // Held for one piece at a time, so that the blob can go meanwhile.
            let slot = self.loaded(digest).await?;
            let State::Sealed(sealed) = &*slot else {
                return Ok(Verdict::Absent);
            };
            let sealed = std::sync::Arc::clone(sealed);
            if piece >= sealed.meta.piece_count() {
                return Ok(Verdict::Right);
            }
            bytes = sealed.meta.piece_size(piece).into();
            let suspect = std::sync::Arc::clone(&sealed);
            let place = Place {
                digest,
                length: sealed.meta.length(),
                sealed: Some(sealed),
                slot,
            };
            let read = self.blocking(move |shared| shared.verify_piece(&place, piece));
            match read.await {
                Ok(()) => piece += 1,
                Err(StoreError::Damaged { .. }) => {
                    return Ok(match self.examine(&suspect).await? {
                        true => Verdict::Right,
                        false => Verdict::Damaged,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Shared {
    fn verify_piece(&self, place: &Place, piece: u32) -> Result<(), StoreError> {
        let (file, _) = self.data_file(place)?;
        let mut byte = [0];
        let start = place
            .sealed
            .as_ref()
            .map(|it| it.meta.piece_range(piece).start);
        let start = start.unwrap_or_default();
        let cached = disk::fill_cached_at(&file, &mut byte, start) == 1;
        self.read_proven(place, piece)?;
        if !cached && let Some(sealed) = &place.sealed {
            let range = sealed.meta.piece_range(piece);
            disk::wont_need(&file, range.start, range.end - range.start);
        }
        Ok(())
    }

    /// How far the last round came, if it did not end.
    fn scrubbed(&self) -> Result<Option<Digest>, StoreError> {
        let path = self.layout.scrubbed();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Digest::from_hex(text.trim()).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk::failed("read", &path)(error)),
        }
    }

    fn set_scrubbed(&self, last: Option<Digest>) -> Result<(), StoreError> {
        let path = self.layout.scrubbed();
        match last {
            // Lost in a crash, it costs some reading.
            Some(last) => {
                let text = last.hex();
                disk::write_whole(&self.layout.temp(), &path, text.as_bytes(), false)
            }
            None => disk::remove(&path).map(drop),
        }
    }
}
