//! Room for strangers: connections that have proved nothing and asked for nothing yet.
//!
//! Each costs a descriptor and some memory, and whoever opens many and says nothing wants to keep
//! others out. So there is always room for one more: when a gate is full, one of those inside has to
//! go, the oldest of the address that holds the most. A flood from one address displaces itself, and
//! one from many has to be as fast as handshakes are to displace honest ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// A gate with a fixed room. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    room: usize,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    entered: u64,
    count: usize,
    /// Those inside in the order in which they came, by address.
    by_addr: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
    /// How many each address holds, and its oldest: the last one has to go first.
    crowds: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
}

/// The place of an address among the crowds; none when it holds nobody.
fn place(
    addr: IpAddr,
    held: &BTreeMap<u64, CancellationToken>,
) -> Option<(usize, Reverse<u64>, IpAddr)> {
    let (oldest, _) = held.first_key_value()?;
    Some((held.len(), Reverse(*oldest), addr))
}

/// A place inside, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Gate,
    addr: IpAddr,
    number: u64,
    put_out: CancellationToken,
}

impl Gate {
    /// A gate with room for so many.
    pub(crate) fn new(room: usize) -> Self {
        Self {
            room,
            inside: Arc::default(),
        }
    }

    /// Lets somebody in, and puts somebody out when that makes one too many.
    pub(crate) fn enter(&self, addr: IpAddr) -> Pass {
        let put_out = CancellationToken::new();
        let mut inside = self.inside();
        inside.entered += 1;
        let number = inside.entered;
        inside.change(addr, |held| held.insert(number, put_out.clone()));
        if inside.count > self.room {
            inside.put_one_out();
        }
        drop(inside);
        Pass {
            gate: self.clone(),
            addr,
            number,
            put_out,
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Cancelled when this one has to go, and never once it is dropped.
    #[cfg(feature = "http")]
    pub(crate) fn put_out(&self) -> CancellationToken {
        self.put_out.clone()
    }

    /// Does `work` inside; `None` when this one had to go before it was done.
    pub(crate) async fn hold<W: Future>(self, work: W) -> Option<W::Output> {
        self.put_out.run_until_cancelled(work).await
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let number = self.number;
        let mut inside = self.gate.inside();
        inside.change(self.addr, |held| held.remove(&number));
    }
}

impl Inside {
    /// The one place where what an address holds and its number change.
    fn change<T>(
        &mut self,
        addr: IpAddr,
        change: impl FnOnce(&mut BTreeMap<u64, CancellationToken>) -> T,
    ) -> T {
        let held = self.by_addr.entry(addr).or_default();
        if let Some(before) = place(addr, held) {
            self.crowds.remove(&before);
        }
        self.count -= held.len();
        let result = change(held);
        self.count += held.len();
        match place(addr, held) {
            Some(after) => drop(self.crowds.insert(after)),
            None => drop(self.by_addr.remove(&addr)),
        }
        result
    }

    fn put_one_out(&mut self) {
        let Some(&(_, _, addr)) = self.crowds.last() else {
            return;
        };
        if let Some((_, oldest)) = self.change(addr, BTreeMap::pop_first) {
            oldest.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt as _;

    use super::*;

    fn addr(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn gone(pass: &Pass) -> bool {
        pass.put_out.is_cancelled()
    }

    #[tokio::test]
    async fn who_crowds_it_displaces_its_own_oldest() {
        let gate = Gate::new(4);
        let honest = gate.enter(addr(1));
        let flood: Vec<_> = (0..1000).map(|_| gate.enter(addr(2))).collect();
        assert!(!gone(&honest));
        let out = flood.iter().take_while(|pass| gone(pass)).count();
        assert_eq!(out, 997, "the last three stay");
        assert!(flood[out..].iter().all(|pass| !gone(pass)));
        assert_eq!(gate.inside().count, 4);
        drop((honest, flood));
        let inside = gate.inside();
        assert_eq!(inside.count, 0);
        assert!(inside.by_addr.is_empty() && inside.crowds.is_empty());
    }

    #[tokio::test]
    async fn of_many_that_hold_one_each_the_oldest_goes() {
        let gate = Gate::new(3);
        let passes: Vec<_> = [9, 1, 200, 4, 7].map(|last| gate.enter(addr(last))).into();
        let gone: Vec<_> = passes.iter().map(gone).collect();
        assert_eq!(gone, [true, true, false, false, false]);
    }

    #[tokio::test]
    async fn who_has_left_makes_room() {
        let gate = Gate::new(2);
        let first = gate.enter(addr(1));
        assert_eq!(gate.enter(addr(1)).hold(ready(7)).await, Some(7));
        let _second = gate.enter(addr(1));
        assert!(!gone(&first));
        let mut waits = Box::pin(first.hold(pending::<()>()));
        assert_eq!(waits.as_mut().now_or_never(), None);
        let _third = gate.enter(addr(1));
        assert_eq!(waits.now_or_never(), Some(None), "the oldest goes");
    }
}
