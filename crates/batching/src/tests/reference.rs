//! The scheduler's rules over plain lists, each searched from scratch: slow, and easy to believe.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::cost_model::CostModel;
use crate::queue::OVERDUE_SHARE;
use crate::{
    BreakerConfig, ClientId, Dispatch, Entry, GroupKey, Mode, PaddingStrategy, Priority, SchedulerConfig,
    ShapeKey, Ticket, Time,
};

/// Shape, and the bound of the bucket (0: any length).
pub(super) type Group = (ShapeKey, u32);

/// What may change while a scheduler runs, as it says itself; each is judged by tests of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) items: usize,
    pub(super) max_wait: Duration,
    pub(super) elements: u64,
    /// Bytes that the device has to spare.
    pub(super) free: u64,
}

/// What is expected of batches; the cost model is judged by tests of its own.
pub(super) struct Outlook<'a> {
    /// `None`: too little is known to decide by.
    pub(super) costs: Option<&'a CostModel>,
    /// When each instance is free.
    pub(super) free: Vec<Time>,
    /// The soonest deadline of all that owe a verdict.
    pub(super) soonest: Option<Time>,
}

impl Outlook<'_> {
    fn run(&self, (shape, bound): Group, items: usize, elements: u64) -> Option<Duration> {
        self.costs?.at_most(GroupKey { shape, bound }, items as u32, elements)
    }
}

/// What a free instance has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    Idle,
    WaitUntil(Time),
    /// These, in this order.
    Run(Vec<Entry>),
    /// The first, and others of its group and priority.
    RunAround(Entry),
}

/// Everything that waits, and what decides about it.
pub(super) struct Reference {
    pub(super) config: SchedulerConfig,
    pub(super) waiting: Vec<Entry>,
    pub(super) retries: VecDeque<Vec<Entry>>,
    pub(super) draining: bool,
    /// When all that waited was let go.
    pub(super) flushed: Option<Time>,
    pub(super) breaker: Option<Failures>,
    /// What each client had of each priority, in virtual time.
    starts: BTreeMap<(Priority, ClientId), u64>,
    virtual_now: BTreeMap<Priority, u64>,
    /// Places since the last that went to an entry because it was overdue.
    places: u32,
}

/// How many of the first are tried for giving up.
const TRIALS: usize = 32;

/// When another device's model may have given memory back.
pub(super) const ASK_FOR_MEMORY: Duration = Duration::from_millis(1);

impl Reference {
    pub(super) fn new(config: SchedulerConfig) -> Self {
        Self {
            breaker: config.breaker.clone().map(Failures::new),
            config,
            waiting: Vec::new(),
            retries: VecDeque::new(),
            draining: false,
            flushed: None,
            starts: BTreeMap::new(),
            virtual_now: BTreeMap::new(),
            places: 0,
        }
    }

    pub(super) fn joins(&mut self, entry: Entry) {
        let owner = (entry.priority, entry.client);
        if !self.waiting.iter().any(|other| (other.priority, other.client) == owner) {
            let now = self.virtual_now.get(&entry.priority).copied().unwrap_or(0);
            let start = self.starts.entry(owner).or_insert(now);
            *start = (*start).max(now);
        }
        self.waiting.push(entry);
    }

    pub(super) fn leaves(&mut self, ticket: Ticket) {
        self.waiting.retain(|entry| entry.ticket != ticket);
    }

    /// The entry is taken out for a batch, by its turn or because a place was owed to it.
    fn served(&mut self, entry: &Entry, owed: bool) {
        self.leaves(entry.ticket);
        let start = self.starts.entry((entry.priority, entry.client)).or_default();
        let now = self.virtual_now.entry(entry.priority).or_default();
        *now = (*now).max(*start);
        *start += u64::from(entry.cost.max(1));
        self.places = if owed { 0 } else { self.places + 1 };
    }

    pub(super) fn group(&self, entry: &Entry) -> Group {
        let buckets = &self.config.buckets;
        let len = entry.seq_len;
        let bound = match buckets.strategy {
            _ if len == 0 => 0,
            PaddingStrategy::None => len,
            PaddingStrategy::Minimal | PaddingStrategy::Maximum if buckets.enabled => {
                let above = buckets.boundaries.iter().copied().filter(|&bound| bound >= len).min();
                let last = buckets.boundaries.iter().copied().max().unwrap_or(1);
                above.unwrap_or_else(|| len.next_multiple_of(last))
            }
            _ => 0,
        };
        (entry.shape, bound)
    }

