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
/// let limits = Limits {
///     upload: NonZeroU64::new(300_000_000),
///     ..Limits::NONE
/// };
/// assert_eq!(limits.download, None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
