//! Values of flags; every error says what would be right.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;

use crate::config::Action;

pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Ok(addr.into());
    }
    let net: IpNet = text.parse().map_err(|_| {
        "write an address or a prefix, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32".to_owned()
    })?;
    if net != net.trunc() {
        return Err(format!("the address has bits beyond its prefix; did you mean {}?", net.trunc()));
    }
    Ok(net)
}

pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.trim().parse() {
        Ok(0) | Err(_) => Err("write ports from 1 to 65535 and ranges, such as 80,443,8000-8999".to_owned()),
        Ok(port) => Ok(port),
    };
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(format!("the range is empty; did you mean {last}-{first}?"));
            }
            Ok(first..=last)
        }
    }
}

pub(super) fn action(text: &str) -> Result<Action, String> {
    match text.split_once('=') {
        Some(("upstream", addr)) => match addr.parse::<std::net::SocketAddr>() {
            Ok(addr) if addr.port() != 0 && !addr.ip().is_unspecified() => Ok(Action::Upstream(addr)),
            _ => {
                Err("write upstream=ADDR:PORT, such as upstream=10.9.9.9:8443 or upstream=[2001:db8::1]:8443"
                    .to_owned())
            }
        },
        Some(("respond", answer)) => Ok(Action::Respond(answer.into())),
        _ => match text {
            "direct" => Ok(Action::Direct),
            "reject" => Ok(Action::Reject),
            "drop" => Ok(Action::Drop),
            "pass" => Ok(Action::Pass),
            _ => Err("write direct, upstream=ADDR:PORT, respond=TEXT, reject, drop or pass".to_owned()),
        },
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("write a time with its unit, such as 500ms, 10s or 2h".to_owned()),
    }
}
