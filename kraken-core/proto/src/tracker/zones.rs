//! The members of a swarm by zone.
//!
//! A zone is a vector of places without gaps, so that drawing some of its members costs what is
//! drawn. Invariant, kept together with [`super::peers`]: a member's seat is where its place lies
//! in its zone's vector; no zone is empty. With `z` zones every change costs O(log z).

use std::collections::BTreeMap;

use crate::zone::Zone;

/// Who is where. Members have places in the swarm and, if they have a zone, seats in it.
#[derive(Debug, Default)]
pub(super) struct Zones(BTreeMap<Zone, Vec<u32>>);

impl Zones {
    /// The places of a zone's members.
    pub(super) fn members(&self, zone: &Zone) -> &[u32] {
        self.0.get(zone).map_or(&[], Vec::as_slice)
    }

    /// Seats the member at `place` and says where; members without a zone get a seat that means
    /// nothing.
    pub(super) fn enter(&mut self, zone: Option<&Zone>, place: u32) -> u32 {
        let Some(zone) = zone else {
            return 0;
        };
        if !self.0.contains_key(zone) {
            self.0.insert(zone.clone(), Vec::new());
        }
        let seats = self.0.get_mut(zone).expect("it was put there if need be");
        seats.push(place);
        u32::try_from(seats.len() - 1).expect("bounded by the members")
    }

    /// Frees a seat and answers with the place of the member that was moved to it, if one was.
    pub(super) fn leave(&mut self, zone: Option<&Zone>, seat: u32) -> Option<u32> {
        let zone = zone?;
        let seats = self.0.get_mut(zone)?;
        seats.swap_remove(seat as usize);
        let moved = seats.get(seat as usize).copied();
        if seats.is_empty() {
            self.0.remove(zone);
        }
        moved
    }

    /// The member in this seat has another place now.
    pub(super) fn moved(&mut self, zone: Option<&Zone>, seat: u32, place: u32) {
        if let Some(seats) = zone.and_then(|zone| self.0.get_mut(zone)) {
            seats[seat as usize] = place;
        }
    }

    /// All zones and the places in their seats, for tests.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Zone, &[u32])> {
        self.0.iter().map(|(zone, seats)| (zone, seats.as_slice()))
    }
}
