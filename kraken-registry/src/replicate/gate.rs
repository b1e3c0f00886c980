//! What goes to one place, or comes from there: when, how fast, and what operators are told of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kraken_proto::tags::hours::{Allowed, Plan};

use super::status::Told;
use super::traffic::Traffic;
use crate::tags::pending::unix_ms;

/// Opens and closes by a plan, and by what operators say.
pub(super) struct Gate {
    /// The bytes of blobs, where any pass here.
    traffic: Option<Arc<Traffic>>,
    plan: Plan,
    is_paused: AtomicBool,
    told: Mutex<Told>,
}

impl Gate {
    pub(super) fn new(traffic: Option<Arc<Traffic>>, plan: Plan) -> Self {
        Self {
            traffic,
            plan,
            is_paused: AtomicBool::new(false),
            told: Mutex::default(),
        }
    }

    pub(super) fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }

    /// What may pass now, as this cluster has it.
    pub(super) fn allowed(&self) -> Allowed {
        match self.is_paused() {
            true => Allowed::Nothing,
            false => self.plan.at(unix_ms()),
        }
    }

    /// Whether nothing passes at this hour.
    pub(super) fn is_closed(&self) -> bool {
        self.plan.at(unix_ms()) == Allowed::Nothing
    }

    /// Lets pass what may, which is nothing when the other side holds it back. Whether that is anything, and
    /// whether it was nothing before.
    pub(super) fn regulate(&self, is_held: bool) -> (bool, bool) {
        let allowed = match is_held {
            true => Allowed::Nothing,
            false => self.allowed(),
        };
        let traffic = self.traffic.as_ref();
        let is_new = traffic.is_some_and(|it| it.allow(allowed));
        (allowed != Allowed::Nothing, is_new)
    }

    /// Nothing passes any more.
    pub(super) fn close(&self) {
        if let Some(traffic) = &self.traffic {
            traffic.close();
        }
    }

    /// The blobs that passed since the start, and their bytes.
    pub(super) fn passed(&self) -> (u64, u64) {
        self.traffic.as_ref().map_or((0, 0), |it| it.sent())
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
