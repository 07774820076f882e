//! How many threads take a model's calls at once.
//!
//! One, as long as it keeps up: threads that run Python take turns anyway, and each turn costs more than a
//! short call. Where calls wait and the interpreter is free nevertheless, because those that run wait for
//! something else, more threads join; short calls send them to rest again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use trustformers_serve::hosted::{self, Calls};

/// Between two looks of the thread on watch.
const TICK: Duration = Duration::from_millis(1);
/// Between its looks where the interpreter turned out to be busy.
const LONGEST_TICK: Duration = Duration::from_millis(100);
/// Looks without anything waiting after which the watch sleeps until a call comes.
const QUIET_LOOKS: u32 = 50;
/// The interpreter is free when it is had as fast as this.
const FREE: Duration = Duration::from_micros(500);
/// Calls shorter than this need no other thread beside theirs.
const SHORT: Duration = Duration::from_micros(300);
/// Calls that take longer on average may be waiting for something.
const LONG_SECONDS: f64 = 0.001;

/// The threads that take one model's calls.
pub(super) struct Crew {
    calls: Arc<Calls>,
    most: u32,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Threads that there are.
    threads: u32,
    /// Numbers of threads are never used again, and stay below the bound.
    numbered: u32,
    /// Those that take calls or run one.
    active: u32,
    /// How many may.
    allowed: u32,
    /// Whether one of the others is on watch, and whether it sleeps.
    watched: bool,
    asleep: bool,
    /// Calls that ended, and how long they took on average.
    ended: u64,
    mean_seconds: f64,
    closing: bool,
}

impl Crew {
    pub(super) fn new(calls: Arc<Calls>, most: u32) -> Self {
        let state = State {
            threads: 0,
            numbered: 0,
            active: 0,
            allowed: 1,
            watched: false,
            asleep: false,
            ended: 0,
            mean_seconds: 0.0,
            closing: false,
        };
        Self { calls, most, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The number of one more thread, where one is wanted: as many as may be active, and one on watch.
    pub(super) fn wants_thread(&self) -> Option<u32> {
        let mut state = self.state.lock();
        let wanted = state.allowed.saturating_add(1).min(self.most);
        if state.closing || state.threads >= wanted || state.numbered >= self.most {
            return None;
        }
        state.threads += 1;
        state.numbered += 1;
        Some(state.numbered - 1)
    }

    /// A thread that was to be is not.
    pub(super) fn lost_thread(&self) {
        let mut state = self.state.lock();
        state.threads -= 1;
        self.changed.notify_all();
    }

    /// Returns when the calling thread may take a call. Called without the GIL.
    pub(super) fn enter(&self) {
        let mut state = self.state.lock();
        while state.active >= state.allowed {
            if state.watched {
                self.changed.wait(&mut state);
            } else {
                state.watched = true;
                drop(state);
                self.watch();
                state = self.state.lock();
                state.watched = false;
                self.changed.notify_one();
            }
        }
        state.active += 1;
    }

    /// Looks whether more threads would help, until the calling one may take calls itself.
    fn watch(&self) {
        let (mut tick, mut quiet, mut seen) = (TICK, 0, u64::MAX);
        loop {
            let mut state = self.state.lock();
            if quiet > QUIET_LOOKS {
                state.asleep = true;
                self.changed.wait(&mut state);
                state.asleep = false;
                quiet = 0;
            } else {
                self.changed.wait_for(&mut state, tick);
            }
            if state.active < state.allowed {
                return;
            }
            let stuck = state.ended == seen || state.mean_seconds > LONG_SECONDS;
            seen = state.ended;
            drop(state);
            if self.calls.queued().entries == 0 {
                quiet += 1;
                continue;
            }
            quiet = 0;
            if !stuck {
                continue;
            }
            let asked = Instant::now();
            Python::attach(|_| ());
            if asked.elapsed() > FREE {
                tick = (tick * 2).min(LONGEST_TICK);
                continue;
            }
            tick = TICK;
            let mut state = self.state.lock();
            if !state.closing {
                state.allowed = (state.allowed + (state.allowed / 2).max(1)).min(self.most);
            }
        }
    }

    /// The calling thread begins a call.
    pub(super) fn begins(&self) {
        if self.state.lock().asleep {
            self.changed.notify_all();
        }
    }

    /// The calling thread ended a call. False when it is to [`Self::enter`] again before the next.
    pub(super) fn ended(&self, busy: Duration) -> bool {
        let mut state = self.state.lock();
        state.ended += 1;
        state.mean_seconds += (busy.as_secs_f64() - state.mean_seconds) / 8.0;
        if busy < SHORT && state.allowed > 1 && !state.closing {
            state.allowed -= 1;
        }
        let stays = state.active <= state.allowed;
        if !stays {
            state.active -= 1;
        }
        stays
    }

    /// The calling thread takes calls no more.
    pub(super) fn leave(&self) {
        let mut state = self.state.lock();
        state.active -= 1;
        state.threads -= 1;
        self.changed.notify_all();
    }
}

/// What the server has of it.
pub(super) struct Handle(pub(super) Arc<Crew>);

impl hosted::Crew for Handle {
    fn close(&self) {
        let mut state = self.0.state.lock();
        state.closing = true;
        // Who rests finds that there is nothing left, and ends.
        state.allowed = u32::MAX;
        self.0.changed.notify_all();
    }

    fn join(&self) {
        let mut state = self.0.state.lock();
        while state.threads > 0 {
            self.0.changed.wait(&mut state);
        }
    }
}
