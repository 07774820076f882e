//! The options of `simulate`, each read into its type.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use trustformers_batching::Priority;
use trustformers_batching::sim::Lengths;

use crate::config::duration_of;

const EXAMPLES: &str = "\
Examples:
  trustformers-serve simulate --config serve.toml --rate 500 --service 'a=5ms,b=0.1ms'
  trustformers-serve simulate --model delay --rate 200 --arrivals bursty --duration 10m
  trustformers-serve simulate --rate 800 --service 'a=2ms,c=8us' --lengths 16-256 --timeout 100ms
  trustformers-serve simulate --trace log/minilm@1.1.jsonl --set batching.max_batch_size=64";

/// What to simulate.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = EXAMPLES)]
pub struct SimulateArgs {
    /// Configuration file (TOML) with the model's settings
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// One setting by its dotted key; may be repeated, the last of one key wins
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Model whose settings are tried [default: the first]
    #[arg(short, long, value_name = "NAME")]
    pub model: Option<String>,

    /// Mean requests a second
    #[arg(short, long, value_name = "RATE", required_unless_present = "trace", value_parser = rate)]
    pub rate: Option<f64>,

    /// How requests come
    #[arg(long, value_enum, value_name = "LAW", default_value_t = Law::Poisson)]
    pub arrivals: Law,

    /// Rate in a burst, as a multiple of the mean; half of all requests come in bursts
    #[arg(long, value_name = "FACTOR", default_value = "4", value_parser = factor)]
    pub burst: f64,

    /// From one burst to the next [default: 10s], or one day's length [default: the whole run]
    #[arg(long, value_name = "TIME", value_parser = positive)]
    pub period: Option<Duration>,

    /// Simulated time in which requests come [default: 60s]
    #[arg(short, long, value_name = "TIME", value_parser = positive, conflicts_with = "requests")]
    pub duration: Option<Duration>,

    /// Requests that come, instead of --duration
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,

    /// Requests, and batch times, from a server's event log; its settings too, unless others are given
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "rate", "arrivals", "burst", "period", "duration", "requests", "lengths", "priorities", "clients", "timeout",
    ])]
    pub trace: Option<PathBuf>,

    /// Time of a batch: a, b for each item, c for each token or other element, as in 'a=5ms,b=0.1ms,c=1us'
    #[arg(long, value_name = "TIMES", value_parser = service)]
    pub service: Option<ServiceTimes>,

    /// Deviation of a batch's time, as a part of it
    #[arg(long, value_name = "PART", default_value = "0", value_parser = noise, requires = "service")]
    pub noise: f64,

    /// Probability that a run of a batch fails
    #[arg(long, value_name = "PART", default_value = "0", value_parser = probability)]
    pub failures: f64,

    /// Copies of the model [default: as configured]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub instances: Option<u32>,

    /// Tokens of a request: 64, 16-256 (most short), 16-256:uniform [default: one item without a length]
    #[arg(long, value_name = "RANGE", value_parser = lengths)]
    pub lengths: Option<Lengths>,

    /// The model pads a batch to its longest; without this it computes only the tokens there are
    #[arg(long, requires = "lengths")]
    pub padded: bool,

    /// Mix of priorities, as in 'low=1,normal=7,high=1,critical=1' [default: all normal]
    #[arg(long, value_name = "MIX", value_parser = priorities)]
    pub priorities: Option<PriorityMix>,

    /// Clients, each as active as the others
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    pub clients: u64,

    /// Time that a request may take [default: any]
    #[arg(long, value_name = "TIME", value_parser = positive)]
    pub timeout: Option<Duration>,

    /// Another seed, another run of chance
    #[arg(long, value_name = "NUMBER", default_value = "0")]
    pub seed: u64,

    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

/// A law by which requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Law {
    /// Independent of each other
    Poisson,
    /// In bursts, with pauses
    Bursty,
    /// More and fewer through the day
    Diurnal,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people
    Text,
    /// One object for programs
    Json,
}

/// How long a batch takes: `a`, and `b` for each item, and `c` for each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct ServiceTimes {
    pub a: Duration,
    pub b: Duration,
    pub c: Duration,
}

/// How often each priority occurs, lowest first, in proportion.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PriorityMix(pub [f64; Priority::COUNT]);

fn number(text: &str, what: &str, right: impl Fn(f64) -> bool) -> Result<f64, String> {
    let found = text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && right(*number));
    found.ok_or_else(|| format!("it is not {what}"))
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, "a number of requests a second above 0 and at most 1000000000", |rate| {
        (1e-6..=1e9).contains(&rate)
    })
}

fn factor(text: &str) -> Result<f64, String> {
    number(text, "a number from 1 to 1000", |factor| (1.0..=1e3).contains(&factor))
}

fn noise(text: &str) -> Result<f64, String> {
    number(text, "a part from 0 to 2", |part| (0.0..=2.0).contains(&part))
}

