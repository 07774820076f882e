//! `simulate`: a model's scheduler under a load that is not there, on a clock that runs as fast as it can.
//!
//! - `args`: its options; `progress`: how far it is; `text`: its tables

mod args;
mod progress;
mod text;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use trustformers_batching::replay::Event;
use trustformers_batching::sim::{
    Arrival, BatchTime, Lengths, Noise, Process, Recording, Report, Service, Trace, Traffic, simulate,
};
use trustformers_batching::{SchedulerConfig, Time};

pub use self::args::{Format, Law, PriorityMix, ServiceTimes, SimulateArgs};
use self::progress::Progress;
use self::text::{tables, time};
use crate::app::App;
use crate::config::{ModelSettings, Settings};

/// How long requests come where nothing else is said.
const DURATION: Duration = Duration::from_secs(60);
/// From one burst to the next where nothing else is said.
const BURSTS: Duration = Duration::from_secs(10);
/// How far a day's rate swings around its mean.
const SWING: f64 = 0.8;

/// What the simulation with these options comes to, as text or JSON; `settings` have its `--config` and
/// `--set` in them.
pub fn run(args: &SimulateArgs, settings: &Settings) -> Result<String, String> {
    let trace = args.trace.as_deref().map(read_trace).transpose()?;
    let model = match &trace {
        // A trace has its own settings, and is of a model that need not be configured here.
        Some(_) if args.model.is_none() && args.config.is_none() && args.set.is_empty() => None,
        _ => Some(model_settings(settings, args.model.as_deref())?),
    };
    let mut config = match (&model, &trace) {
        (Some(model), _) => SchedulerConfig {
            instances: u32::try_from(model.instances).unwrap_or(u32::MAX),
            ..model.batching.scheduler_config(settings.device.memory_limit)
        },
        (None, Some(trace)) => trace.config.clone(),
        (None, None) => SchedulerConfig::default(),
    };
    if let Some(instances) = args.instances {
        config.instances = instances;
    }
    let service = service(args, model.as_ref(), trace.as_ref())?;
    let what = model.map_or("trace".to_owned(), |model| model.name);
    let title = title(&what, args, config.instances, &service, trace.as_ref());
    let report = match &trace {
        Some(trace) => timed(config, trace.arrivals.iter().cloned(), service, trace.arrivals.len() as u64),
        None => simulate_traffic(args, config, service)?,
    };
    let recorded = trace.as_ref().map(|trace| &trace.report);
    match args.format {
        Format::Text => Ok(tables(&title, &report, recorded)),
        Format::Json => {
            let all = json!({ "model": what, "simulated": report, "recorded": recorded });
            serde_json::to_string_pretty(&all).map_err(|error| error.to_string())
        }
    }
}

fn timed(
    config: SchedulerConfig,
    workload: impl Iterator<Item = Arrival>,
    service: Service,
    total: u64,
) -> Report {
    let mut progress = Progress::new(total);
    let report = simulate(config, workload, service, |requests| progress.at(requests));
    progress.end(report.requests);
    report
}

fn simulate_traffic(
    args: &SimulateArgs,
    config: SchedulerConfig,
    service: Service,
) -> Result<Report, String> {
    let rate = args.rate.ok_or("--rate is missing")?;
    let duration = args.duration.unwrap_or(DURATION);
    let whole = match args.requests {
        Some(requests) => Duration::try_from_secs_f64(requests as f64 / rate).unwrap_or(Duration::MAX),
        None => duration,
    };
    let process = match args.arrivals {
        Law::Poisson => Process::Poisson { rate },
        Law::Bursty => Process::Bursty { rate, factor: args.burst, period: args.period.unwrap_or(BURSTS) },
        Law::Diurnal => Process::Diurnal { rate, swing: SWING, period: args.period.unwrap_or(whole) },
    };
    let traffic = Traffic {
        lengths: args.lengths.unwrap_or(Lengths::Items),
        padded: args.padded,
        priorities: args.priorities.unwrap_or_default().0,
        clients: args.clients,
        timeout: args.timeout,
        seed: args.seed,
        ..Traffic::new(process)
    };
    let arrivals = traffic.arrivals();
    Ok(match args.requests {
        Some(requests) => {
            let count = usize::try_from(requests).unwrap_or(usize::MAX);
            timed(config, arrivals.take(count), service, requests)
        }
        None => {
            let end = Time::ZERO + duration;
            let expected = (rate * duration.as_secs_f64()) as u64;
            timed(config, arrivals.take_while(|arrival| arrival.at < end), service, expected)
        }
    })
}

