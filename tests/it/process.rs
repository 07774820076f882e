//! The server as users start it: a process with a command line, signals and an exit code.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::Connection;

/// The server's binary, which cargo puts beside the folder of this test's.
///
/// Cargo builds it before it runs the tests of the workspace, but not before those of this crate alone: so
/// one that is older than its sources is refused.
pub(crate) fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let binary = folder.join("trustformers-serve");
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let built = modified(&binary).unwrap_or_else(|| panic!("{}: run `make build` first", binary.display()));
    let sources = std::fs::read_to_string(folder.join("trustformers-serve.d")).expect("cargo wrote it");
    for source in sources.split_whitespace().skip(1).map(Path::new) {
        let newer = modified(source).is_some_and(|time| time > built);
        assert!(!newer, "{} is newer than the binary: run `make build` first", source.display());
    }
    binary
}

fn command(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary());
    let inherited =
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUSTFORMERS"));
    for (name, _) in inherited {
        command.env_remove(name);
    }
    command
        .envs(env.iter().copied())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str]) -> Finished {
    run_with(args, &[])
}

/// The same with environment variables.
pub(crate) fn run_with(args: &[&str], env: &[(&str, &str)]) -> Finished {
    let output = command(args, env).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A server in a process of its own; killed when dropped.
pub(crate) struct Process {
    child: Child,
    addr: SocketAddr,
    stdout: Option<BufReader<std::process::ChildStdout>>,
    /// What it printed until it listened.
    printed: String,
    stderr: Option<JoinHandle<String>>,
}

/// Starts `trustformers-serve --port 0` with more arguments and waits until it listens.
pub(crate) fn serve(args: &[&str]) -> Process {
    let mut all = vec!["--port", "0"];
    all.extend(args);
    let mut child = command(&all, &[]).spawn().expect("the binary starts");
    let mut errors = child.stderr.take().expect("piped");
    let stderr = thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).expect("text");
        text
    });
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut printed = String::new();
    stdout.read_line(&mut printed).expect("text");
    let addr = printed.trim().strip_prefix("listening on http://").map(str::parse);
    let Some(Ok(addr)) = addr else { panic!("{printed:?} {}", stderr.join().expect("no panic")) };
    Process { child, addr, stdout: Some(stdout), printed, stderr: Some(stderr) }
}

impl Process {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its id.
    pub(crate) fn id(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.addr)
    }

    /// Reads what it prints up to the line that starts so.
    pub(crate) fn read_until(&mut self, start: &str) -> String {
        let stdout = self.stdout.as_mut().expect("not finished");
        loop {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).expect("text"), 0, "no {start:?} in {}", self.printed);
            self.printed += &line;
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Sends a signal by its name, as `kill` has it.
    pub(crate) fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([&format!("-{name}"), &self.id()]).status();
        assert!(kill.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Waits for its end; a server that goes on for longer than `patience` is a failure.
    pub(crate) fn finish(mut self, patience: Duration) -> Finished {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it still runs after {patience:?}");
            thread::sleep(Duration::from_millis(2));
        };
        self.rest(status)
    }

    fn rest(&mut self, status: ExitStatus) -> Finished {
        let mut stdout = std::mem::take(&mut self.printed);
        if let Some(mut rest) = self.stdout.take() {
            rest.read_to_string(&mut stdout).expect("text");
        }
        let stderr = self.stderr.take().map(|thread| thread.join().expect("text")).unwrap_or_default();
        Finished { code: status.code(), stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails for one that has ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