    /// What a batch of `entries` has to hold: every one as long as the longest, or as the bucket.
    pub(super) fn elements(&self, entries: &[Entry]) -> u64 {
        let longest = entries.iter().map(|entry| entry.seq_len).max().unwrap_or(0);
        if longest == 0 {
            return entries.iter().map(|entry| u64::from(entry.cost)).sum();
        }
        let padded = match self.config.buckets.strategy {
            PaddingStrategy::Maximum => longest.max(self.group(&entries[0]).1),
            _ => longest,
        };
        entries.len() as u64 * u64::from(padded)
    }

    pub(super) fn bytes(&self, entries: &[Entry]) -> u64 {
        self.elements(entries) * self.config.bytes_per_element.unwrap_or(0)
    }

    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<_> = self.waiting.iter().map(|entry| self.group(entry)).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    pub(super) fn of_group(&self, group: Group) -> impl Iterator<Item = &Entry> {
        self.waiting.iter().filter(move |entry| self.group(entry) == group)
    }

    /// Who leaves first: the most urgent, of these the client that had least, of its own the first due.
    fn order(&self, entry: &Entry) -> (Reverse<Priority>, u64, u64, Ticket) {
        let start = self.starts.get(&(entry.priority, entry.client)).copied().unwrap_or(0);
        let deadline = entry.deadline.map_or(u64::MAX, Time::as_nanos);
        (Reverse(entry.priority), start, deadline, entry.ticket)
    }

    /// The longest waiting of all, if a place is owed to it.
    fn owed(&self, now: Time) -> Option<&Entry> {
        let ageing = self.config.ageing?.max(self.config.max_wait);
        let oldest = self.waiting.iter().min_by_key(|entry| (entry.arrived, entry.ticket))?;
        (self.places + 1 >= OVERDUE_SHARE && now.since(oldest.arrived) >= ageing).then_some(oldest)
    }

    /// The next of the group, and whether because a place is owed to it.
    fn next(&self, group: Group, now: Time) -> Option<(Entry, bool)> {
        let owed = self.owed(now).filter(|entry| self.group(entry) == group);
        let first = || self.of_group(group).min_by_key(|entry| self.order(entry));
        owed.map(|entry| (entry.clone(), true)).or_else(|| first().map(|entry| (entry.clone(), false)))
    }

    /// The earliest instant, perhaps past, at which the waiting entries of `group` may leave.
    pub(super) fn may_leave(&self, group: Group, limits: &Limits) -> Time {
        let entries: Vec<_> = self.of_group(group).collect();
        let cost: u64 = entries.iter().map(|entry| u64::from(entry.cost)).sum();
        let full =
            entries.len() >= limits.items || self.config.max_batch_cost.is_some_and(|limit| cost >= limit);
        let eager = self.config.mode != Mode::Fixed
            && self.config.dispatch == Dispatch::Eager
            && entries.len() >= self.config.min_batch_size as usize;
        if full || eager || self.draining {
            return Time::ZERO;
        }
        let Some(first) = entries.iter().map(|entry| entry.arrived).min() else { return Time::MAX };
        if self.flushed.is_some_and(|until| first <= until) {
            return Time::ZERO;
        }
        let due = entries.iter().filter_map(|entry| entry.deadline).min();
        (first + limits.max_wait).min(due.map_or(Time::MAX, |due| first + due.since(first) / 2))
    }

    fn fits(&self, batch: &[Entry], limits: &Limits) -> bool {
        // An entry alone may always run, or a limit that was lowered too far would never be raised.
        let memory = batch.len() == 1 || self.elements(batch) <= limits.elements;
        batch.len() <= limits.items
            && self.config.max_batch_cost.is_none_or(|limit| self.elements(batch) <= limit)
            && memory
            && self.bytes(batch) <= limits.free
    }

