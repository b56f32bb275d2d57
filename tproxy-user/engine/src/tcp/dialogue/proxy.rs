//! The PROXY protocol's header (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>), which tells a server whose
//! the connection is, and where it was going.

use ppp::{v1, v2};

use super::Told;

/// Version 1, a line of text.
pub(super) fn v1(told: &Told) -> Vec<u8> {
    v1::Addresses::from((told.client.0, told.dst.0)).to_string().into_bytes()
}

/// Version 2, in binary, with the number that `tproxy flows` shows.
pub(super) fn v2(told: &Told) -> Vec<u8> {
    let header = v2::Builder::with_addresses(
        v2::Version::Two | v2::Command::Proxy,
        v2::Protocol::Stream,
        (told.client.0, told.dst.0),
    );
    let with_id = header.write_tlv(v2::Type::UniqueId, told.id.to_string().as_bytes());
    with_id.and_then(v2::Builder::build).expect("it is shorter than 64 KiB")
}

/// That the connection is nobody's.
pub(super) fn v1_of_nothing() -> Vec<u8> {
    v1::Addresses::Unknown.to_string().into_bytes()
}

/// That the connection is our own.
pub(super) fn v2_of_nothing() -> Vec<u8> {
    let header = v2::Builder::with_addresses(
        v2::Version::Two | v2::Command::Local,
        v2::Protocol::Unspecified,
        v2::Addresses::Unspecified,
    );
    header.build().expect("it is shorter than 64 KiB")
}
