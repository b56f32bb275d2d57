//! A request to the control socket: a method, a path and a query, each in a line. It is understood, or refused in one line.

use hyper::Method;
use tproxy_cli::control::understand;

pub(crate) fn read(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let (Some(method), Some(path), Some(query)) = (lines.next(), lines.next(), lines.next()) else { return };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    if let Err(refusal) = understand(&method, path, query) {
        assert!(refusal.status.is_client_error(), "{refusal:?}");
        assert!(!refusal.error.is_empty(), "{refusal:?}");
    }
}
