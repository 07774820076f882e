//! The memory of one device, shared by the models that run on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the models of one device may use together; clones share it. Holds no lock.
#[derive(Debug, Clone)]
pub struct DeviceBudget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: Option<u64>,
    used: AtomicU64,
}

impl DeviceBudget {
    /// A budget of `limit` bytes; `None`: no limit.
    pub fn new(limit: Option<u64>) -> Self {
        Self { shared: Arc::new(Shared { limit, used: AtomicU64::new(0) }) }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.shared.limit
    }

    /// Bytes reserved now.
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Acquire)
    }

    /// Bytes that may be reserved now, unless another model takes them first; `u64::MAX`: no limit.
    pub fn free(&self) -> u64 {
        self.shared.limit.map_or(u64::MAX, |limit| limit - self.used())
    }

    /// Takes `bytes` until the reservation is dropped; `None`: they are not free.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let limit = self.shared.limit.unwrap_or(u64::MAX);
        let taken = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        self.shared.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).ok()?;
        Some(Reservation { shared: Arc::clone(&self.shared), bytes })
    }
}

/// Bytes of a [`DeviceBudget`]; dropping gives them back.
#[derive(Debug)]
#[must_use = "dropping gives the bytes back"]
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Reservation {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
