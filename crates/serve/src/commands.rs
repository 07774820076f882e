//! What the command line does: serve, or one check or simulation and an exit code.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::app::App;
use crate::backend::Signature;
use crate::cli::{Action, Cli};
use crate::config::Settings;
use crate::http::{ROUTES, describe};
use crate::logging::log_to_stderr;
use crate::registry::{Origin, State, Version};
use crate::server::{Server, check_devices};
use crate::simulate;
use crate::torch::shim::exit_now;

const OK: u8 = 0;
const FAILED: u8 = 1;
/// clap's own code for a command line it does not understand.
const USAGE: u8 = 2;

/// Runs the command line `args`, the program's name first; returns the exit code.
///
/// Only this installs signal handlers.
pub fn run(args: Vec<OsString>) -> u8 {
    let cli = match Cli::parse_args(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, mistakes to standard error; neither can do more if that is closed.
            drop(error.print());
            return if error.use_stderr() { USAGE } else { OK };
        }
    };
    match perform(&cli) {
        Ok(code) => code,
        Err(message) => fail(message),
    }
}

fn fail(message: impl fmt::Display) -> u8 {
    eprintln!("error: {message}");
    FAILED
}

fn perform(cli: &Cli) -> Result<u8, String> {
    let settings = cli.settings(environment()).map_err(|error| error.to_string())?;
    match cli.action() {
        Action::Validate => say(&cli.validation_line(&settings)),
        Action::PrintConfig => say(settings.to_toml().trim_end()),
        Action::HealthCheck => health_check(&settings),
        Action::ListModels => list_models(&settings),
        Action::DryRun => dry_run(&settings),
        Action::ModelInfo(name) => model_info(&settings, &name),
        Action::Simulate(args) => say(&simulate::run(&args, &settings)?),
        Action::Serve => serve(&settings),
    }
}

/// Variables that are not text cannot be settings.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A closed pipe, as of `| head`, is not an error.
fn say(line: &str) -> Result<u8, String> {
    drop(writeln!(io::stdout(), "{line}"));
    Ok(OK)
}

fn list_models(settings: &Settings) -> Result<u8, String> {
    let app = App::new(settings, &[]).map_err(|error| error.to_string())?;
    for version in app.registry.versions() {
        let Origin::Files { path, format } = &version.source().origin else { continue };
        say(&format!("{} {} {format} {}", version.model(), version.name(), path.display()))?;
    }
    Ok(OK)
}

/// Loads everything, what is not loaded at start too: the exit code says whether all of it can be.
fn dry_run(settings: &Settings) -> Result<u8, String> {
    log_to_stderr(&settings.logging);
    let app = App::new(settings, &[]).map_err(|error| error.to_string())?;
    let versions: Vec<_> = app.registry.versions().cloned().collect();
    load_for_a_look(settings, &versions)?;
    let mut code = OK;
    for version in versions {
        let line = match version.state() {
            State::Failed(reason) => {
                code = FAILED;
                format!("{} {} failed: {reason}", version.model(), version.name())
            }
            state => {
                let seconds = version.ready().map_or(0.0, |running| running.load_time.as_secs_f64());
                format!("{} {} {} in {seconds:.2} s", version.model(), version.name(), state.name())
            }
        };
        say(&line)?;
    }
    Ok(code)
}

/// Loads one model, whether or not it is loaded at start, and none of the others.
fn model_info(settings: &Settings, name: &str) -> Result<u8, String> {
    log_to_stderr(&settings.logging);
    let app = App::new(settings, &[]).map_err(|error| error.to_string())?;
    let model = app.registry.model(name).map_err(|error| error.to_string())?;
    load_for_a_look(settings, model.versions())?;
    let text = serde_json::to_string_pretty(&describe(model)).map_err(|error| error.to_string())?;
    say(&text)?;
    let ready = model.default_version().is_some_and(|version| version.state() == State::Ready);
    Ok(if ready { OK } else { FAILED })
}

/// Loads versions side by side, without a server around them.
fn load_for_a_look(settings: &Settings, versions: &[Arc<Version>]) -> Result<(), String> {
    check_devices(settings, versions.iter()).map_err(|error| error.to_string())?;
    let runtime = one_thread()?;
    let mut loads = JoinSet::new();
    for version in versions {
        let version = Arc::clone(version);
        // A failure is the version's state.
        loads.spawn_on(async move { drop(version.load().await) }, runtime.handle());
    }
    runtime.block_on(loads.join_all());
    Ok(())
}

fn one_thread() -> Result<Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start the runtime: {error}"))
}

/// How long a server may take to say how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

