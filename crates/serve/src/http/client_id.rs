//! Whom a request came from, for fair sharing.

use std::hash::{BuildHasher, RandomState};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use trustformers_batching::ClientId;

/// Turns the names of clients into numbers.
#[derive(Debug, Default)]
pub struct Clients {
    /// Seeded anew for each server: an event log tells nothing of an API key, and nobody can find a name
    /// that counts as another's.
    hasher: RandomState,
}

impl Clients {
    /// The client that `headers` name: `X-Client-Id`, or the bearer token, or `X-API-Key`. Those that name
    /// none are one client together.
    pub fn of(&self, headers: &HeaderMap) -> ClientId {
        let header = |name: &str| headers.get(name).map(|value| value.as_bytes());
        let token = || bearer(headers.get(AUTHORIZATION)?.as_bytes());
        let name = header("x-client-id").or_else(token).or_else(|| header("x-api-key"));
        // 0 is for those without a name.
        name.filter(|name| !name.is_empty())
            .map_or(ClientId::default(), |name| ClientId(self.hasher.hash_one(name).max(1)))
    }
}

fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn client(clients: &Clients, headers: &[(&'static str, &'static str)]) -> ClientId {
        let pair = |&(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        clients.of(&headers.iter().map(pair).collect())
    }

    #[test]
    fn a_name_is_found_in_each_of_three_headers() {
        let clients = Clients::default();
        let a = client(&clients, &[("x-client-id", "a")]);
        assert_ne!(a, ClientId(0));
        for same in [
            &[("authorization", "Bearer a")][..],
            &[("authorization", "bearer  a ")],
            &[("x-api-key", "a")],
            &[("x-client-id", "a"), ("authorization", "Bearer b"), ("x-api-key", "c")],
            &[("authorization", "Bearer a"), ("x-api-key", "c")],
        ] {
            assert_eq!(client(&clients, same), a, "{same:?}");
        }
        assert_ne!(client(&clients, &[("x-client-id", "b")]), a);
        assert_ne!(client(&Clients::default(), &[("x-client-id", "a")]), a, "each server has its own seed");
    }

    #[test]
    fn those_without_a_name_are_one_client() {
        let clients = Clients::default();
        for nameless in [
            &[][..],
            &[("x-client-id", "")],
            &[("authorization", "Basic YTpi")],
            &[("authorization", "Bearer ")],
            &[("authorization", "x")],
        ] {
            assert_eq!(client(&clients, nameless), ClientId(0), "{nameless:?}");
        }
    }
}
