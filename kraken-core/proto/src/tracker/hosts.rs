//! The hosts behind the members of all swarms: each is kept once, however many blobs it has.

use std::collections::BTreeMap;

use crate::peer::{PeerId, PeerInfo};

/// A host's place in the table, for as long as it is a member of any swarm.
pub(super) type HostId = u32;

/// The hosts. Invariant: a host is there if and only if it is a member of at least one swarm.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    ids: BTreeMap<PeerId, HostId>,
    /// What each is, and of how many swarms it is a member; `None` in a place that is free.
    entries: Vec<Option<(PeerInfo, u32)>>,
    free: Vec<HostId>,
}

impl Hosts {
    pub(super) fn find(&self, id: &PeerId) -> Option<HostId> {
        self.ids.get(id).copied()
    }

    /// A host as it was heard of last.
    pub(super) fn info(&self, host: HostId) -> &PeerInfo {
        let entry = self.entries[host as usize].as_ref();
        &entry.expect("a member's host is there").0
    }

    /// Takes note of what a host is that is there.
    pub(super) fn heard(&mut self, host: HostId, info: &PeerInfo) {
        if let Some((known, _)) = &mut self.entries[host as usize]
            && known != info
        {
            *known = info.clone();
        }
    }

    /// A host becomes a member of one swarm more.
    pub(super) fn join(&mut self, info: &PeerInfo) -> HostId {
        if let Some(host) = self.find(&info.id) {
            self.heard(host, info);
            if let Some((_, swarms)) = &mut self.entries[host as usize] {
                *swarms += 1;
            }
            return host;
        }
        let entry = Some((info.clone(), 1));
        let host = match self.free.pop() {
            Some(host) => {
                self.entries[host as usize] = entry;
                host
            }
            None => {
                self.entries.push(entry);
                HostId::try_from(self.entries.len() - 1).expect("bounded by the members")
            }
        };
        self.ids.insert(info.id, host);
        host
    }

    /// A host is a member of one swarm less.
    pub(super) fn leave(&mut self, host: HostId) {
        let entry = &mut self.entries[host as usize];
        let Some((info, swarms)) = entry else {
            return;
        };
        *swarms -= 1;
        if *swarms == 0 {
            self.ids.remove(&info.id);
            *entry = None;
            self.free.push(host);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.ids.len() + self.free.len(), self.entries.len());
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::testing::{peer, zoned};

    #[test]
    fn a_host_is_kept_once_and_goes_with_its_last_swarm() {
        let mut hosts = Hosts::default();
        let (one, other) = (hosts.join(&peer(1)), hosts.join(&peer(2)));
        assert_eq!(hosts.join(&zoned(1, "a")), one);
        assert_eq!(hosts.info(one).zone, zoned(1, "a").zone, "as it says now");
        hosts.leave(one);
        assert_eq!((hosts.find(&peer(1).id), hosts.len()), (Some(one), 2));
        hosts.leave(one);
        assert_eq!((hosts.find(&peer(1).id), hosts.len()), (None, 1));
        assert_eq!(hosts.join(&peer(3)), one, "its place is used again");
        assert_eq!(hosts.info(other).id, peer(2).id);
    }
}
