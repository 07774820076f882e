//! Where texts become tokens: a few at once, and long ones where they hold up nobody.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::error::{ApiError, Code};
use crate::app::App;

/// Texts whose sum is shorter are tokenised where they are: less than a thread's hand-over costs.
const INLINE_BYTES: usize = 4096;

/// Does `work`, which tokenises `bytes` bytes of text; many on a thread that may block.
///
/// # Errors
/// When the tokenizer panics.
pub(super) async fn tokenising<T: Send + 'static>(
    app: &App,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes < INLINE_BYTES {
        return Ok(work());
    }
    // Bounded, because the pool also loads models and grows to hundreds of threads.
    // The work keeps its place, as it goes on where its client has left.
    let place = Arc::clone(&app.tokenising).acquire_owned().await;
    let done = spawn_blocking(move || {
        let _place = place;
        work()
    })
    .await;
    done.map_err(|panic| ApiError::new(Code::ModelFailed, format!("the tokenizer failed: {panic}")))
}
