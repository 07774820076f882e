//! What a free instance does next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::filling::{Load, Pace};
use super::isolation::Retry;
use super::{Running, Scheduler, Verdict};
use crate::bucket::{PaddingStrategy, padded};
use crate::entry::{BatchId, Entry, GroupKey, InstanceId, Priority, Ticket};
use crate::policy::{Outlook, Ripe, ripeness};
use crate::stats::Started;
use crate::time::Time;

/// When to ask again if the device has no memory left for even one entry: other models free it.
const ASK_FOR_MEMORY: Duration = Duration::from_millis(1);
/// How many times the size of a batch the dynamic padding looks at for the cheapest split.
const SPLIT_OVER: usize = 4;

/// Entries that run together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its name in [`Scheduler::complete`].
    pub id: BatchId,
    /// Its entries, most urgent first.
    pub entries: Vec<Entry>,
    /// The length that each entry is padded to; 0 where nothing is padded.
    pub padded_len: u32,
    /// Padded tokens, or the summed cost where nothing is padded.
    pub elements: u64,
    /// What it is expected to need; 0 where nothing is known.
    pub bytes: u64,
}

/// What a free instance does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing waits: ask again after a submit.
    Idle,
    /// Something waits, but not for long enough: ask again then, or after a submit.
    WaitUntil(Time),
    /// Run this and report.
    Run(Batch),
}

/// The answer to a free instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Entries that ended without running.
    pub resolved: Vec<(Ticket, Verdict)>,
    /// What the instance does.
    pub next: Next,
}

impl Scheduler {
    /// What `instance`, which is free, does next on a device with `free` bytes to spare.
    pub fn plan(&mut self, now: Time, instance: InstanceId, free: u64) -> Planned {
        let mut resolved = self.expire_due(now);
        self.adaptive.iter_mut().for_each(|adaptive| adaptive.tick(now));
        if let Some(retry) = self.next_retry() {
            let next = self.retry(now, instance, free, retry);
            return Planned { resolved, next };
        }
        let next = loop {
            let (key, wake) = self.ripe(now);
            let Some(key) = key else { break wake.map_or(Next::Idle, Next::WaitUntil) };
            let given_up = self.triage(now, key);
            if !given_up.is_empty() {
                resolved.extend(given_up.into_iter().map(|ticket| self.end_unrun(ticket, Verdict::GivenUp)));
                continue;
            }
            let entries = self.form_batch(now, key, free);
            if !entries.is_empty() {
                entries.iter().for_each(|entry| self.stats.waited(now, entry.arrived));
                break Next::Run(self.start(now, instance, key, entries, false));
            }
            let Some(ticket) = self.outgrown(now, key) else { break Next::WaitUntil(now + ASK_FOR_MEMORY) };
            resolved.push(self.end_unrun(ticket, Verdict::NeverFits));
        };
        Planned { resolved, next }
    }

    fn end_unrun(&mut self, ticket: Ticket, verdict: Verdict) -> (Ticket, Verdict) {
        self.settle(ticket);
        self.stats.ended_without(verdict);
        (ticket, verdict)
    }

    /// Runs part of a failed batch again, as soon as the device has the memory: others may have taken what
    /// the whole batch once had.
    fn retry(&mut self, now: Time, instance: InstanceId, free: u64, retry: Retry) -> Next {
        let (elements, _) = self.shape_of(retry.key, &retry.entries);
        if self.memory.bytes(elements) > free {
            self.retries.push_front(retry);
            return Next::WaitUntil(now + ASK_FOR_MEMORY);
        }
        Next::Run(self.start(now, instance, retry.key, retry.entries, true))
    }

    /// The elements of a batch, and the length that it is padded to.
    fn shape_of(&self, key: GroupKey, entries: &[Entry]) -> (u64, u32) {
        let load = Load::of(entries);
        let pad = |longest| padded(self.config.buckets.strategy, key.bound, longest);
        (load.elements(pad), pad(load.longest))
    }

