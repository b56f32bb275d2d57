//! Packets that come in by an interface although nobody sent them, marked as its hook would have done.

use tproxy_common::abi::program;

use super::{Datapath, DatapathError, attach::require_loaded, test_run::field};

impl Datapath {
    /// Has a frame come in by the interface with this index, with the steer mark. It begins with an Ethernet header, which is
    /// taken off where the interface has none. The calling thread is in the interface's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn inject(&mut self, ifindex: u32, frame: &[u8]) -> Result<(), DatapathError> {
        const NEXT: u32 = -1_i32 as u32;
        const NAME: &str = program::INJECT;
        require_loaded(&mut self.ebpf, NAME, &self.given_up)?;
        let fields = [(field::MARK, self.settings.mark.steer()), (field::IFINDEX, ifindex)];
        let (ran, _) = self.run_once(NAME, frame, &fields, &mut vec![0; frame.len()])?;
        if ran.return_value == NEXT { Ok(()) } else { Err(DatapathError::NotInjected) }
    }
}
