//! Answers `POST /echo` with the body it was sent, on the server's HTTP stack and nothing else.
//!
//! The benchmarks measure it beside the server: what it reaches is the most that any route on this
//! stack could reach, and a load generator that drives it faster than the server is not the bottleneck.
//!
//! `echo [WORKERS]`: `WORKERS` threads (default: the number of cores) on a free port of 127.0.0.1,
//! whose URL it prints.

use std::error::Error;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use tokio::net::TcpListener;

async fn echo(body: Bytes) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], body)
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("echo: http://{}", listener.local_addr()?);
    axum::serve(listener, Router::new().route("/echo", post(echo))).await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let workers = match std::env::args().nth(1) {
        Some(count) => count.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?
        .block_on(serve())
}
