//! A simulation's result as tables for people.

use std::collections::BTreeSet;

use trustformers_batching::sim::Report;
use trustformers_batching::stats::Distribution;

/// Batch sizes that each get a line; of more, ranges do.
const MOST_LINES: usize = 12;
/// Marks of a share of one.
const MARKS: f64 = 40.0;

/// The tables; `recorded` is what really happened, where that is known.
pub(super) fn tables(title: &str, simulated: &Report, recorded: Option<&Report>) -> String {
    let mut columns = vec![("simulated", simulated)];
    columns.extend(recorded.map(|report| ("recorded", report)));
    let lines = std::iter::once(title.to_owned())
        .chain(counts(&columns))
        .chain(latencies(&columns))
        .chain(sizes(simulated));
    lines.collect::<Vec<_>>().join("\n")
}

type Column<'a> = (&'static str, &'a Report);

fn row(name: &str, values: impl Iterator<Item = String>) -> String {
    let values: String = values.map(|value| format!("{value:>12}")).collect();
    format!("{name:<32}{values}")
}

fn counts(columns: &[Column<'_>]) -> Vec<String> {
    let line = |name: &str, value: &dyn Fn(&Report) -> String| {
        row(name, columns.iter().map(|(_, report)| value(report)))
    };
    // What never happened needs no line.
    let happened = |name: &str, count: &dyn Fn(&Report) -> u64| {
        let any = columns.iter().any(|(_, report)| count(report) > 0);
        any.then(|| line(name, &|report| count(report).to_string()))
    };
    let reasons: BTreeSet<_> = columns.iter().flat_map(|(_, report)| report.refused.keys()).collect();
    let refused = |reason: &str| {
        let count = |report: &Report| report.refused.get(reason).copied().unwrap_or_default();
        happened(&format!("refused: {reason}"), &count)
    };
    let mut lines = vec![String::new()];
    lines.extend((columns.len() > 1).then(|| row("", columns.iter().map(|(name, _)| (*name).to_owned()))));
    lines.push(line("requests", &|report| report.requests.to_string()));
    lines.push(line("completed", &|report| report.completed.to_string()));
    lines.extend(reasons.into_iter().filter_map(|reason| refused(reason)));
    lines.extend(happened("expired", &|report| report.expired));
    lines.extend(happened("failed", &|report| report.failed));
    lines.extend(happened("cancelled", &|report| report.cancelled));
    lines.extend([
        line("duration", &|report| format!("{:.1} s", report.seconds)),
        line("throughput", &|report| format!("{:.1}/s", report.throughput)),
        line("batches", &|report| report.batches.to_string()),
        line("mean batch size", &|report| format!("{:.2}", report.mean_batch_size)),
        line("padding", &|report| percent(report.padding_ratio)),
        line("utilization", &|report| percent(report.utilization)),
        line("device time a request", &|report| time(report.device_seconds_per_item)),
    ]);
    lines
}

fn latencies(columns: &[Column<'_>]) -> Vec<String> {
    let heads = ["mean", "p50", "p90", "p95", "p99", "max"];
    let mut lines = vec![String::new(), row("", heads.iter().map(|&head| head.to_owned()))];
    for &(column, report) in columns {
        let name = |what: &str| if columns.len() > 1 { format!("{what}, {column}") } else { what.to_owned() };
        lines.push(distribution(&name("latency"), &report.latency));
        if report.latency_by_priority.len() > 1 {
            for (priority, latency) in report.latency_by_priority.iter().rev() {
                lines.push(distribution(&format!("  {}", name(priority.name())), latency));
            }
        }
        lines.push(distribution(&name("wait for a batch"), &report.wait));
    }
    lines
}

fn distribution(name: &str, times: &Distribution) -> String {
    let values = [times.mean, times.p50, times.p90, times.p95, times.p99, times.max];
    row(name, values.iter().map(|&seconds| time(seconds)))
}

fn sizes(report: &Report) -> Vec<String> {
    let largest = report.batch_sizes.keys().next_back().copied().unwrap_or_default();
    // One size a line, or so many that the lines are few.
    let width = largest.div_ceil(MOST_LINES as u32).max(1);
    let mut lines =
        vec![String::new(), row("batch size", ["batches", "share"].map(str::to_owned).into_iter())];
    let mut from = 1;
    while from <= largest {
        let to = (from + width - 1).min(largest);
        let batches: u64 = report.batch_sizes.range(from..=to).map(|(_, batches)| batches).sum();
        let share = batches as f64 / report.batches.max(1) as f64;
        let name = if from == to { from.to_string() } else { format!("{from}-{to}") };
        let values = row(&name, [batches.to_string(), percent(share)].into_iter());
        lines.push(
            format!("{values}  {}", "#".repeat((share * MARKS).round() as usize)).trim_end().to_owned(),
        );
        from = to + 1;
    }
    lines
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// Three figures, in the unit that suits.
pub(super) fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s <= 0.0 => return "0 ms".to_owned(),
        s if s < 999.5e-9 => (s * 1e9, "ns"),
        s if s < 999.5e-6 => (s * 1e6, "us"),
        s if s < 0.9995 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_figures() {
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.000_000_25, "250 ns"),
            (0.000_012_34, "12.3 us"),
            (0.001_234, "1.23 ms"),
            (0.099_99, "100 ms"),
            (0.9999, "1.00 s"),
            (61.0, "61.0 s"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn sizes_are_few_lines_that_hold_every_batch() {
        let batch_sizes = [(1, 10), (32, 20), (33, 30), (64, 40)].into();
        let report = Report { batches: 100, batch_sizes, ..Report::default() };
        let lines = sizes(&report);
        assert_eq!(lines.len(), 2 + 11, "{lines:#?}");
        assert_eq!(lines[2], format!("{:<32}{:>12}{:>12}  ####", "1-6", "10", "10.0 %"));
        let batches =
            lines[2..].iter().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        assert_eq!(batches.sum::<u64>(), 100);
    }

    #[test]
    fn what_never_happened_has_no_line_and_a_recording_its_own_column() {
        let refused = [("queue_full", 3)].into();
        let (simulated, recorded) = (Report::default(), Report { refused, ..Report::default() });
        let alone = tables("title", &simulated, None);
        assert!(!alone.contains("refused") && !alone.contains("expired") && !alone.contains("recorded"));
        let both = tables("title", &simulated, Some(&recorded));
        let line = both.lines().find(|line| line.starts_with("refused: queue_full")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["refused:", "queue_full", "0", "3"]);
    }
}
