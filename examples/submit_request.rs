//! Batches text requests inside a Rust program, with the built-in encoder.
//!
//! `cargo run --release --example submit_request`

use std::time::{Duration, Instant};

use trustformers_serve::{
    BatchingConfig, BatchingMode, DynamicBatchConfig, DynamicBatchingService, OptimizationTarget,
    PaddingStrategy, Priority, Request, RequestId, RequestInput,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = BatchingConfig {
        max_batch_size: 32,
        min_batch_size: 4,
        max_wait_time: Duration::from_millis(50),
        enable_adaptive_batching: true,
        mode: BatchingMode::Dynamic,
        optimization_target: OptimizationTarget::Balanced,
        memory_limit: Some(1024 * 1024 * 100),
        enable_priority_scheduling: true,
        dynamic_config: DynamicBatchConfig {
            memory_aware: true,
            padding_strategy: PaddingStrategy::Minimal,
            enable_bucketing: true,
            bucket_boundaries: vec![128, 256, 512, 1024],
            ..Default::default()
        },
        ..Default::default()
    };

    let service = DynamicBatchingService::new(config);
    service.start().await?;

    let response = service
        .submit_request(Request {
            id: RequestId::new(),
            input: RequestInput::Text { text: "Hello, world!".to_string(), max_length: Some(100) },
            priority: Priority::Normal,
            submitted_at: Instant::now(),
            deadline: None,
            metadata: Default::default(),
        })
        .await?;
    println!(
        "request {}: {} numbers in {:.1?}",
        response.id,
        response.output[0].elements(),
        response.latency
    );

    let urgent = service
        .submit_request(Request {
            id: RequestId::new(),
            input: RequestInput::Text { text: "Now, please.".to_string(), max_length: None },
            priority: Priority::Critical,
            submitted_at: Instant::now(),
            deadline: Some(Instant::now() + Duration::from_millis(100)),
            metadata: Default::default(),
        })
        .await?;
    println!("request {}: {:.1?} of at most 100 ms", urgent.id, urgent.latency);

    let stats = service.get_stats().await;
    println!("{:.1} requests/s", stats.metrics_summary.throughput_rps);
    service.stop().await;
    Ok(())
}