fn probability(text: &str) -> Result<f64, String> {
    number(text, "a probability from 0 to 1", |part| (0.0..=1.0).contains(&part))
}

fn positive(text: &str) -> Result<Duration, String> {
    let duration = duration_of(text)?;
    if duration.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(duration) }
}

/// `name=value` pairs between commas, each of `names` once at most.
fn pairs<'a>(text: &'a str, names: &[&str]) -> Result<Vec<(usize, &'a str)>, String> {
    let mut found: Vec<(usize, &str)> = Vec::new();
    for pair in text.split(',') {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} has no `=`"))?;
        let name = name.trim();
        let place = names.iter().position(|known| *known == name);
        let place = place.ok_or_else(|| format!("{name:?} is none of {}", names.join(", ")))?;
        if found.iter().any(|(before, _)| *before == place) {
            return Err(format!("{name} is there twice"));
        }
        found.push((place, value));
    }
    Ok(found)
}

fn service(text: &str) -> Result<ServiceTimes, String> {
    let mut times = [Duration::ZERO; 3];
    for (place, value) in pairs(text, &["a", "b", "c"])? {
        times[place] = duration_of(value)?;
    }
    let [a, b, c] = times;
    if times.iter().all(Duration::is_zero) {
        return Err("a batch must take some time".to_owned());
    }
    Ok(ServiceTimes { a, b, c })
}

fn priorities(text: &str) -> Result<PriorityMix, String> {
    let mut mix = [0.0; Priority::COUNT];
    for (place, value) in pairs(text, &["low", "normal", "high", "critical"])? {
        mix[place] = number(value, "a mix of numbers from 0 to 1000000", |w| (0.0..=1e6).contains(&w))?;
    }
    if mix.iter().sum::<f64>() > 0.0 { Ok(PriorityMix(mix)) } else { Err("one must be above 0".to_owned()) }
}

/// Beyond this a length is a typing error, and sums of lengths stay far inside their type.
const LONGEST: u32 = 10_000_000;

fn lengths(text: &str) -> Result<Lengths, String> {
    let wrong =
        || format!("it is no length or range from 1 to {LONGEST}, as in 64, 16-256 or 16-256:uniform");
    let (range, uniform) = match text.split_once(':') {
        Some((range, "uniform")) => (range, true),
        Some(_) => return Err(wrong()),
        None => (text, false),
    };
    let (least, most) = range.split_once('-').unwrap_or((range, range));
    let token = |text: &str| text.trim().parse::<u32>().ok().filter(|length| (1..=LONGEST).contains(length));
    match (token(least), token(most)) {
        (Some(least), Some(most)) if least <= most => {
            let law = if uniform || least == most { Lengths::Uniform } else { Lengths::Skewed };
            Ok(law(least, most))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_names_and_units() {
        let us = Duration::from_micros;
        let times = ServiceTimes { a: us(5_000), b: us(100), c: us(1) };
        assert_eq!(service("a=5ms,b=0.1ms,c=1us"), Ok(times));
        assert_eq!(service(" c=1us, a=5ms,b=100us"), Ok(times));
        assert_eq!(service("b=2ms"), Ok(ServiceTimes { b: us(2_000), ..ServiceTimes::default() }));
        for (text, says) in [
            ("5ms", "has no `=`"),
            ("d=5ms", "\"d\" is none of a, b, c"),
            ("a=1ms,a=2ms", "a is there twice"),
            ("a=5", "unit"),
            ("a=0ms", "some time"),
            ("", "has no `=`"),
        ] {
            let error = service(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn lengths_are_one_or_a_range() {
        assert_eq!(lengths("64"), Ok(Lengths::Uniform(64, 64)));
        assert_eq!(lengths("16-256"), Ok(Lengths::Skewed(16, 256)));
        assert_eq!(lengths("16-256:uniform"), Ok(Lengths::Uniform(16, 256)));
        for text in ["", "0", "256-16", "16-", "16-256:normal", "a", "99999999999"] {
            assert!(lengths(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mix_is_in_proportion() {
        assert_eq!(priorities("high=1,low=2.5"), Ok(PriorityMix([2.5, 0.0, 1.0, 0.0])));
        for text in ["", "low", "low=-1", "low=0", "urgent=1", "low=inf"] {
            assert!(priorities(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!((rate("0.5"), factor("1"), probability("1")), (Ok(0.5), Ok(1.0), Ok(1.0)));
        for (wrong, text) in [
            (rate("0"), "rate 0"),
            (rate("nan"), "no rate"),
            (factor("0.5"), "no burst"),
            (noise("-1"), "noise below 0"),
            (probability("1.1"), "more than always"),
        ] {
            assert!(wrong.is_err(), "{text}");
        }
        assert!(positive("0s").is_err() && positive("5").is_err());
    }
}
