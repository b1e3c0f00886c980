//! A blob of which only parts are fetched: what its readers want, and some of what lies ahead of those
//! that read forward.
//!
//! A piece that nobody wants is asked of nobody, as one that cannot be proved. Peers hear of it, so that
//! none offers pieces. While nothing is wanted the swarm is *idle*: it serves what is here, and looks for
//! nobody.
//!
//! Hosts that start the same container read the same parts at about the same time, and nobody offers them
//! pieces, so that each could draw its own copy out of an origin. So a host asks an origin for what no
//! agent around has a moment later, by chance, the later the more agents are around: the first ones have
//! it by then, and said so.

use std::ops::Range;

use super::{Context, Swarm};
use crate::picker::readahead::ReadAhead;
use crate::picker::window::ReaderId;
use crate::scheduler::action::Action;
use crate::scheduler::config::Config;
use crate::scheduler::input::Extent;
use crate::time::Timestamp;

/// What is wanted beside what readers do, and from when on origins are asked.
#[derive(Debug)]
pub(super) struct Parts {
    ahead: ReadAhead,
    origins_at: Timestamp,
}

/// With this many agents around, an origin is asked within `offer_wait`.
const CROWD: u32 = 4;
/// More of them make nobody wait longer.
const LARGE_CROWD: u32 = 2 * CROWD;

impl Swarm {
    /// Fetches all of the blob from now on, or only parts.
    pub(crate) fn fetch(&mut self, cx: &mut Context<'_>, extent: Extent) {
        let is_partial = extent == Extent::Parts && !self.is_complete();
        if is_partial == self.parts.is_some() {
            return;
        }
        self.parts = is_partial.then(|| Parts {
            ahead: ReadAhead::default(),
            origins_at: cx.now,
        });
        self.revise(0..self.have.len());
        for conn in self.conns().collect::<Vec<_>>() {
            let message = self.greeting();
            cx.out.push_back(Action::Send { conn, message });
        }
        self.fill_all(cx);
    }

    /// A reader moved.
    pub(crate) fn want(&mut self, cx: &mut Context<'_>, reader: ReaderId, pieces: Range<u32>) {
        self.move_reader(cx, reader, pieces);
        self.fill_all(cx);
    }

    /// A reader begins.
    pub(crate) fn read(&mut self, cx: &mut Context<'_>, reader: ReaderId, bytes: Range<u64>) {
        let pieces = self.spec.pieces_of(bytes.clone());
        self.move_reader(cx, reader, pieces);
        self.look_ahead(cx, bytes);
        self.let_others_begin(cx);
        self.fill_all(cx);
    }

    fn move_reader(&mut self, cx: &Context<'_>, reader: ReaderId, pieces: Range<u32>) {
        let end = pieces.end.min(self.have.len());
        let missing = (pieces.start..end)
            .find(|piece| !self.have.has(*piece))
            .unwrap_or(end);
        let before = self.window.wants(reader);
        self.window.set(cx.now, reader, missing..end);
        if self.parts.is_some() {
            let after = self.window.wants(reader);
            if before.is_empty() || after.is_empty() {
                self.revise(before);
                self.revise(after);
                return;
            }
            // Where one ends that the other has.
            self.revise(before.start.min(after.start)..before.start.max(after.start));
            self.revise(before.end.min(after.end)..before.end.max(after.end));
        }
    }

    fn look_ahead(&mut self, cx: &Context<'_>, bytes: Range<u64>) {
        let Some(Parts { ahead, .. }) = &mut self.parts else {
            return;
        };
        let before: Vec<_> = ahead.ranges().collect();
        ahead.read(bytes, &self.spec, cx.config.ahead_most);
        let after: Vec<_> = ahead.ranges().collect();
        let is_changed = |range: &&Range<u32>| !(before.contains(range) && after.contains(range));
        for range in before.iter().chain(&after).filter(is_changed) {
            self.revise(range.clone());
        }
    }

