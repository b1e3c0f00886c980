//! How much of the network a host may take.

use std::num::NonZeroU64;

use kraken_net::Throttle;

/// Limits on the bytes of pieces, in bytes per second and direction, over all blobs and peers.
/// `None` is no limit, and so is the default.
///
/// A limit holds within 2 % over any second. Blobs share it alike: a small one is not kept waiting
/// by a large one. What lies in the network's buffers when a limit comes up is not called back.
///
/// Requests time out when their pieces are slower than the scheduler's `stall_after` and
/// `drop_after` ([`Config`](crate::Config)) expect: raise both where a limit lets less than some
/// 10 MB/s through.
///
/// ```
/// use std::num::NonZeroU64;
///
/// use kraken_core::Limits;
///
/// // 300 MB/s up, and down whatever comes.
/// let limits = Limits::NONE.with_upload(NonZeroU64::new(300_000_000));
/// assert_eq!(limits.download, None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes per second to all peers together.
    pub upload: Option<NonZeroU64>,
    /// Bytes per second from all peers together.
    pub download: Option<NonZeroU64>,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self {
        upload: None,
        download: None,
    };

    /// The same, with this rate to peers, in bytes per second; none is no limit.
    #[must_use]
    pub const fn with_upload(mut self, upload: Option<NonZeroU64>) -> Self {
        self.upload = upload;
        self
    }

    /// The same, with this rate from peers, in bytes per second; none is no limit.
    #[must_use]
    pub const fn with_download(mut self, download: Option<NonZeroU64>) -> Self {
        self.download = download;
        self
    }

    pub(crate) fn of(throttle: &Throttle) -> Self {
        Self {
            upload: throttle.upload().rate(),
            download: throttle.download().rate(),
        }
    }

    pub(crate) fn apply(self, throttle: &Throttle) {
        throttle.upload().set_rate(self.upload);
        throttle.download().set_rate(self.download);
    }
}
