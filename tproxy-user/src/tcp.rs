//! x
use crate::flow::{ClientAddr, OriginalDst};
/// x
pub struct RuleIndex(pub usize);
/// x
pub trait Decisions: Send {
    /// x
    fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<RuleIndex>;
}