    /// Whether the less urgent of a batch lengthen it by no more than its critical ones take.
    fn is_short_for_critical(&self, batch: &[Entry], outlook: &Outlook<'_>) -> bool {
        let group = self.group(&batch[0]);
        // What the longest waiting was owed came before the critical ones, and counts with them.
        let last = batch.iter().rposition(|entry| entry.priority == Priority::Critical);
        let Some((costs, last)) = outlook.costs.zip(last) else { return true };
        if last + 1 == batch.len() {
            return true;
        }
        let key = GroupKey { shape: group.0, bound: group.1 };
        let time = |batch: &[Entry]| costs.predict(key, batch.len() as u32, self.elements(batch));
        time(batch) <= time(&batch[..=last]).map(|critical| 2 * critical)
    }

    /// Whether all of a batch that starts now are answered before they are due.
    fn in_time(&self, now: Time, batch: &[Entry], outlook: &Outlook<'_>) -> bool {
        let run = outlook.run(self.group(&batch[0]), batch.len(), self.elements(batch));
        run.is_none_or(|run| batch.iter().all(|entry| now + run <= entry.due()))
    }

    fn is_paced(&self, now: Time, batch: &[Entry], outlook: &Outlook<'_>) -> bool {
        self.in_time(now, batch, outlook) && self.is_short_for_critical(batch, outlook)
    }

    /// Those of a group whom a free instance gives up.
    fn given_up(&self, now: Time, group: Group, limits: &Limits, outlook: &Outlook<'_>) -> Vec<Ticket> {
        let all: Vec<_> = self.of_group(group).cloned().collect();
        let mean = all.iter().map(|entry| u64::from(entry.cost)).sum::<u64>() as f64 / all.len() as f64;
        let run = |items: usize| outlook.run(group, items, (mean * items as f64).round() as u64);
        let Some(full) = run(limits.items) else { return Vec::new() };
        let drained = now + full * all.len().div_ceil(limits.items) as u32;
        if outlook.soonest.is_none_or(|due| drained <= due) {
            return Vec::new();
        }
        let head = self.next(group, now).map(|(head, _)| head.priority);
        let alone = |entry: &Entry| self.in_time(now, std::slice::from_ref(entry), outlook);
        let (hopeful, mut hopeless): (Vec<_>, Vec<_>) = all.iter().partition(|entry| alone(entry));
        if hopeful.is_empty() {
            // The least late is tried all the same.
            hopeless.sort_unstable_by_key(|entry| (entry.due(), entry.ticket));
            hopeless.pop();
        }
        let mut urgent: Vec<_> =
            hopeful.into_iter().filter(|it| it.deadline.is_some() && Some(it.priority) == head).collect();
        urgent.sort_unstable_by_key(|entry| (entry.due(), entry.ticket));
        let step = urgent.len().div_ceil(TRIALS).max(1);
        let trials: Vec<_> = (0..urgent.len()).step_by(step).collect();
        let answered = |first: usize| answered(&urgent[first..], &outlook.free, limits.items, &run);
        let most = trials.iter().map(|&first| answered(first)).max();
        let first = trials.iter().copied().find(|&first| Some(answered(first)) == most).unwrap_or(0);
        hopeless.into_iter().chain(urgent[..first].iter().copied()).map(|entry| entry.ticket).collect()
    }

