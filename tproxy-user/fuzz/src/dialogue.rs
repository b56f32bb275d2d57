//! What a proxy answers; the first byte says of which kind it is. It is heard in the same way whatever pieces it comes in, and
//! never as longer than it is.

use tproxy::{config::Scheme, tcp::rehearse};

pub(crate) fn read(bytes: &[u8]) {
    let Some((kind, words)) = bytes.split_first() else { return };
    let scheme = if kind % 2 == 0 { Scheme::Socks5 } else { Scheme::Http };
    let dst = if kind % 4 < 2 { "192.0.2.7:443" } else { "[2001:db8::7]:443" };
    let rehearse = |step| rehearse(scheme, dst.parse().expect("an address"), words, step);
    let whole = rehearse(usize::MAX);
    assert!(whole.is_err() || whole.is_ok_and(|heard| heard <= words.len()));
    for step in [1, 3] {
        assert_eq!(rehearse(step), whole, "{step} bytes at a time");
    }
}
