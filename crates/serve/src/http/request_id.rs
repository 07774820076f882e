//! The name of a request in its reply and in log lines.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use axum::http::HeaderMap;

/// The client's own `X-Request-Id` where it is sane, else a new one.
#[derive(Debug, Clone)]
pub struct RequestId(Arc<str>);

/// Longer ones of clients are not echoed.
const LONGEST: usize = 128;

impl RequestId {
    /// The id of a request with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        headers
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .filter(|id| {
                !id.is_empty() && id.len() <= LONGEST && id.bytes().all(|byte| byte.is_ascii_graphic())
            })
            .map_or_else(Self::new, |id| Self(id.into()))
    }

    /// Unique in this process, and among processes by the seed of the standard library's hash maps.
    pub(super) fn new() -> Self {
        static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("request id"));
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // An odd factor is a bijection of u64: ids differ as long as the counter does.
        let id = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ *SEED;
        Self(format!("{id:016x}").into())
    }

    /// As text that is shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
