//! Where Kraken keeps blobs.
//!
//! - [`store`]: the piece store of a host, on disk or in memory.
//! - [`backend`]: the long-term storage behind the origins.

pub mod backend;
pub mod store;

pub use backend::{Backend, BackendError, ByteStream};
pub use store::{BlobStatus, PieceStore, StoreError, UploadStore};
