//! The answers of one call, item by item, from a batcher.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use trustformers_batching::{Batcher, Failure, Reply, Submission, Ticket};

use super::batches::Unanswered;
use crate::metrics::VersionMetrics;

/// Submits `count` items, each made by `submission` from its number and its reply; one answer an item, in order.
///
/// When the future is dropped, because the client left, items that still wait never run. With
/// `all_or_none`, one that is not admitted takes the others back before they run, if it still can.
pub(super) async fn gather<I, O>(
    batcher: &Batcher<I, O>,
    metrics: &VersionMetrics,
    count: usize,
    all_or_none: bool,
    mut submission: impl FnMut(usize, Reply<O>) -> Submission<I, O>,
) -> Vec<Result<O, Unanswered>>
where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    let gathering = Arc::new(Gathering::new(count));
    let submissions = (0..count).map(|index| {
        let gathering = Arc::clone(&gathering);
        submission(
            index,
            Box::new(move |result: Result<O, Failure>| {
                gathering.put(index, result.map_err(Unanswered::Failed));
            }),
        )
    });
    let admitted = batcher.submit(submissions);
    let mut guard =
        CancelOnDrop { batcher, metrics, gathering: &gathering, tickets: Vec::with_capacity(count) };
    let mut refused = Vec::new();
    for (index, result) in admitted.into_iter().enumerate() {
        match result {
            Ok(ticket) => guard.tickets.push(ticket),
            Err(rejection) => refused.push((index, rejection)),
        }
    }
    if let Some((_, first)) = refused.first() {
        let drain = batcher.predicted_drain();
        if all_or_none {
            guard.take_back();
            return (0..count).map(|_| Err(Unanswered::Rejected(first.clone(), drain))).collect();
        }
        for (index, rejection) in refused {
            gathering.put(index, Err(Unanswered::Rejected(rejection, drain)));
        }
    }
    let results = gathering.all().await;
    guard.tickets.clear();
    results
}

struct CancelOnDrop<'a, I: Send + Sync + 'static, O: Send + 'static> {
    batcher: &'a Batcher<I, O>,
    metrics: &'a VersionMetrics,
    gathering: &'a Gathering<O>,
    /// Empty once the call has all its answers.
    tickets: Vec<Ticket>,
}

impl<I: Send + Sync + 'static, O: Send + 'static> CancelOnDrop<'_, I, O> {
    fn take_back(&mut self) {
        for ticket in self.tickets.drain(..) {
            self.batcher.cancel(ticket);
        }
    }
}

impl<I: Send + Sync + 'static, O: Send + 'static> Drop for CancelOnDrop<'_, I, O> {
    fn drop(&mut self) {
        if self.tickets.is_empty() {
            return;
        }
        for _ in 0..self.gathering.slots.lock().missing {
            self.metrics.ended(Some("cancelled"));
        }
        self.take_back();
    }
}

/// Collects the answers of one call and wakes its task once, with the last.
struct Gathering<O> {
    slots: Mutex<Slots<O>>,
    complete: Notify,
}

struct Slots<O> {
    results: Vec<Option<Result<O, Unanswered>>>,
    missing: usize,
}

impl<O> Gathering<O> {
    fn new(items: usize) -> Self {
        let results = (0..items).map(|_| None).collect();
        Self { slots: Mutex::new(Slots { results, missing: items }), complete: Notify::new() }
    }

    fn put(&self, index: usize, result: Result<O, Unanswered>) {
        let mut slots = self.slots.lock();
        if slots.results[index].replace(result).is_none() {
            slots.missing -= 1;
        }
        if slots.missing == 0 {
            drop(slots);
            self.complete.notify_one();
        }
    }

    async fn all(&self) -> Vec<Result<O, Unanswered>> {
        self.complete.notified().await;
        let results = std::mem::take(&mut self.slots.lock().results);
        // Complete, so none is missing; were one, whether it ran would not be known.
        let unknown = || Err(Unanswered::Failed(Failure::ClosedRunning));
        results.into_iter().map(|result| result.unwrap_or_else(unknown)).collect()
    }
}
