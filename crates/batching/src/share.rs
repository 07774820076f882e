//! Fair sharing between clients: start-time fair queueing (Goyal, Vin and Cheng, 1996).

use crate::entry::{ClientId, Priority};
use crate::hash::FastMap;

/// Idle clients remembered before those that are owed nothing are forgotten.
const MOST_IDLE: usize = 4_096;

#[derive(Debug, Clone, Copy, Default)]
struct Share {
    /// The virtual time at which the client's next request starts.
    start: u64,
    waiting: u32,
}

/// What each client has had of each priority's service, as virtual time: who has had least is next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shares {
    clients: FastMap<(Priority, ClientId), Share>,
    /// The start of the last request served, by priority: where a newcomer begins.
    now: [u64; Priority::COUNT],
}

impl Shares {
    /// A request of `client` waits.
    pub(crate) fn joined(&mut self, priority: Priority, client: ClientId) {
        let now = self.now[priority as usize];
        let share = self.clients.entry((priority, client)).or_default();
        if share.waiting == 0 {
            // Neither saved up while idle, nor lost by a break.
            share.start = share.start.max(now);
        }
        share.waiting += 1;
    }

    /// A request of `client` waits no longer: it was served at `charge`, or ended unserved (0).
    pub(crate) fn left(&mut self, priority: Priority, client: ClientId, charge: u64) {
        let now = &mut self.now[priority as usize];
        let Some(share) = self.clients.get_mut(&(priority, client)) else { return };
        if charge > 0 {
            *now = (*now).max(share.start);
            share.start += charge;
        }
        share.waiting -= 1;
        if self.clients.len() > MOST_IDLE {
            self.forget_idle();
        }
    }

    /// When the next request of `client`, which has one waiting, starts in virtual time.
    pub(crate) fn start(&self, priority: Priority, client: ClientId) -> u64 {
        self.clients.get(&(priority, client)).map_or(0, |share| share.start)
    }

    fn forget_idle(&mut self) {
        let now = self.now;
        let before = self.clients.len();
        self.clients
            .retain(|&(priority, _), share| share.waiting > 0 || share.start > now[priority as usize]);
        if self.clients.len() * 2 > before {
            // Their debts are at most one request each; a bound on memory is worth more.
            self.clients.retain(|_, share| share.waiting > 0);
        }
    }

    #[cfg(test)]
    pub(crate) fn nobody_waits(&self) -> bool {
        self.clients.values().all(|share| share.waiting == 0)
    }
}
