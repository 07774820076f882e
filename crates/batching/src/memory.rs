//! What a batch needs in bytes, and what it may have.
//!
//! The size of a batch is its elements: items x padded length, or items where inputs have no length. One
//! formula, [`MemoryModel::bytes`], answers every question with another amount of free space. It is
//! declared, or learned from the peaks of recent batches ([`Envelope`]). An allocation failure proves the
//! formula or the limit wrong, so it lowers a limit in elements, which successes raise again.

mod device;
mod envelope;

pub use device::{DeviceBudget, Reservation};

use self::envelope::Envelope;

/// Successful batches between two raises of a limit that an allocation failure lowered.
const RAISE_EVERY: u32 = 64;

/// The memory of one model: its need by batch size, and its limit.
#[derive(Debug, Clone)]
pub struct MemoryModel {
    /// The configured limit in bytes.
    configured: Option<u64>,
    /// Bytes per element; takes the place of all learning.
    declared: Option<u64>,
    seen: Envelope,
    /// The most elements since an allocation failure; at least 1. In elements, so that it means the same
    /// where nothing is known of bytes.
    lowered: Option<u64>,
    /// Successes since `lowered` last changed.
    successes: u32,
}

impl MemoryModel {
    /// A model that may use `limit` bytes (`None`: any) and needs `declared_bytes_per_element` (`None` or
    /// 0: learned).
    pub fn new(limit: Option<u64>, declared_bytes_per_element: Option<u64>) -> Self {
        Self {
            configured: limit,
            declared: declared_bytes_per_element.filter(|bytes| *bytes > 0),
            seen: Envelope::default(),
            lowered: None,
            successes: 0,
        }
    }

    /// The bytes that a batch of `elements` needs: declared or learned; 0 while nothing is known.
    pub fn bytes(&self, elements: u64) -> u64 {
        match self.declared {
            Some(bytes) => elements.saturating_mul(bytes),
            None => self.seen.bytes(elements),
        }
    }

    /// A batch of `elements` succeeded and used `peak_bytes` at its peak; 0: nobody measured it.
    pub fn observe(&mut self, elements: u64, peak_bytes: u64) {
        if self.declared.is_none() && elements > 0 && peak_bytes > 0 {
            self.seen.add(elements, peak_bytes);
        }
        let Some(lowered) = self.lowered else { return };
        self.successes += 1;
        if self.successes >= RAISE_EVERY {
            self.successes = 0;
            let raised = lowered.saturating_add((lowered / 20).max(1));
            self.lowered = (raised < self.max_configured()).then_some(raised);
        }
    }

    /// The allocator failed in a batch of `elements`: from now on batches stay a fifth below it. Never less
    /// than one element; and a planner lets an item alone through whatever this limit says (see
    /// [`MemoryModel::can_ever_fit`]), or nothing would ever succeed and raise it again.
    pub fn out_of_memory(&mut self, elements: u64) {
        let below = (u128::from(elements) * 4 / 5) as u64;
        self.lowered = Some(self.lowered.unwrap_or(u64::MAX).min(below).max(1));
        self.successes = 0;
    }

    /// The largest batch within the limit in force, in elements; `u64::MAX`: no limit.
    pub fn max_elements(&self) -> u64 {
        self.max_configured().min(self.lowered.unwrap_or(u64::MAX))
    }

    /// The limit in force in bytes: the configured one, or what an allocation failure left of it. `None`:
    /// no limit, or one that is known in elements only.
    pub fn limit(&self) -> Option<u64> {
        let lowered = self.lowered.map(|elements| self.bytes(elements)).filter(|bytes| *bytes > 0);
        match (self.configured, lowered) {
            (Some(configured), Some(lowered)) => Some(configured.min(lowered)),
            (one, other) => one.or(other),
        }
    }

    /// Whether a batch of `elements` fits the limit in force and `free` bytes (of a shared device).
    pub fn fits(&self, elements: u64, free: u64) -> bool {
        elements <= self.max_elements() && self.bytes(elements) <= free
    }

    /// Whether an item of `elements` could run alone with all the configured limit free.
    ///
    /// A lowered limit refuses nobody, because it may pass. Nor does a learned formula alone, which may
    /// extrapolate from a few small batches: a wrong refusal would never be found out, because what is
    /// refused teaches nothing. So there must also be batches, no larger, that used more than the limit.
    /// A planner lets an item that passes here run alone, also where [`MemoryModel::fits`] says no; then
    /// its size is known.
    ///
    /// # Errors
    /// The bytes it needs, and the limit.
    pub fn can_ever_fit(&self, elements: u64) -> Result<(), (u64, u64)> {
        let Some(limit) = self.configured else { return Ok(()) };
        let needed = self.bytes(elements);
        let proved = self.declared.is_some() || self.seen.exceeded(elements, limit);
        if needed > limit && proved { Err((needed, limit)) } else { Ok(()) }
    }

    /// [`MemoryModel::max_elements`] by the configured limit alone.
    fn max_configured(&self) -> u64 {
        match (self.configured, self.declared) {
            (None, _) => u64::MAX,
            (Some(limit), Some(bytes)) => limit / bytes,
            (Some(limit), None) => self.seen.max_elements(limit),
        }
    }
}
