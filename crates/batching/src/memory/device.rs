//! The memory of one device, shared by the models that run on it.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// What the models of one device may use together; clones share it.
#[derive(Debug, Clone)]
pub struct DeviceBudget {
    limit: u64,
    used: Arc<Mutex<u64>>,
}

impl DeviceBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, used: Arc::default() }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes reserved now.
    pub fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Keeps others from taking what is free until the guard is dropped.
    pub fn lock(&self) -> BudgetGuard<'_> {
        BudgetGuard { budget: self, used: self.used.lock() }
    }
}

/// A locked [`DeviceBudget`], for the moment between looking and taking.
#[derive(Debug)]
pub struct BudgetGuard<'a> {
    budget: &'a DeviceBudget,
    used: MutexGuard<'a, u64>,
}

impl BudgetGuard<'_> {
    /// Bytes that may be reserved.
    pub fn free(&self) -> u64 {
        self.budget.limit.saturating_sub(*self.used)
    }

    /// Takes `bytes` until the reservation is dropped.
    pub fn reserve(&mut self, bytes: u64) -> Reservation {
        *self.used += bytes;
        Reservation { budget: self.budget.clone(), bytes }
    }
}

/// Bytes of a [`DeviceBudget`]; dropping gives them back.
#[derive(Debug)]
#[must_use = "dropping gives the bytes back"]
pub struct Reservation {
    budget: DeviceBudget,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.budget.used.lock() -= self.bytes;
    }
}
