//! Writes a scheduler's calls to a file, one JSON object a line, for replays and simulations.

use std::fs::{File, create_dir_all, remove_file};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use trustformers_batching::replay::Event;

/// The log of one loaded model version; its file is complete once this is dropped.
#[derive(Debug)]
pub(super) struct EventLog {
    /// `None` only while it is dropped: the writer ends when the sender is gone.
    events: Option<SyncSender<Event>>,
    writer: Option<JoinHandle<()>>,
}

/// Events that may wait for the disk. Past it a request waits: a log with a gap replays to nothing.
const BACKLOG: usize = 1 << 16;

impl EventLog {
    /// Opens `DIRECTORY/MODEL-VERSION.jsonl`, replacing an older one.
    pub(super) fn create(directory: &Path, model: &str, version: &str) -> io::Result<Self> {
        create_dir_all(directory)?;
        let path = directory.join(format!("{model}-{version}.jsonl"));
        // A file of its own: while a model is reloaded, the old one still writes to its log.
        match remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = BufWriter::new(File::create(&path)?);
        let (events, received) = sync_channel(BACKLOG);
        let writer = thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || write_all(&path, file, &received))?;
        Ok(Self { events: Some(events), writer: Some(writer) })
    }

    /// Hands one event to the writer.
    pub(super) fn push(&self, event: Event) {
        if let Some(events) = &self.events {
            // Fails only when the writer gave up on a full disk, which it has logged.
            drop(events.send(event));
        }
    }
}

fn write_all(path: &Path, mut file: BufWriter<File>, events: &Receiver<Event>) {
    let mut write = || -> io::Result<()> {
        for event in events {
            serde_json::to_writer(&mut file, &event)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    if let Err(error) = write() {
        tracing::error!(path = %path.display(), %error, "the event log ends here");
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
