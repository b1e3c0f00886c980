//! How the machines of a plan behave: named policies, and single knobs on top. A new knob is one
//! line here.

use std::time::Duration;

use kraken_proto::tracker::handout::TrackerConfig;
use kraken_proto::{Config, PieceLength};
use serde::Deserialize;

use super::values::{Count, Millis, Share};
use crate::plan::Plan;

/// A set of knobs with a name.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Policy {
    /// What ships.
    #[default]
    Kraken,
    /// What Kraken's first implementation does: members at random, the first ten links, three
    /// requests in flight to each, origins that serve like any other peer, pieces of 4 MiB.
    Original,
}

impl Policy {
    /// The distance of a blob's piece boundaries when the plan does not say.
    pub(super) fn piece_length(self, length: u64) -> PieceLength {
        match self {
            Self::Kraken => PieceLength::for_blob(length),
            Self::Original => PieceLength::new(4 << 20).unwrap_or(PieceLength::MAX),
        }
    }

    pub(super) fn apply(self, plan: &mut Plan) {
        if matches!(self, Self::Original) {
            original(&mut plan.agent);
            original(&mut plan.origin);
            plan.tracker.degree = ORIGINAL_LINKS;
            plan.tracker.balanced = false;
            plan.tracker.near_share = 0.0;
        }
    }
}

const ORIGINAL_LINKS: u32 = 10;

fn original(config: &mut Config) {
    config.target_degree = ORIGINAL_LINKS as usize;
    config.dial_degree = ORIGINAL_LINKS as usize;
    config.max_degree = ORIGINAL_LINKS as usize;
    config.pipeline_agent = 3;
    config.pipeline_origin = 3;
    config.pipeline_unproven = 3;
    config.inflight = 0;
    config.inflight_most = 1000;
    config.newcomer_pieces = 0;
    config.offers = 0;
    config.offer_wait = Duration::ZERO;
}

/// A number of peers, requests or the like.
type Number = Count<0, 100_000>;
/// The same, where none makes no sense.
type Positive = Count<1, 100_000>;

/// `KEY: KIND => FIELD` lets a file say KEY, checked as KIND, for the machine's FIELD.
macro_rules! knobs {
    ($(#[$doc:meta])* $name:ident of $config:ty { $($key:ident: $kind:ty => $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($key: Option<$kind>,)*
        }

        impl $name {
            pub(super) fn apply(self, config: &mut $config) {
                $(if let Some(value) = self.$key {
                    config.$field = value.into();
                })*
            }
        }
    };
}

knobs! {
    /// What a file says of the scheduler of its agents or origins.
    Knobs of Config {
        target_degree: Positive => target_degree,
        dial_degree: Positive => dial_degree,
        max_degree: Positive => max_degree,
        pipeline_agent: Positive => pipeline_agent,
        pipeline_origin: Positive => pipeline_origin,
        inflight: Number => inflight,
        inflight_most: Positive => inflight_most,
        offers: Number => offers,
        offer_patience_ms: Millis => offer_patience,
        offer_wait_ms: Millis => offer_wait,
        pipeline_unproven: Positive => pipeline_unproven,
        newcomer_pieces: Number => newcomer_pieces,
        max_uploads_per_peer: Positive => max_uploads_per_peer,
        have_delay_ms: Millis => have_delay,
        read_ahead: Number => read_ahead,
        patience_ms: Millis => patience,
        endgame_pieces: Number => endgame_pieces,
        endgame_age_ms: Millis => endgame_age,
        stall_after_ms: Millis => stall_after,
        watch_ms: Millis => watch,
        drop_after_ms: Millis => drop_after,
        announce_hurry_ms: Millis => announce_hurry,
        announce_hurry_max_ms: Millis => announce_hurry_max,
        retry_ms: Millis => retry,
        retry_max_ms: Millis => retry_max,
        ban_ms: Millis => ban,
        ban_max_ms: Millis => ban_max,
        max_conns: Positive => max_conns,
        conn_idle_ms: Millis => conn_idle,
    }
}

knobs! {
    /// What a file says of its trackers.
    TrackerKnobs of TrackerConfig {
        degree: Positive => degree,
        max_handout: Positive => max_handout,
        sample: Positive => sample,
        balanced: bool => balanced,
        near_share: Share => near_share,
        short_interval_ms: Millis => short_interval,
        leeching_interval_ms: Millis => leeching_interval,
        seeding_interval_ms: Millis => seeding_interval,
        missed: Positive => missed,
        max_swarms: Positive => max_swarms,
        max_swarm_peers: Positive => max_swarm_peers,
    }
}
