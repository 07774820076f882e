//! What the scheduler does, shown on the built-in encoder, one feature after the other.
//!
//! `cargo run --release --example dynamic_batching_demo`

use std::error::Error;
use std::time::{Duration, Instant};

use trustformers_serve::{
    Backpressure, BatchingConfig, BatchingMode, DynamicBatchConfig, DynamicBatchingService,
    OptimizationTarget, Priority, Request, RequestInput, Response, ServiceError,
};

type Done = Result<(), Box<dyn Error>>;

#[tokio::main]
async fn main() -> Done {
    modes().await?;
    objectives().await?;
    priorities().await?;
    deadlines().await?;
    memory().await?;
    backpressure().await?;
    insight().await
}

/// Sentences of mixed lengths.
fn sentence(number: usize) -> String {
    format!("Sentence number {number} is about batching{}.", ", and about batching".repeat(number % 7))
}

fn text(number: usize) -> Request {
    Request { input: RequestInput::Text { text: sentence(number), max_length: None }, ..Request::default() }
}

async fn started(config: BatchingConfig) -> Result<DynamicBatchingService, ServiceError> {
    let service = DynamicBatchingService::new(config);
    service.start().await?;
    Ok(service)
}

/// All at once; the answers in the order of the requests.
async fn all(
    service: &DynamicBatchingService,
    requests: impl IntoIterator<Item = Request>,
) -> Vec<Result<Response, ServiceError>> {
    let mut running = Vec::new();
    // Polled together, so that they meet in a batch.
    for request in requests {
        running.push(service.submit_request(request));
    }
    futures_util::future::join_all(running).await
}

/// The same 100 requests in each mode.
async fn modes() -> Done {
    println!("modes, 100 sentences at once");
    for mode in [BatchingMode::Fixed, BatchingMode::Dynamic, BatchingMode::Adaptive] {
        let config = BatchingConfig {
            mode,
            max_batch_size: 16,
            max_wait_time: Duration::from_millis(10),
            latency_slo: Some(Duration::from_millis(500)),
            ..Default::default()
        };
        let service = started(config).await?;
        let answered = all(&service, (0..100).map(text)).await.into_iter().filter(Result::is_ok).count();
        let stats = service.get_stats().await;
        println!(
            "  {mode:?}: {answered} answered, batches of {:.1} on average, p95 {:.0} ms",
            stats.snapshot.batch_size.mean,
            stats.metrics_summary.p95_latency.as_secs_f64() * 1e3,
        );
        service.stop().await;
    }
    Ok(())
}

/// The same trickle of requests under each objective.
async fn objectives() -> Done {
    println!("objectives, a request every 3 ms");
    for optimization_target in [
        OptimizationTarget::Latency,
        OptimizationTarget::Balanced,
        OptimizationTarget::Throughput,
        OptimizationTarget::Cost,
    ] {
        let config = BatchingConfig { optimization_target, ..Default::default() };
        let service = started(config).await?;
        let mut running = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(3));
        let service = std::sync::Arc::new(service);
        for number in 0..150 {
            ticks.tick().await;
            let service = std::sync::Arc::clone(&service);
            running.push(tokio::spawn(async move { service.submit_request(text(number)).await }));
        }
        for request in running {
            request.await??;
        }
        let stats = service.get_stats().await;
        println!(
            "  {optimization_target:?}: mean latency {:.1} ms, batches of {:.1}, the device busy for {:.0} %",
            stats.snapshot.latency_seconds.mean * 1e3,
            stats.snapshot.batch_size.mean,
            stats.snapshot.utilization.overall * 1e2,
        );
        service.stop().await;
    }
    Ok(())
}

/// Critical requests overtake what came before them.
async fn priorities() -> Done {
    let service = started(BatchingConfig { max_batch_size: 4, ..Default::default() }).await?;
    let requests = (0..60).map(|number| {
        let priority = if number % 15 == 14 { Priority::Critical } else { Priority::Low };
        Request { priority, ..text(number) }
    });
    let mut slowest = [Duration::ZERO; 2];
    for (number, answer) in all(&service, requests).await.into_iter().enumerate() {
        let slot = &mut slowest[usize::from(number % 15 == 14)];
        *slot = (*slot).max(answer?.latency);
    }
    println!("priorities: the slowest of 56 low took {:.1?}, of 4 critical {:.1?}", slowest[0], slowest[1]);
    service.stop().await;
    Ok(())
}

/// What cannot be answered in time is not run.
async fn deadlines() -> Done {
    let service = started(BatchingConfig { max_batch_size: 4, ..Default::default() }).await?;
    all(&service, (0..64).map(text)).await;
    let requests = (0..200)
        .map(|number| Request { deadline: Some(Instant::now() + Duration::from_millis(60)), ..text(number) });
    let answers = all(&service, requests).await;
    let met = answers.iter().filter(|answer| answer.is_ok()).count();
    println!("deadlines: of 200 requests due in 60 ms {met} were answered, the others refused or expired");
    if let Some(Err(error)) = answers.iter().find(|answer| answer.is_err()) {
        println!("  for instance: {error}");
    }
    service.stop().await;
    Ok(())
}

/// Batches stay within what memory they may need.
async fn memory() -> Done {
    for limit in [None, Some(4 << 20)] {
        let config = BatchingConfig {
            memory_limit: limit,
            dynamic_config: DynamicBatchConfig { memory_aware: true, ..Default::default() },
            ..Default::default()
        };
        let service = started(config).await?;
        // The first batches teach what a token needs.
        for number in 0..40 {
            service.submit_request(text(number)).await?;
        }
        let answered = all(&service, (0..64).map(text)).await.into_iter().filter(Result::is_ok).count();
        let stats = service.get_stats().await;
        let limit =
            limit.map_or("no limit".to_owned(), |limit| format!("at most {} MiB a batch", limit >> 20));
        println!("memory, {limit}: {answered} answered, largest batch {}", stats.snapshot.batch_size.max);
        service.stop().await;
    }
    Ok(())
}

/// A full queue refuses, or makes callers wait.
async fn backpressure() -> Done {
    for backpressure in [Backpressure::Drop, Backpressure::Block] {
        let config = BatchingConfig { backpressure, max_queue_size: 8, ..Default::default() };
        let service = started(config).await?;
        let answers = all(&service, (0..64).map(text)).await;
        let answered = answers.iter().filter(|answer| answer.is_ok()).count();
        println!(
            "backpressure {backpressure:?}: {answered} of 64 requests answered with 8 places in the queue"
        );
        service.stop().await;
    }
    Ok(())
}

/// What the service knows of itself.
async fn insight() -> Done {
    let service = started(BatchingConfig { max_batch_size: 4, ..Default::default() }).await?;
    all(&service, (0..400).map(text)).await;
    let stats = service.get_stats().await;
    let summary = &stats.metrics_summary;
    println!("insight: {} requests, {:.0}/s", summary.completed, summary.throughput_rps);
    for fit in &stats.snapshot.cost_model.fits {
        println!(
            "  a batch takes {:.2} ms + {:.3} ms an item + {:.4} ms a token",
            fit.a * 1e3,
            fit.b * 1e3,
            fit.c * 1e3
        );
    }
    for suggestion in &stats.suggestions {
        let gain = &suggestion.predicted_gain;
        println!(
            "  suggestion: {:?} from {} to {}: {:.0} {} instead of {:.0}",
            suggestion.action, suggestion.current, suggestion.proposed, gain.after, gain.unit, gain.before
        );
    }
    service.stop().await;
    Ok(())
}