fn health_check(settings: &Settings) -> Result<u8, String> {
    let (host, port) = (&settings.server.host, settings.server.port);
    let reply =
        ask_readiness(host, port).map_err(|error| format!("no server answers on {host}:{port}: {error}"))?;
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let status: Value =
        serde_json::from_str(body).map_err(|_| format!("{host}:{port} is not this server"))?;
    let word = status["status"].as_str().unwrap_or("unknown");
    say(&format!("{host}:{port} is {word}"))?;
    Ok(if reply.starts_with("HTTP/1.1 200") { OK } else { FAILED })
}

fn ask_readiness(host: &str, port: u16) -> io::Result<String> {
    let addr = (host, port).to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&addr, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    write!(stream, "GET /health/ready HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Serves until the first SIGINT or SIGTERM, then finishes what is in flight. A second signal ends at once.
fn serve(settings: &Settings) -> Result<u8, String> {
    log_to_stderr(&settings.logging);
    let runtime = one_thread()?;
    // Before anything starts, so that no signal is lost to the default of ending at once.
    let mut signals = runtime.block_on(async { Signals::new() }).map_err(|error| error.to_string())?;
    let server = Arc::new(Server::start(settings).map_err(|error| error.to_string())?);
    say(&welcome(&server, settings))?;
    let announcer = Arc::clone(&server);
    thread::spawn(move || {
        if announcer.wait_settled() {
            drop(say(&ready_line(&announcer)));
        }
    });
    let Shutdown { signal, .. } = runtime.block_on(signals.next());
    tracing::info!(signal, "shutting down: finishing what is in flight; a second signal ends at once");
    thread::spawn(move || {
        let Shutdown { code, .. } = runtime.block_on(signals.next());
        // No static destructors: they would run beside threads that still use what they destroy.
        exit_now(code);
    });
    server.stop();
    Ok(OK)
}

/// A signal that ends the server, and the code that shells give a process which it ended.
struct Shutdown {
    signal: &'static str,
    code: u8,
}

const INTERRUPTED: Shutdown = Shutdown { signal: "SIGINT", code: 128 + 2 };
const TERMINATED: Shutdown = Shutdown { signal: "SIGTERM", code: 128 + 15 };

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Shutdown {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => TERMINATED,
        }
    }
}

fn welcome(server: &Server, settings: &Settings) -> String {
    let mut text = format!("listening on http://{}\n", server.addr());
    for (method, path) in ROUTES {
        text += &format!("  {method:<5} {path}\n");
    }
    let torch = server.app().registry.versions().filter(|version| version.source().uses_torch());
    let shares: Vec<String> = torch
        .map(|version| {
            let (instances, threads) = (version.source().settings.instances, version.threads());
            format!("{} {instances} x {threads}", version.model())
        })
        .collect();
    text += &format!(
        "{} LibTorch threads (instances x threads): {}",
        settings.device.threads,
        if shares.is_empty() { "none needed".to_owned() } else { shares.join(", ") }
    );
    text
}

fn ready_line(server: &Server) -> String {
    let failed =
        server.app().registry.versions().filter(|version| matches!(version.state(), State::Failed(_)));
    let mut text = match failed.count() {
        0 => "ready".to_owned(),
        failed => format!("{failed} of the models failed to load, the others are ready"),
    };
    if let Some(example) = example_call(server) {
        text += &format!("; try\n  {example}");
    }
    text
}

/// A call that works on what is served: a text model's, else that of the model with the smallest input.
fn example_call(server: &Server) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for version in server.app().registry.versions() {
        let Some(running) = version.ready() else { continue };
        let Some(batches) = running.batches() else { continue };
        let (size, data) = match &batches.signature {
            Signature::Text { .. } => (0, "\"Batching makes servers fast.\"".to_owned()),
            Signature::Tensors { inputs, .. } => match inputs.as_slice() {
                [input] => {
                    let elements = input.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(1)).product();
                    (elements, example_value(&input.shape, input.dtype == crate::tensor::DType::Bool))
                }
                _ => continue,
            },
        };
        if size <= 64 && best.as_ref().is_none_or(|(smallest, _)| size < *smallest) {
            let url = format!("http://{}/models/{}/predict", server.addr(), version.model());
            let call = format!("curl -s {url} -H 'content-type: application/json' -d '{{\"data\": {data}}}'");
            best = Some((size, call));
        }
    }
    best.map(|(_, call)| call)
}

fn example_value(shape: &[i64], boolean: bool) -> String {
    match shape {
        [] if boolean => "true".to_owned(),
        [] => "1".to_owned(),
        [length, inner @ ..] => {
            let length = usize::try_from(*length).unwrap_or(1);
            format!("[{}]", vec![example_value(inner, boolean); length].join(","))
        }
    }
}
