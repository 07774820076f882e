//! More results from busy instances.

use super::{Action, Gain, LEAST_GAIN, Present, REACHED, Suggestion};
use crate::bucket::PaddingStrategy;

/// What is gained: results a second.
const ITEMS: &str = "items/s";
/// Padding below this part of the work is not worth buckets.
const LEAST_PADDING: f64 = 0.1;
/// How many times the present size is proposed at most: the fit saw no larger batches.
const FURTHEST: f64 = 4.0;
/// The part of a batch's cost or memory limit from which on that is what bounds it: the last entry that
/// would fit is rarely of the right size.
const NEARLY: f64 = 0.7;
/// Buckets that are assumed to be learned, each of which needs its own full batches.
const BUCKETS: f64 = 6.0;

impl Present<'_> {
    /// Doubles the size for as long as each doubling gains enough, there are entries to fill it, and the
    /// other limits hold.
    pub(super) fn larger_batches(&self) -> Option<Suggestion> {
        let (config, recent) = (self.config, &self.snapshot.recent);
        let limit = f64::from(self.snapshot.limits.batch_size);
        let adapted = self.snapshot.limits.batch_size != config.max_batch_size;
        if !self.is_saturated() || !self.is_size_bound() || adapted {
            return None;
        }
        let curve = self.time_by_size()?;
        let tokens = recent.tokens_per_item;
        let most_tokens =
            [config.max_batch_cost, self.snapshot.memory.max_tokens].into_iter().flatten().min();
        let rate = |items: f64| items / curve.seconds(items, tokens);
        // Who comes just after a batch has started waits for that one and for its own.
        let in_time = |items: f64| {
            config.latency_slo.is_none_or(|slo| 2.0 * curve.seconds(items, tokens) <= slo.as_secs_f64())
        };
        let most = most_tokens.map_or(f64::MAX, |most| (most as f64 / tokens.max(1.0)).floor());
        let most = most.min((limit + recent.mean_left_behind).floor()).min(FURTHEST * limit);
        let mut size = limit;
        loop {
            let next = (2.0 * size).min(most);
            if next <= size || !in_time(next) || rate(next) < (1.0 + LEAST_GAIN) * rate(size) {
                break;
            }
            size = next;
        }
        let rate = |items: f64| self.instances() * rate(items);
        let gain = Gain::more(ITEMS, rate(limit), self.served(rate(size)));
        let mut evidence = self.load();
        evidence.insert("proposed_batch_seconds", curve.seconds(size, tokens));
        Some(Suggestion {
            action: Action::RaiseMaxBatchSize,
            current: limit,
            proposed: size,
            evidence,
            predicted_gain: gain,
        })
    }

    /// One more instance, as fast as the present ones: what it runs on is not known here.
    pub(super) fn another_instance(&self) -> Option<Suggestion> {
        let recent = &self.snapshot.recent;
        // Enough for a batch of its own each time.
        if !self.is_saturated() || recent.mean_left_behind < self.size() {
            return None;
        }
        let rate = |instances: f64| instances * self.size() / recent.mean_batch_seconds;
        let (from, to) = (self.instances(), self.instances() + 1.0);
        Some(Suggestion {
            action: Action::AddInstance,
            current: from,
            proposed: to,
            evidence: self.load(),
            predicted_gain: Gain::more(ITEMS, rate(from), self.served(rate(to))),
        })
    }

    /// Memory for full batches.
    pub(super) fn more_memory(&self) -> Option<Suggestion> {
        let (recent, memory) = (&self.snapshot.recent, &self.snapshot.memory);
        let (limit, most) = (self.config.memory_limit?, memory.max_tokens?);
        let tokens = self.size() * recent.tokens_per_item;
        let bound = tokens >= NEARLY * most as f64 && !self.is_size_bound();
        // Lowered by an allocation that failed, it would not be raised by configuration.
        let configured = memory.limit_bytes == Some(limit);
        if !self.is_saturated() || !bound || !configured || memory.full_batch_bytes <= limit {
            return None;
        }
        let curve = self.time_by_size()?;
        let size = (self.size() + recent.mean_left_behind).min(f64::from(self.snapshot.limits.batch_size));
        let rate = |items: f64| self.instances() * items / curve.seconds(items, recent.tokens_per_item);
        let mut evidence = self.load();
        evidence.insert("max_tokens", most as f64);
        evidence.insert("tokens_per_item", recent.tokens_per_item);
        Some(Suggestion {
            action: Action::RaiseMemoryLimit,
            current: limit as f64,
            proposed: memory.full_batch_bytes as f64,
            evidence,
            predicted_gain: Gain::more(ITEMS, rate(self.size()), self.served(rate(size))),
        })
    }

    /// Batches of like lengths: as many items, less padding.
    pub(super) fn bucketing(&self) -> Option<Suggestion> {
        let (config, recent) = (&self.config.buckets, &self.snapshot.recent);
        let pads = matches!(config.strategy, PaddingStrategy::Minimal | PaddingStrategy::Maximum);
        let enough = self.size() + recent.mean_left_behind >= BUCKETS * self.size();
        if config.enabled || !pads || recent.padding_overhead < LEAST_PADDING {
            return None;
        }
        if !self.is_saturated() || !enough {
            return None;
        }
        let curve = self.time_by_length()?;
        let bucketed = self.snapshot.padding.bucketed_overhead?.min(recent.padding_overhead);
        let unpadded = recent.tokens_per_item * (1.0 - recent.padding_overhead);
        let tokens = unpadded / (1.0 - bucketed);
        let rate = |tokens: f64| self.instances() * self.size() / curve.seconds(self.size(), tokens);
        let mut evidence = self.load();
        evidence.insert("padding_overhead", recent.padding_overhead);
        evidence.insert("tokens_per_item", recent.tokens_per_item);
        evidence.insert("bucketed_overhead", bucketed);
        Some(Suggestion {
            action: Action::EnableBucketing,
            current: 0.0,
            proposed: 1.0,
            evidence,
            predicted_gain: Gain::more(ITEMS, rate(recent.tokens_per_item), self.served(rate(tokens))),
        })
    }

    /// Whether a window, and not a limit, decides how large batches are.
    pub(super) fn is_window_bound(&self) -> bool {
        let recent = &self.snapshot.recent;
        recent.held_back <= super::RARELY
            && self.size() < REACHED * f64::from(self.snapshot.limits.batch_size)
    }
}
