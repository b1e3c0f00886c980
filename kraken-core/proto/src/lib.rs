//! The vocabulary and the deterministic machines of Kraken.
//!
//! Nothing in this crate waits, reads a clock, opens a file or a socket, or draws on ambient
//! chance. Time comes in as a [`Timestamp`], chance from a seed. Hence the simulator runs the very
//! code that ships.

pub mod blob;
pub mod cache;
pub mod garbage;
pub mod history;
pub mod limits;
pub mod peer;
mod picker;
pub mod retry;
pub mod ring;
pub mod rng;
pub mod scheduler;
mod swarm;
pub mod tags;
pub mod time;
pub mod tracker;
pub mod wire;
pub mod zone;

pub use blob::bitfield::{Bitfield, BitfieldError};
pub use blob::digest::{Digest, DigestError};
pub use blob::metainfo::{MetaInfo, MetaInfoError, PieceError, PieceLength};
pub use blob::namespace::{Namespace, NamespaceError};
pub use blob::piece::{ChainHasher, ChainState};
pub use peer::{PeerId, PeerInfo, PeerRole};
pub use ring::rendezvous::{Member, Ring};
pub use scheduler::Scheduler;
pub use scheduler::action::{Action, CloseReason, Event};
pub use scheduler::config::Config;
pub use scheduler::input::{BlobSpec, ConnId, Extent, Input, ReaderId};
pub use swarm::stats::SwarmStats;
pub use time::Timestamp;
pub use tracker::{AnnounceBlob, AnnounceReply, AnnounceRequest, AnnounceState, Handout, Progress};
pub use wire::message::Message;
pub use zone::{Zone, ZoneError};