    /// The group that leaves now, and when the next may.
    fn ripe(&mut self, now: Time) -> (Option<GroupKey>, Option<Time>) {
        let mut wake: Option<Time> = None;
        let outlook = Outlook {
            config: &self.config,
            limit: self.limit(),
            max_wait: self.max_wait(),
            costs: self.costs.known(),
            arrivals: &self.arrivals,
            busy_share: self.utilization.share(now),
        };
        let (draining, flushed) = (self.draining, self.flushed);
        let first = self.queue.first_of(now, |key, group| match ripeness(&outlook, key, group, now) {
            Ripe::At(at) if !draining && flushed.is_none_or(|until| until < group.oldest_arrival()) => {
                wake = Some(wake.map_or(at, |wake| wake.min(at)));
                false
            }
            Ripe::At(_) | Ripe::Now => true,
        });
        (first, wake)
    }

    /// The head of a group if no batch can hold it any more: batches turned out to need more than was
    /// known when it was let in.
    fn outgrown(&mut self, now: Time, key: GroupKey) -> Option<Ticket> {
        let head = self.queue.head(key, now)?.clone();
        self.memory.can_ever_fit(self.alone(&head)).is_err().then_some(head.ticket)
    }

    fn form_batch(&mut self, now: Time, key: GroupKey, free: u64) -> Vec<Entry> {
        let limit = self.limit() as usize;
        let most = self.config.max_batch_cost.unwrap_or(u64::MAX);
        if self.config.buckets.strategy == PaddingStrategy::Dynamic {
            let tickets = self.cheapest_split(now, key, limit, most.min(self.memory.max_elements()));
            // Empty where the group's entries have no length, and so nothing to pad.
            if let Some(&(longest, _)) = tickets.iter().max() {
                let needed = self.memory.bytes(tickets.len() as u64 * u64::from(longest));
                // The split knows no device; where that is short, the head goes alone.
                let part = if needed <= free { self.at_pace(now, key, &tickets) } else { &tickets[..1] };
                return match self.memory.bytes(u64::from(tickets[0].0)) <= free {
                    true => self.queue.take_these(now, part.iter().map(|&(_, ticket)| ticket)),
                    false => Vec::new(),
                };
            }
        }
        let (memory, strategy) = (&self.memory, self.config.buckets.strategy);
        let mut pace = Pace::new(&self.costs, now, key);
        let mut load = Load::default();
        self.queue.take(key, now, |entry| {
            let with = load.with(entry);
            let elements = with.elements(|longest| padded(strategy, key.bound, longest));
            // Alone it may run whatever batches were found to need, or nothing would ever correct that.
            let memory = match with.items {
                1 => memory.bytes(elements) <= free,
                _ => elements <= memory.max_elements() && memory.fits(elements, free),
            };
            let fits =
                with.items <= limit && elements <= most && memory && pace.allows(entry, &with, elements);
            if fits {
                load = with;
            }
            fits
        })
    }

