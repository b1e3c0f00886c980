//! The passing of time in a swarm: news that are due, peers that are silent.

use std::time::Duration;

use super::ask::COPIES;
use super::peers::Neighbour;
use super::{Context, Swarm};
use crate::scheduler::action::{Action, Event};
use crate::scheduler::config::Config;
use crate::scheduler::input::ConnId;
use crate::time::Timestamp;
use crate::wire::message::Message;

impl Swarm {
    /// Does what is due, and names the neighbours that have been silent for too long.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) -> Vec<ConnId> {
        if self.news_at.is_some_and(|at| at <= cx.now) {
            self.tell_news(cx);
        }
        let mut silent = Vec::new();
        if self.watch_at.is_some_and(|at| at <= cx.now) {
            silent = self.watch(cx);
        }
        let now = cx.now;
        let restless = self
            .restless(cx.config)
            .into_iter()
            .flatten()
            .any(|at| at <= now);
        if restless || !self.window.is_empty() {
            self.fill_all(cx);
        }
        silent
    }

    /// When `tick` is due next.
    pub(crate) fn next_tick(&self, now: Timestamp, config: &Config) -> Option<Timestamp> {
        let restless = self.restless(config).into_iter().flatten();
        let patience = || self.window.next_urgent(now, config.patience);
        let patience = (!self.is_complete()).then(patience).flatten();
        self.news_at
            .into_iter()
            .chain(self.watch_at)
            .chain(restless.filter(|at| *at > now))
            .chain(patience)
            .min()
    }

    /// When more may be asked for although nothing has happened: of an origin because no agent
    /// sends anything, or after a while where only parts are fetched, and of a second peer in the end
    /// game.
    fn restless(&self, config: &Config) -> [Option<Timestamp>; 3] {
        if self.is_complete() {
            return [None; 3];
        }
        let doubling = self.in_endgame(config).then(|| {
            let oldest = self.inflight.oldest_single(COPIES)?;
            Some(oldest + self.doubling_age(config))
        });
        let parts = self.asks_origins_at();
        [self.starves_at(config), doubling.flatten(), parts]
    }

    /// Looks for silent neighbours and forgotten offers.
    fn watch(&mut self, cx: &mut Context<'_>) -> Vec<ConnId> {
        let mut silent = Vec::new();
        self.measure_service();
        let stall_after = cx.config.stall_after.max(self.service * 4);
        for conn in self.owing() {
            match self.silence(cx.now, conn) {
                Some(span) if span >= cx.config.drop_after.max(stall_after * 2) => {
                    silent.push(conn)
                }
                Some(span) if span >= stall_after => self.stall(cx, conn),
                _ => {}
            }
        }
        if let Some(offers) = &mut self.offers {
            offers.expire(cx.now);
        }
        self.offer(cx);
        self.fill_all(cx);
        let idle = self.inflight.is_empty() && self.offers.as_ref().is_none_or(|it| it.is_idle());
        self.watch_at = (!idle).then(|| cx.now + cx.config.watch);
        silent
    }

    fn measure_service(&mut self) {
        let services = self.peers.values().map(|peer| peer.service);
        let mut known: Vec<_> = services.filter(|it| !it.is_zero()).collect();
        known.sort_unstable();
        if let Some(median) = known.get(known.len() / 2) {
            self.service = *median;
        }
    }

    /// The neighbours that owe a piece.
    fn owing(&self) -> Vec<ConnId> {
        let mut owing: Vec<_> = self.inflight.iter().map(|request| request.conn).collect();
        owing.sort_unstable();
        owing.dedup();
        owing
    }

    /// For how long the neighbour has owed a piece without having sent any.
    fn silence(&self, now: Timestamp, conn: ConnId) -> Option<Duration> {
        let oldest = self.inflight.oldest_of(conn)?;
        let peer = self.peers.get(&conn)?;
        Some(now.since(oldest.max(peer.last_piece)))
    }

    fn stall(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        let Some(peer) = self.peers.get_mut(&conn).filter(|peer| !peer.stalled) else {
            return;
        };
        peer.stalled = true;
        let event = Event::PeerStalled {
            digest: self.spec.digest,
            peer: peer.id,
        };
        cx.out.push_back(Action::Event(event));
        let late = self.inflight.mark_late(conn);
        late.into_iter().for_each(|piece| self.reopen(piece));
    }

    pub(super) fn tell_news(&mut self, cx: &mut Context<'_>) {
        self.news_at = None;
        let news = std::mem::take(&mut self.news);
        let digest = self.spec.digest;
        // Whoever has everything needs no news, but for an origin: it offers what is scarce.
        let curious = |peer: &Neighbour| !peer.is_complete() || !peer.is_agent();
        for (conn, peer) in self.peers.iter().filter(|(_, peer)| curious(peer)) {
            for part in news.chunks(Message::MAX_HAVES) {
                let unknown = |piece: &u32| !peer.is_agent() || !peer.have.has(*piece);
                let unknown = part.iter().copied().filter(unknown);
                let pieces: Vec<_> = unknown.collect();
                if !pieces.is_empty() {
                    let (conn, message) = (*conn, Message::Have { digest, pieces });
                    cx.out.push_back(Action::Send { conn, message });
                }
            }
        }
        self.news = news;
        self.news.clear();
    }
}
