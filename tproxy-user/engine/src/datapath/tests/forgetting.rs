//! What was decided is gone, as if much had been decided since.

use tproxy_common::{
    abi::{Decision, map},
    flow::Tuple,
};

use super::super::Datapath;

impl Datapath {
    /// How many decisions it were.
    pub(crate) fn forget_decisions(&self) -> usize {
        let mut decisions = self.share::<Tuple, Decision>(map::DECISIONS).unwrap();
        let decided: Vec<Tuple> = decisions.keys().map(Result::unwrap).collect();
        decided.iter().for_each(|tuple| decisions.remove(tuple).unwrap());
        decided.len()
    }
}
