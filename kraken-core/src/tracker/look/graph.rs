//! A swarm as a graph: who has how much, and what flows between whom.

use std::collections::BTreeMap;

use kraken_proto::tracker::reports::Reports;
use kraken_proto::{Digest, PeerId, PeerRole};
use serde::Serialize;

use super::{Look, name_of, of_blob, short};

/// A swarm as a graph. The lists of nodes have the same order, which stays while nodes come and go: by
/// identity. It is sent once a second, so that it is kept short.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Graph {
    /// The beginnings of the nodes' identities.
    pub ids: Vec<String>,
    /// Their names; empty in a graph of more than 400 nodes.
    pub names: Vec<String>,
    /// How much of the blob each has, in thousandths.
    pub done: Vec<u16>,
    /// Whether each is an origin: 1 or 0.
    pub origins: Vec<u8>,
    /// The place of each one's zone in the list of these; 0 is nowhere in particular.
    pub zones: Vec<u16>,
    /// The zones.
    pub zone_names: Vec<String>,
    /// What flows, the most in front.
    pub edges: Vec<Edge>,
    /// Nodes and edges that are not here because there are too many.
    pub left_out: (usize, usize),
}

/// Pieces on their way: from which node, to which, and how fast, in KiB per second; at 0 pieces went
/// there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Edge(pub u32, pub u32, pub u32);

/// The most nodes in a graph.
const MAX_NODES: usize = 10_000;
/// The most edges in a graph.
const MAX_EDGES: usize = 20_000;
/// The most nodes that have names and edges on which nothing flows now.
const MAX_NAMES: usize = 400;

impl Look {
    /// A swarm as a graph; empty when nobody takes part.
    pub fn graph(&self, digest: Digest) -> Graph {
        let mut members = self.members_of(&digest);
        let left_out = members.len().saturating_sub(MAX_NODES);
        members.truncate(MAX_NODES);
        let origins = self.origins();
        self.reports(|reports| {
            let mut nodes = Nodes::default();
            for member in &members {
                let zone = member.info.zone.as_ref().map_or("", |zone| zone.as_str());
                nodes.add(member.info.id, (member.done, false), zone);
            }
            for origin in seeding(reports, &digest) {
                nodes.add(origin, (1000, true), "");
            }
            nodes.connect(reports, &digest);
            let mut graph = nodes.graph;
            graph.left_out.0 = left_out;
            if graph.ids.len() <= MAX_NAMES {
                let names = nodes.order.iter().map(|id| name_of(id, reports, &origins));
                graph.names = names.collect();
            }
            graph
        })
    }
}

/// The origins that sent pieces of a blob.
fn seeding(reports: &Reports, digest: &Digest) -> Vec<PeerId> {
    let sources = of_blob(reports, digest).flat_map(|(_, seen)| &seen.report.sources);
    let origins = sources.filter(|source| source.role == PeerRole::Origin);
    let mut ids: Vec<_> = origins.map(|source| source.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[derive(Default)]
struct Nodes {
    graph: Graph,
    order: Vec<PeerId>,
    places: BTreeMap<PeerId, u32>,
    zones: BTreeMap<String, u16>,
}

impl Nodes {
    fn add(&mut self, id: PeerId, (done, is_origin): (u16, bool), zone: &str) {
        if self.places.contains_key(&id) {
            return;
        }
        let zone = self.zone(zone);
        self.places
            .insert(id, u32::try_from(self.order.len()).unwrap_or(u32::MAX));
        self.order.push(id);
        self.graph.ids.push(short(&id));
        self.graph.done.push(done);
        self.graph.origins.push(is_origin.into());
        self.graph.zones.push(zone);
    }

    fn zone(&mut self, zone: &str) -> u16 {
        if self.graph.zone_names.is_empty() {
            self.graph.zone_names.push(String::new());
            self.zones.insert(String::new(), 0);
        }
        if let Some(place) = self.zones.get(zone) {
            return *place;
        }
        let place = u16::try_from(self.graph.zone_names.len()).unwrap_or(0);
        self.graph.zone_names.push(zone.to_string());
        self.zones.insert(zone.to_string(), place);
        place
    }

    fn connect(&mut self, reports: &Reports, digest: &Digest) {
        let is_small = self.order.len() <= MAX_NAMES;
        let mut edges = Vec::new();
        for (host, seen) in of_blob(reports, digest) {
            let Some(to) = self.places.get(&host.report.peer.id) else {
                continue;
            };
            for (source, rate) in seen.report.sources.iter().zip(&seen.source_rates) {
                let rate = u32::try_from(rate.div_ceil(1024)).unwrap_or(u32::MAX);
                let from = self.places.get(&source.id);
                if let Some(from) = from.filter(|_| is_small || rate > 0) {
                    edges.push(Edge(*from, *to, rate));
                }
            }
        }
        edges.sort_unstable_by_key(|edge| (std::cmp::Reverse(edge.2), *edge));
        self.graph.left_out.1 = edges.len().saturating_sub(MAX_EDGES);
        edges.truncate(MAX_EDGES);
        self.graph.edges = edges;
    }
}