    /// The first of a batch that are padded to the same length, as many as it is short enough for.
    fn at_pace<'a>(&self, now: Time, key: GroupKey, batch: &'a [(u32, Ticket)]) -> &'a [(u32, Ticket)] {
        let longest = batch.iter().map(|&(length, _)| length).max().unwrap_or(0);
        let mut pace = Pace::new(&self.costs, now, key);
        let mut load = Load::default();
        let mut entries = batch.iter().filter_map(|&(_, ticket)| self.queue.get(ticket));
        let refused = entries.position(|entry| {
            load = load.with(entry);
            !pace.allows(entry, &load, load.items as u64 * u64::from(longest))
        });
        &batch[..refused.unwrap_or(batch.len())]
    }

    /// Of the cheapest split of what waits into batches, the batch with the entry that leaves first.
    fn cheapest_split(&mut self, now: Time, key: GroupKey, limit: usize, most: u64) -> Vec<(u32, Ticket)> {
        let mut waiting = self.queue.lengths(key, now, SPLIT_OVER * limit);
        let Some(&(length, first)) = waiting.first() else { return Vec::new() };
        if length == 0 {
            return Vec::new();
        }
        // Longest first, and in order of arrival among equals.
        waiting.sort_by_key(|&(length, ticket)| (std::cmp::Reverse(length), ticket));
        let lengths: Vec<u32> = waiting.iter().map(|&(length, _)| length).collect();
        let costs = &self.costs;
        let sizes = self.splitter.split(&lengths, limit, most, |items, tokens| {
            let time = costs.predict(key, u32::try_from(items).unwrap_or(u32::MAX), tokens);
            // Before anything is known, padding is all there is to compare.
            time.map_or(tokens as f64, |time| time.as_secs_f64())
        });
        let mut from = 0;
        for size in sizes {
            let part = &waiting[from..from + size];
            if part.iter().any(|&(_, ticket)| ticket == first) {
                let others = part.iter().copied().filter(|&(_, ticket)| ticket != first);
                let mut batch: Vec<_> = std::iter::once((length, first)).chain(others).collect();
                if size == waiting.len() {
                    self.fill_up(key, part[0].0, &mut batch, limit, most);
                }
                return batch;
            }
            from += size;
        }
        Vec::new()
    }

    /// Gives the places that a batch of all of one priority leaves to less urgent entries that need no more
    /// padding: priority by priority, so that none overtakes a more urgent one.
    fn fill_up(&self, key: GroupKey, longest: u32, batch: &mut Vec<(u32, Ticket)>, limit: usize, most: u64) {
        let Some(head) = self.queue.get(batch[0].1).map(|head| head.priority) else { return };
        let room = limit.min(usize::try_from(most / u64::from(longest.max(1))).unwrap_or(usize::MAX));
        for priority in Priority::DESCENDING.into_iter().filter(|&priority| priority < head) {
            let waiting = self.queue.lengths_at(key, priority, SPLIT_OVER * limit);
            let before = batch.len();
            let short = waiting.iter().copied().filter(|&(length, _)| length <= longest);
            batch.extend(short.take(room.saturating_sub(before)));
            if batch.len() - before < waiting.len() {
                return;
            }
        }
    }

    fn start(
        &mut self,
        now: Time,
        instance: InstanceId,
        key: GroupKey,
        entries: Vec<Entry>,
        again: bool,
    ) -> Batch {
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        for entry in &entries {
            // What runs again is owed already.
            if self.owed.insert(entry.ticket, entry.due()).is_none() && entry.deadline.is_some() {
                self.owed_dues.push((entry.due(), entry.ticket));
            }
        }
        let (elements, padded_len) = self.shape_of(key, &entries);
        self.stats.started(
            now,
            &Started {
                items: entries.len() as u64,
                cost: entries.iter().map(|entry| u64::from(entry.cost)).sum(),
                elements,
                left_behind: if again { 0 } else { self.queue.total_of(key).entries as u64 },
                again,
            },
        );
        let items = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let predicted = self.costs.predict(key, items, elements);
        let running = Running { instance, key, entries: entries.clone(), elements, started: now, predicted };
        self.running.insert(id, running);
        Batch { id, entries, padded_len, elements, bytes: self.memory.bytes(elements) }
    }

    /// The group that an entry waits in.
    pub(super) fn group_of(&self, entry: &Entry) -> GroupKey {
        let bound = if entry.seq_len > 0 { self.buckets.bound(entry.seq_len) } else { 0 };
        GroupKey { shape: entry.shape, bound }
    }

    /// What a batch of this entry alone has to hold.
    pub(super) fn alone(&self, entry: &Entry) -> u64 {
        let (bound, strategy) = (self.group_of(entry).bound, self.config.buckets.strategy);
        Load::default().with(entry).elements(|longest| padded(strategy, bound, longest))
    }
}