/// The settings of a model, without loading it: the newest version's.
fn model_settings(settings: &Settings, name: Option<&str>) -> Result<ModelSettings, String> {
    let app = App::new(settings, &[]).map_err(|error| error.to_string())?;
    let model = match name {
        Some(name) => app.registry.model(name).map_err(|error| error.to_string())?,
        None => app.registry.models().next().ok_or("there is no model to simulate")?,
    };
    let version =
        model.versions().last().ok_or_else(|| format!("model {:?} has no version", model.name()))?;
    Ok(ModelSettings { name: model.name().to_owned(), ..version.source().settings.clone() })
}

fn service(
    args: &SimulateArgs,
    model: Option<&ModelSettings>,
    trace: Option<&Trace>,
) -> Result<Service, String> {
    let linear = |a: Duration, b: Duration, c: Duration| {
        Service::linear(a.as_secs_f64(), b.as_secs_f64(), c.as_secs_f64())
    };
    let service = match (args.service, trace, model) {
        (Some(times), _, _) => linear(times.a, times.b, times.c),
        (None, Some(trace), _) => trace
            .service(args.seed)
            .ok_or("no batch of the trace completed: say with --service how long one takes")?,
        (None, None, Some(ModelSettings { delay: Some(delay), .. })) => {
            linear(delay.batch_time, delay.item_time, Duration::ZERO)
        }
        (None, None, model) => {
            let name = model.map_or("", |model| &model.name);
            return Err(format!(
                "how long a batch of model {name:?} takes is not known here: say it with --service \
                 'a=5ms,b=0.1ms,c=1us', or give an event log of it with --trace"
            ));
        }
    };
    let noise = if args.noise > 0.0 { Noise::LogNormal(args.noise) } else { service.noise };
    Ok(Service { noise, failures: args.failures, seed: args.seed, ..service })
}

fn title(
    what: &str,
    args: &SimulateArgs,
    instances: u32,
    service: &Service,
    trace: Option<&Trace>,
) -> String {
    let load = match (&args.trace, args.rate) {
        (Some(path), _) => path.display().to_string(),
        (None, rate) => {
            let law = match args.arrivals {
                Law::Poisson => "poisson",
                Law::Bursty => "bursty",
                Law::Diurnal => "diurnal",
            };
            format!("{law} arrivals, {}/s", rate.unwrap_or_default())
        }
    };
    let (a, b, c) = match (&service.time, trace) {
        (BatchTime::Linear { a, b, c }, _) => (*a, *b, *c),
        (BatchTime::Fitted(_), trace) => trace.map_or((0.0, 0.0, 0.0), Trace::fit),
    };
    let times = format!("{} + {} x items + {} x elements", time(a), time(b), time(c));
    let copies = if instances == 1 { "1 instance".to_owned() } else { format!("{instances} instances") };
    format!("{what}: {load}, {copies}; a batch takes {times}")
}

fn read_trace(path: &Path) -> Result<Trace, String> {
    let name = path.display();
    let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
    let mut recording = Recording::new();
    let mut lines = BufReader::new(file);
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        if lines.read_line(&mut line).map_err(|error| format!("{name}: {error}"))? == 0 {
            break;
        }
        match serde_json::from_str::<Event>(&line) {
            Ok(event) => recording.read(event),
            // The server still writes its last line.
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => return Err(format!("{name}:{number}: this is no line of an event log: {error}")),
        }
    }
    recording.finish().ok_or_else(|| format!("{name}: there is no request in this event log"))
}
