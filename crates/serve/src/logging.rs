//! Log lines on standard error, as `[logging]` says.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;

use crate::config::{LogFormat, LogLevel, LoggingSettings};

/// Writes this process's log lines to standard error from now on, unless a subscriber is there already.
///
/// A process has one subscriber, so the first caller's settings count: what a later one asks for, of a
/// second server in a Python process say, changes nothing. Whoever embeds a [`crate::server::Server`]
/// calls this or installs a subscriber of its own; the server itself never does.
pub fn log_to_stderr(logging: &LoggingSettings) {
    let level = match logging.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    // Fails where a subscriber is installed already.
    drop(match logging.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    });
}
