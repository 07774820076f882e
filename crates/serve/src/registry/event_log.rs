//! Writes a scheduler's calls to a file, one JSON object a line, for replays and simulations.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use trustformers_batching::replay::Event;

use crate::config::BatchingSettings;

/// The log of one load of a model version; its file is complete once this is dropped.
#[derive(Debug)]
pub(super) struct EventLog {
    /// `None` only while it is dropped: the writer ends when the sender is gone.
    events: Option<SyncSender<Event>>,
    /// Set with the first event that found no room: a log with a gap replays to nothing, so it ends there.
    lost: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

/// Events that may wait for the disk.
const BACKLOG: usize = 1 << 16;

/// After so long without an event, what was written is brought to the file for whoever reads along.
const IDLE: Duration = Duration::from_millis(100);

impl EventLog {
    /// The log that the settings of a model ask for.
    ///
    /// # Errors
    /// Why there is none though they do.
    pub(super) fn of(
        batching: &BatchingSettings,
        model: &str,
        version: &str,
    ) -> Result<Option<Self>, String> {
        let Some(folder) = &batching.event_log else { return Ok(None) };
        let log = Self::create(folder, model, version);
        log.map(Some).map_err(|error| format!("the event log in {}: {error}", folder.display()))
    }

    /// Opens `DIRECTORY/MODEL@VERSION.N.jsonl` with the first N from 1 that no file has: each load has a file
    /// of its own, whatever else writes to the folder.
    fn create(directory: &Path, model: &str, version: &str) -> io::Result<Self> {
        create_dir_all(directory)?;
        let (path, file) = new_file(directory, model, version)?;
        Self::to(path.display().to_string(), file, BACKLOG)
    }

    /// `name` says in log lines which log it is.
    fn to(name: String, file: impl Write + Send + 'static, backlog: usize) -> io::Result<Self> {
        let (events, received) = sync_channel(backlog);
        let lost = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&lost);
        let writer = thread::Builder::new().name("event-log".to_owned()).spawn(move || {
            // Here and not where the event was lost: that is under the batcher's lock.
            match write_all(BufWriter::new(file), &received, &ended) {
                Err(error) => tracing::error!(log = name, %error, "the event log ends here"),
                Ok(()) if ended.load(Ordering::Acquire) => {
                    tracing::error!(
                        log = name,
                        "the event log ends here: events come faster than the disk takes them"
                    );
                }
                Ok(()) => {}
            }
        })?;
        Ok(Self { events: Some(events), lost, writer: Some(writer) })
    }

    /// Hands one event to the writer; never waits. Calls must come one after another.
    pub(super) fn push(&self, event: Event) {
        if self.lost.load(Ordering::Relaxed) {
            return;
        }
        // Disconnected when the writer gave up on a full disk, which it has logged.
        if let Some(events) = &self.events
            && events.try_send(event).is_err()
        {
            self.lost.store(true, Ordering::Release);
        }
    }
}

fn new_file(directory: &Path, model: &str, version: &str) -> io::Result<(PathBuf, File)> {
    let mut number = 1_u64;
    loop {
        let path = directory.join(format!("{model}@{version}.{number}.jsonl"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Writes until the sender is gone, or all that came before the first lost event.
fn write_all(mut file: impl Write, events: &Receiver<Event>, lost: &AtomicBool) -> io::Result<()> {
    let mut flushed = true;
    loop {
        let event = if flushed {
            events.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            events.recv_timeout(IDLE)
        };
        match event {
            Ok(event) => {
                serde_json::to_writer(&mut file, &event)?;
                file.write_all(b"\n")?;
                flushed = false;
            }
            Err(RecvTimeoutError::Timeout) => {
                file.flush()?;
                if lost.load(Ordering::Acquire) {
                    return Ok(());
                }
                flushed = true;
            }
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.events = None;
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Instant;

    use super::*;

    /// A disk that takes each write when the test lets it, and tells what it took.
    struct SlowDisk {
        permits: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for SlowDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error when the test has hung up: every write is then let through.
            let _ = self.permits.recv();
            drop(self.written.send(bytes.to_vec()));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn cancel(number: u64) -> Event {
        let (now, ticket) =
            (trustformers_batching::Time::from_nanos(0), trustformers_batching::Ticket(number));
        Event::Cancel { now, ticket }
    }

    fn tickets(text: &[u8]) -> Vec<u64> {
        let lines = std::str::from_utf8(text).unwrap().lines();
        lines
            .map(|line| match serde_json::from_str(line).unwrap() {
                Event::Cancel { ticket, .. } => ticket.0,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_slow_disk_makes_nobody_wait_and_ends_the_log_at_the_first_loss() {
        let (permit, permits) = channel();
        let (writer, written) = channel();
        let log = EventLog::to("test".to_owned(), SlowDisk { permits, written: writer }, 4).unwrap();
        // More than the channel and the writer's buffer hold; a push that waited would wait forever.
        let mut pushed = 0;
        while !log.lost.load(Ordering::Relaxed) {
            log.push(cancel(pushed));
            pushed += 1;
        }
        // The disk goes on, and there is room again: still nothing may follow the gap.
        drop(permit);
        let mut text = written.recv().unwrap();
        log.push(cancel(pushed));
        drop(log);
        text.extend(written.iter().flatten());
        assert_eq!(tickets(&text), (0..pushed - 1).collect::<Vec<_>>());
    }

    #[test]
    fn an_event_is_in_the_file_though_the_log_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let log = EventLog::create(folder.path(), "m", "1").unwrap();
        log.push(cancel(7));
        let path = folder.path().join("m@1.1.jsonl");
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::read(&path).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "nothing was written");
            thread::yield_now();
        }
        assert_eq!(tickets(&std::fs::read(&path).unwrap()), [7]);
        drop(log);
    }

    #[test]
    fn no_two_logs_have_one_file() {
        let folder = tempfile::tempdir().unwrap();
        for (model, version) in [("a", "b-c"), ("a-b", "c"), ("a", "b-c")] {
            EventLog::create(folder.path(), model, version).unwrap().push(cancel(1));
        }
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["a-b@c.1.jsonl", "a@b-c.1.jsonl", "a@b-c.2.jsonl"]);
        for name in names {
            assert_eq!(tickets(&std::fs::read(folder.path().join(name)).unwrap()), [1]);
        }
    }
}
