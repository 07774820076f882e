//! What a batcher may be asked for beyond its limits: who runs again, who is refused, who goes first.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use trustformers_batching::{BreakerConfig, Isolation, Mode, Priority, SchedulerConfig};

use super::entrance::Backpressure;
use crate::interrupt::seconds;

/// A mapping of all of its fields, as Python has it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Terms {
    /// Whether a batch that fails runs again in halves, until only its culprits fail.
    bisect: bool,
    /// The time that an item should take, in seconds; who would wait far longer is refused.
    latency_slo: Option<f64>,
    /// Whether the size of batches follows that time.
    adaptive: bool,
    /// Whether priorities count.
    priorities: bool,
    /// Seconds after which places go to who waited longest.
    ageing: f64,
    /// Failures in a row that open the breaker, the seconds within which they lie, and those it stays open.
    breaker: Option<(u32, f64, f64)>,
}

impl Terms {
    /// Makes them those of a batcher that is to be.
    ///
    /// # Errors
    /// `ValueError` where items could be refused while their callers wait for a place in the queue.
    pub(super) fn apply(&self, config: &mut SchedulerConfig, backpressure: Backpressure) -> PyResult<()> {
        if backpressure == Backpressure::Block && (self.latency_slo.is_some() || self.breaker.is_some()) {
            let text = "a breaker or a latency objective refuses at once; callers cannot wait for a place";
            return Err(PyValueError::new_err(text));
        }
        config.isolation = if self.bisect { Isolation::Bisect } else { Isolation::None };
        config.mode = if self.adaptive { Mode::Adaptive } else { Mode::Dynamic };
        config.latency_slo = self.latency_slo.map(seconds).transpose()?;
        // Callers know one limit, whatever the load.
        config.adaptive.high_load_batch_size = config.max_batch_size;
        config.priorities = self.priorities;
        config.ageing = Some(seconds(self.ageing)?);
        config.breaker = self.breaker.map(breaker).transpose()?;
        Ok(())
    }
}

fn breaker((failures, window, open): (u32, f64, f64)) -> PyResult<BreakerConfig> {
    let [window, open]: [Duration; 2] = [seconds(window)?, seconds(open)?];
    Ok(BreakerConfig { failures, window, open })
}

/// The priority of a name.
///
/// # Errors
/// `ValueError` naming those there are.
pub(super) fn priority(name: &str) -> PyResult<Priority> {
    Priority::DESCENDING.into_iter().find(|priority| priority.name() == name).ok_or_else(|| {
        PyValueError::new_err(format!("priority must be 'low', 'normal', 'high' or 'critical', not '{name}'"))
    })
}
