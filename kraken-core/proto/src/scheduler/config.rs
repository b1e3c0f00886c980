//! The knobs of one host's scheduler.

use std::time::Duration;

/// How one host behaves in its swarms. Numbers come from simulated swarms of up to 2,600 hosts;
/// each field says what it trades.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Neighbours that a host looks for per blob. Fewer than 8 leave stragglers, more than 20 cost
    /// messages and buy nothing.
    pub target_degree: usize,
    /// Neighbours per blob up to which a host dials.
    pub dial_degree: usize,
    /// Neighbours per blob after which others are turned away: 1.5 × the target.
    pub max_degree: usize,
    /// Requests on their way to one agent per blob. A piece is passed on only when it is whole, so
    /// long queues make a deep pipeline; one or two cover a data centre's round trips.
    pub pipeline_agent: usize,
    /// Requests on their way to one origin per blob.
    pub pipeline_origin: usize,
    /// Requests on their way per blob that a host aims at when it has few neighbours: each then
    /// gets its share of them. They keep the interface busy for a round trip.
    pub inflight: usize,
    /// Requests on their way per blob in all, those to slow peers apart. Where uploads are what is
    /// scarce, whoever asks for more gets more: with the same number for everybody, nobody is late.
    pub inflight_most: usize,
    /// Pieces that an origin brings into a blob's swarm of its own accord at a time; 0 on an agent.
    /// Enough to keep its interface busy.
    pub offers: usize,
    /// The most copies of each piece of a small blob that an origin brings in of its own accord;
    /// of a large one it brings in one.
    pub offer_copies: u16,
    /// How long an origin waits until a piece that it offered is asked for, or until who declined
    /// it says to have it.
    pub offer_patience: Duration,
    /// How long a host to which no agent sends waits for offers, when it has agents around, before
    /// it asks an origin for what it wants.
    pub offer_wait: Duration,
    /// Requests on their way to a peer of which no piece has verified yet, its pieces being
    /// verified included: with 1 a liar is known by its first piece and wastes no other.
    pub pipeline_unproven: usize,
    /// A host with fewer pieces than this is a newcomer: its requests are served first and its news
    /// are sent at once, so that it soon passes on as much as it takes.
    pub newcomer_pieces: u32,
    /// Pieces that one peer may have asked for at once; further requests are refused.
    pub max_uploads_per_peer: usize,
    /// How long news of pieces is gathered before it is sent. Up to 30 ms costs no time and saves
    /// 40 % of the messages against 10 ms.
    pub have_delay: Duration,
    /// How many pieces ahead of a reader are asked for in order, from agents.
    pub read_ahead: u32,
    /// How many bytes are fetched ahead of whoever reads forward in a blob of which only parts are
    /// fetched, at most; never more than it has read. Enough for a round trip of a fast network.
    pub ahead_most: u64,
    /// How long a reader waits for a piece before it is asked of an origin although it is no
    /// rarity. Readers of one image move in step: without patience each would draw its own copy
    /// out of the origins.
    pub patience: Duration,
    /// End game: with no more pieces than this missing, a piece may be asked of two peers.
    pub endgame_pieces: u32,
    /// End game: only requests older than this are doubled.
    pub endgame_age: Duration,
    /// A peer that owes pieces and sends none for this long no longer holds them: they are asked
    /// of others too.
    pub stall_after: Duration,
    /// How often silent peers are looked for while anything is owed.
    pub watch: Duration,
    /// A peer that owes pieces and sends none for this long is dropped.
    pub drop_after: Duration,
    /// The shortest time between two announces of a blob that lacks neighbours; doubles up to
    /// `announce_hurry_max`.
    pub announce_hurry: Duration,
    /// See `announce_hurry`.
    pub announce_hurry_max: Duration,
    /// The first wait after a failed announce or dial; doubles up to `retry_max`.
    pub retry: Duration,
    /// See `retry`.
    pub retry_max: Duration,
    /// How long a peer that sent wrong bytes or broke the protocol is kept away; doubles with each
    /// repetition up to `ban_max`, and is forgotten after as long a time of good conduct.
    pub ban: Duration,
    /// See `ban`.
    pub ban_max: Duration,
    /// Connections in all; further ones are turned away.
    pub max_conns: usize,
    /// How long a connection without any common blob is kept.
    pub conn_idle: Duration,
}

impl Config {
    /// A data centre: round trips below some milliseconds. The default.
    pub fn lan() -> Self {
        Self {
            target_degree: 12,
            dial_degree: 6,
            max_degree: 18,
            pipeline_agent: 1,
            pipeline_origin: 1,
            inflight: 12,
            inflight_most: 12,
            offers: 0,
            offer_copies: 8,
            offer_patience: Duration::from_millis(200),
            offer_wait: Duration::from_millis(25),
            pipeline_unproven: 1,
            newcomer_pieces: 20,
            max_uploads_per_peer: 16,
            have_delay: Duration::from_millis(25),
            read_ahead: 4,
            ahead_most: 32 << 20,
            patience: Duration::from_millis(250),
            endgame_pieces: 8,
            endgame_age: Duration::from_millis(100),
            stall_after: Duration::from_secs(1),
            watch: Duration::from_millis(100),
            drop_after: Duration::from_secs(20),
            announce_hurry: Duration::from_millis(250),
            announce_hurry_max: Duration::from_secs(2),
            retry: Duration::from_millis(500),
            retry_max: Duration::from_secs(15),
            ban: Duration::from_secs(30),
            ban_max: Duration::from_secs(3600),
            max_conns: 512,
            conn_idle: Duration::from_secs(30),
        }
    }

    /// Hosts far apart: longer queues fill the longer paths, and silence means less.
    pub fn wan() -> Self {
        Self {
            pipeline_agent: 3,
            pipeline_origin: 3,
            inflight: 48,
            inflight_most: 48,
            offer_patience: Duration::from_millis(800),
            offer_wait: Duration::from_millis(150),
            endgame_age: Duration::from_millis(600),
            stall_after: Duration::from_secs(6),
            drop_after: Duration::from_secs(60),
            ..Self::lan()
        }
    }

    /// An origin: serves many, asks nobody.
    pub fn origin() -> Self {
        Self {
            max_degree: 64,
            offers: 8,
            max_conns: 4096,
            ..Self::lan()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::lan()
    }
}