    /// What a free instance is told, after those whom it gives up. What it is told to run is taken out, but
    /// for what is around a head.
    pub(super) fn plan(
        &mut self,
        now: Time,
        limits: &Limits,
        outlook: &Outlook<'_>,
        given_up: &mut Vec<Ticket>,
    ) -> Expected {
        if let Some(retry) = self.retries.front() {
            return match self.bytes(retry) <= limits.free {
                true => Expected::Run(self.retries.pop_front().unwrap_or_default()),
                false => Expected::WaitUntil(now + ASK_FOR_MEMORY),
            };
        }
        let groups = self.groups();
        let Some(wake) = groups.iter().map(|&group| self.may_leave(group, limits)).min() else {
            return Expected::Idle;
        };
        if wake > now {
            return Expected::WaitUntil(wake);
        }
        let ripe = groups.into_iter().filter(|&group| self.may_leave(group, limits) <= now);
        let heads = ripe.filter_map(|group| self.of_group(group).min_by_key(|entry| self.order(entry)));
        let first = self.owed(now).or_else(|| heads.min_by_key(|entry| self.order(entry)));
        let Some(group) = first.map(|entry| self.group(entry)) else { return Expected::Idle };
        let hopeless = self.given_up(now, group, limits, outlook);
        if !hopeless.is_empty() {
            for ticket in hopeless {
                self.breaker.iter_mut().for_each(|breaker| breaker.ended_in_queue(ticket));
                self.leaves(ticket);
                given_up.push(ticket);
            }
            return self.plan(now, limits, outlook, given_up);
        }
        let mut batch = Vec::new();
        while let Some((next, owed)) = self.next(group, now) {
            batch.push(next.clone());
            if !self.fits(&batch, limits) || batch.len() > 1 && !self.is_paced(now, &batch, outlook) {
                batch.pop();
                break;
            }
            self.served(&next, owed);
            if self.config.buckets.strategy == PaddingStrategy::Dynamic && next.seq_len > 0 {
                return Expected::RunAround(next);
            }
        }
        if batch.is_empty() { Expected::WaitUntil(now + ASK_FOR_MEMORY) } else { Expected::Run(batch) }
    }

    /// These left beside their head.
    pub(super) fn left_around(&mut self, others: &[Entry]) {
        others.iter().for_each(|entry| self.served(entry, false));
    }

    /// A failed batch is to run again in halves.
    pub(super) fn halve(&mut self, mut batch: Vec<Entry>) {
        let second = batch.split_off(batch.len().div_ceil(2));
        self.retries.extend([batch, second].into_iter().filter(|half| !half.is_empty()));
    }
}

/// How many are answered in time, first come first served, in batches in which all are.
fn answered(
    entries: &[&Entry],
    free: &[Time],
    limit: usize,
    run: &impl Fn(usize) -> Option<Duration>,
) -> usize {
    let Some(entry) = entries.first() else { return 0 };
    let mut free = free.to_vec();
    free.sort_unstable();
    let end = |items: usize| free[0] + run(items).unwrap_or_default();
    match (1..=limit.min(entries.len())).rev().find(|&items| end(items) <= entry.due()) {
        None => answered(&entries[1..], &free, limit, run),
        Some(items) => {
            free[0] = end(items);
            items + answered(&entries[items..], &free, limit, run)
        }
    }
}

/// A breaker that only remembers what happened.
pub(super) struct Failures {
    config: BreakerConfig,
    in_a_row: Vec<Time>,
    open_until: Option<Time>,
    probe: Option<(Ticket, Time)>,
}

impl Failures {
    fn new(config: BreakerConfig) -> Self {
        Self { config, in_a_row: Vec::new(), open_until: None, probe: None }
    }

    pub(super) fn is_open(&self, now: Time) -> bool {
        self.open_until.is_some_and(|until| now < until)
    }

    pub(super) fn refuses(&self, now: Time) -> Option<Duration> {
        let until = self.probe.map(|(_, until)| until).or(self.open_until)?;
        (now < until).then(|| until.since(now))
    }

    pub(super) fn admitted(&mut self, now: Time, ticket: Ticket) {
        if self.probe.is_some() || self.open_until.is_some() {
            self.probe = Some((ticket, now + self.config.open));
            self.open_until = None;
        }
    }

    pub(super) fn failed(&mut self, now: Time) {
        if self.is_open(now) {
            return;
        }
        self.in_a_row.push(now);
        let lately = self.in_a_row.iter().filter(|&&at| now.since(at) <= self.config.window).count();
        let half_open = self.probe.is_some() || self.open_until.is_some();
        if half_open || self.config.failures > 0 && lately >= self.config.failures as usize {
            *self = Self { open_until: Some(now + self.config.open), ..Self::new(self.config.clone()) };
        }
    }

    pub(super) fn succeeded(&mut self, now: Time) {
        if !self.is_open(now) {
            *self = Self::new(self.config.clone());
        }
    }

    pub(super) fn ended_in_queue(&mut self, ticket: Ticket) {
        if self.probe.is_some_and(|(probe, _)| probe == ticket) {
            self.probe = None;
            self.open_until = Some(Time::ZERO);
        }
    }
}
