//! Where Kraken keeps blobs.
//!
//! - [`store`]: the piece store of a host; [`mem`] in memory, [`fs`] on disk.
//! - [`backend`]: the long-term storage behind the origins.
//! - [`queue`]: tasks that survive a crash until they are done.
//! - [`kept`]: a small file of what a host knows, over its restarts.
//! - [`tier`]: memory in front of a store; [`volumes`]: several stores as one; [`link`]: a blob's file under another name.
//! - `testkit` (feature `testkit`): the suites that every store and backend passes, and a backend
//!   that can be switched off.

pub mod backend;
#[cfg(feature = "fs")]
pub mod database;
#[cfg(feature = "fs")]
pub mod fs;
pub mod kept;
#[cfg(feature = "fs")]
pub mod link;
pub mod mem;
#[cfg(feature = "fs")]
pub mod pace;
#[cfg(feature = "fs")]
pub mod queue;
pub mod store;
#[cfg(feature = "testkit")]
pub mod testkit;
#[cfg(feature = "fs")]
pub mod tier;
#[cfg(feature = "fs")]
pub mod volumes;

#[cfg(feature = "fs")]
pub use backend::OpendalBackend;
pub use backend::{Backend, BackendError, BoxBackend, ByteStream};
#[cfg(feature = "fs")]
pub use fs::{FsOptions, FsStore};
pub use mem::MemStore;
#[cfg(feature = "fs")]
pub use queue::{DurableQueue, QueueError, Task};
pub use store::{BlobStatus, Goal, Need, PieceStore, StoreError, UploadStore, Usage, Verdict};
#[cfg(feature = "fs")]
pub use tier::MemoryTier;
#[cfg(feature = "fs")]
pub use volumes::Volumes;