    /// Waits by chance before an origin is asked, when agents are around.
    fn let_others_begin(&mut self, cx: &mut Context<'_>) {
        let agents = self.peers.values().filter(|peer| peer.is_agent()).count();
        let agents = u32::try_from(agents).unwrap_or(u32::MAX).min(LARGE_CROWD);
        let most = cx.config.offer_wait * agents / CROWD;
        if let Some(parts) = self.parts.as_mut().filter(|it| it.origins_at <= cx.now) {
            let wait = most.mul_f64(cx.rng.unit());
            parts.origins_at = cx.now + wait;
        }
    }

    /// An origin is there: agents may be a moment later.
    pub(super) fn met_origin(&mut self, now: Timestamp, config: &Config) {
        if let Some(parts) = &mut self.parts {
            parts.origins_at = parts.origins_at.max(now + config.offer_wait);
        }
    }

    /// From when on an origin may be asked for what no agent has.
    pub(super) fn asks_origins_at(&self) -> Option<Timestamp> {
        let parts = self.parts.as_ref();
        parts
            .filter(|_| self.rarest.open_count() > 0)
            .map(|it| it.origins_at)
    }

    /// Of these pieces, those that are wanted may be asked for, and the others not.
    fn revise(&mut self, pieces: Range<u32>) {
        for piece in pieces {
            if self.wants(piece) {
                self.reopen(piece);
            } else {
                self.rarest.close(piece);
            }
        }
    }

    /// Whether anybody here wants `piece`.
    pub(super) fn wants(&self, piece: u32) -> bool {
        let parts = self.parts.as_ref();
        parts.is_none_or(|it| self.window.contains(piece) || it.ahead.contains(piece))
    }

    /// Whether only parts are fetched, and all that is wanted of them is here or being written: there
    /// is nothing to look for.
    pub(crate) fn is_idle(&self) -> bool {
        self.parts.is_some() && self.rarest.open_count() == 0 && self.inflight.is_empty()
    }

    /// Whether something is wanted of parts and there is nobody to ask.
    pub(crate) fn is_lonely(&self) -> bool {
        self.parts.is_some() && self.peers.is_empty() && self.rarest.open_count() > 0
    }

    /// How many pieces are wanted and not here.
    pub(super) fn missing(&self) -> u32 {
        if self.parts.is_none() {
            return self.have.len() - self.have.count();
        }
        let coming = self.inflight.len() + self.storing.len();
        self.rarest.open_count() + u32::try_from(coming).unwrap_or(u32::MAX)
    }

    /// Of what may be asked for, where only parts are fetched: what readers want next, then the rest
    /// of what they want, then what lies ahead of them.
    pub(super) fn choose_part(
        &self,
        cx: &mut Context<'_>,
        eligible: &dyn Fn(u32) -> bool,
    ) -> Option<u32> {
        let Parts { ahead, .. } = self.parts.as_ref()?;
        let free = |piece: &u32| self.rarest.is_open(*piece) && eligible(*piece);
        let next = self.window.ahead(cx.config.read_ahead).find(free);
        let of_readers = |piece: u32| self.window.contains(piece) && eligible(piece);
        next.or_else(|| self.rarest.pick(.., cx.rng, of_readers))
            .or_else(|| ahead.nearest_first().find(free))
    }

    /// The same of an origin: what a reader has waited for too long, and what no agent around has, or
    /// sends, after a while.
    pub(super) fn choose_part_of_origin(
        &self,
        cx: &mut Context<'_>,
        eligible: &dyn Fn(u32) -> bool,
    ) -> Option<u32> {
        let free = |piece: &u32| self.rarest.is_open(*piece) && eligible(*piece);
        let late = self.window.late(cx.now, cx.config.patience).find(free);
        if late.is_some() || self.asks_origins_at().is_none_or(|at| at > cx.now) {
            return late;
        }
        let is_starving = self.is_starving(cx.now, cx.config);
        let alone = |piece: u32| is_starving || self.rarest.count(piece) == 0;
        self.choose_part(cx, &|piece| eligible(piece) && alone(piece))
    }
}
