//! Kraken's OCI face: pulling, pushing and tags over HTTP.
//!
//! The registry owns no blob and no tag. It speaks the [OCI distribution] protocol on one side and
//! small traits on the other: [`BlobSource`] reads blobs, [`BlobSink`] takes uploads,
//! [`TagService`] maps names to digests. An agent implements the first with its swarm, a proxy the
//! first two with its origins, and both ask a build-index for the third.
//!
//! | built from | by | serves |
//! |---|---|---|
//! | [`pull::router`] | agents | `/v2/` read-only, as a mirror for container runtimes |
//! | [`push::router`] | proxies | `/v2/` with pushes |
//! | [`tags::server::router`] | build-indexes | `/tags/`, `/list/`, `/repositories` |
//! | [`replicate::server::router`] | build-indexes | `/replicate`, `/remotes`: images that go to other clusters |
//!
//! The module [`memory`] holds all three traits in memory, for tests and for a first look:
//!
//! ```
//! use kraken_registry::memory::{MemoryBlobs, MemoryTags};
//! use kraken_registry::pull::PullState;
//! use kraken_registry::push::{self, PushState};
//!
//! let blobs = MemoryBlobs::default();
//! let state = PushState::new(PullState::new(blobs.clone(), MemoryTags::default()), blobs);
//! let app: axum::Router = push::router(state);
//! ```
//!
//! [OCI distribution]: https://github.com/opencontainers/distribution-spec

pub mod access;
pub mod cluster;
pub mod error;
pub mod garbage;
pub mod link;
pub mod manifest;
pub mod memory;
pub mod name;
pub mod platform;
pub mod preheat;
pub mod pull;
pub mod push;
pub mod replicate;
pub mod route;
pub mod sink;
pub mod source;
pub mod tags;

mod reader;
mod stream;
mod web;

pub use error::{Code, RegistryError};
pub use link::{Link, LinkKind, Linked};
pub use manifest::{Manifest, ManifestError, MediaType};
pub use name::{Reference, RepoName, Tag};
pub use route::Route;
pub use sink::{BlobSink, BodyError, SinkError};
pub use source::{BlobBody, BlobSource, ResolveError, SourceError};
pub use tags::{TagError, TagService};
