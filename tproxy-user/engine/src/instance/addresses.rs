//! What becomes of flows whose local address is the host's no more: a line was dialled anew, a lease ended, IPv6 was switched
//! off. Connections end, since nothing can go on from another address; UDP sessions do go on from another.

use std::{collections::BTreeSet, net::IpAddr};

use super::Instance;
use crate::host::{HostError, lingering, links};

/// The host's own addresses, over time.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    now: BTreeSet<IpAddr>,
    /// Those that were its own, and are not.
    gone: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Takes down what there is now, and says what there was a moment ago.
    fn take(&mut self, now: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let just_gone: BTreeSet<_> = self.now.difference(&now).copied().collect();
        self.gone.extend(&just_gone);
        self.gone.retain(|address| !now.contains(address));
        self.now = now;
        just_gone
    }
}

impl Instance {
    /// Has flows end, or go on from another address, whose address is gone.
    pub(super) fn look_for_addresses(&mut self) -> Result<(), HostError> {
        let now = links::addresses()?;
        if now == self.addresses.now {
            return Ok(());
        }
        let just_gone = self.addresses.take(now);
        // Also of those that have come: what went on from another address may have a better one now.
        self.routing.set_gone(self.addresses.gone.clone());
        if just_gone.is_empty() {
            return Ok(());
        }
        let aborted = lingering::abort(self.config.mark, &just_gone);
        let addresses: Vec<_> = just_gone.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(" ");
        match aborted {
            Ok(0) => tracing::debug!(addresses, "addresses are gone"),
            Ok(sockets) => tracing::warn!(
                addresses,
                sockets,
                "addresses are gone, and connections that had them are reset"
            ),
            // It would be no better the next time.
            Err(error @ (HostError::CannotAbort { .. } | HostError::NoSockDiag)) => {
                tracing::warn!(addresses, "{error}")
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn what_comes_back_is_not_gone() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.take(set(&["10.0.0.1", "fd00::1"])), set(&[]));
        assert_eq!(addresses.take(set(&["fd00::1"])), set(&["10.0.0.1"]));
        assert_eq!(addresses.take(set(&["fd00::1", "10.0.0.2"])), set(&[]), "that it is gone is told once");
        assert_eq!(addresses.gone, set(&["10.0.0.1"]));
        addresses.take(set(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(addresses.gone, set(&["fd00::1"]));
    }
}
