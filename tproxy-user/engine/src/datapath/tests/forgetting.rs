//! What was noted of flows is gone, as if much had been noted since.

use tproxy_common::{
    abi::{Decision, Memory, map},
    flow::Tuple,
};

use super::super::{Datapath, Pod};

impl Datapath {
    /// How many decisions it were.
    pub(crate) fn forget_decisions(&self) -> usize {
        self.forget::<Decision>(map::DECISIONS)
    }

    /// How many UDP flows it were: those that others evict.
    pub(crate) fn forget_datagrams(&self) -> usize {
        self.forget::<Memory>(map::MEMORY)
    }

    fn forget<V: Pod>(&self, name: &'static str) -> usize {
        let mut noted = self.share::<Tuple, V>(name).unwrap();
        let flows: Vec<Tuple> = noted.keys().map(Result::unwrap).collect();
        // What is evicted meanwhile is gone, too.
        flows.iter().for_each(|tuple| drop(noted.remove(tuple)));
        flows.len()
    }
}
