//! What every request passes before it is read: the name it was sent to, and its key. It must never read a body.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::ApiKey;
use crate::error::ApiError;
use crate::routes::Shared;

/// Refuses a name that is not this machine's, where only this machine may ask: a page can have its own name resolve to 127.0.0.1,
/// and the browser then takes our answers for the page's own. Names every answer, too.
pub(crate) async fn host(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = if shared.loopback && !is_local(request.headers(), &shared.config.hosts) {
        let message = "This server answers to localhost only: name further hosts in its configuration.";
        ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message).into_response()
    } else {
        next.run(request).await
    };
    let id = format!("req_{:016x}", rand::random::<u64>());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// Refuses whoever has no key, where keys are needed. `/health` is for watchers that have none.
pub(crate) async fn key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let keys = &shared.config.keys;
    if keys.is_empty() || request.uri().path() == "/health" {
        return next.run(request).await;
    }
    let message = match bearer(request.headers()) {
        Some(sent) if ApiKey::any_is(keys, sent) => return next.run(request).await,
        Some(_) => "Incorrect API key provided.",
        None => "No API key provided: send it as \"Authorization: Bearer KEY\".",
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Without the header it is no browser.
fn is_local(headers: &HeaderMap, hosts: &[String]) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    // The port is after the last colon, unless that is within an address in brackets.
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        let check = |host: &str, local: bool| {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).unwrap())]);
            assert_eq!(is_local(&headers, &["proxy.lan".to_owned()]), local, "{host}");
        };
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:80", "a.localhost:9", "proxy.lan:443", "localhost."]
        {
            check(host, true);
        }
        for host in ["example.org", "localhost.example.org", "127.0.0.1.nip.io", "10.0.0.1", "", ":80", "[::2]:80", "notlocalhost"] {
            check(host, false);
        }
        assert!(is_local(&HeaderMap::new(), &[]));
    }

    #[test]
    fn only_bearer_keys_are_read() {
        let check = |value: &str, key: Option<&str>| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
            assert_eq!(bearer(&headers), key, "{value}");
        };
        check("Bearer abc", Some("abc"));
        check("bearer abc ", Some("abc"));
        check("Basic abc", None);
        check("abc", None);
    }
}
