//! The memory of each device, shared by the models that run on it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use trustformers_batching::DeviceBudget;

/// The budgets of one server.
#[derive(Debug)]
pub(super) struct Budgets {
    /// What the models of one device may use together; `None`: there are no budgets.
    limit: Option<u64>,
    /// By the device's name: only loading tells which device `auto` is.
    of_device: Mutex<BTreeMap<String, DeviceBudget>>,
}

impl Budgets {
    /// One of `limit` bytes for each device.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, of_device: Mutex::default() }
    }

    /// That of `device`, the same for all who ask for it.
    pub(super) fn of(&self, device: &str) -> Option<DeviceBudget> {
        let limit = self.limit?;
        let mut budgets = self.of_device.lock();
        Some(budgets.entry(device.to_owned()).or_insert_with(|| DeviceBudget::new(limit)).clone())
    }
}
