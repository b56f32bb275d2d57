//! Packets that come in by an interface although nobody sent them, marked as its hook would have done.

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use tproxy_common::abi::program;

use super::{
    Datapath, DatapathError,
    attach::require_loaded,
    test_run::{CONTEXT_SIZE, field},
};

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
        let mut context = [0; field::IFINDEX + 4];
        for (at, value) in [(field::MARK, self.settings.mark.steer()), (field::IFINDEX, ifindex)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut context_after = [0; CONTEXT_SIZE];
        let mut packet = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut packet),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_after),
            ..TestRunOptions::default()
        };
        let program: Result<&SchedClassifier, _> = self
            .ebpf
            .program(NAME)
            .unwrap_or_else(|| panic!("the object lacks its own program {NAME}"))
            .try_into();
        let ran = program
            .and_then(|program| program.test_run(options))
            .map_err(|source| DatapathError::Program { name: NAME, source })?;
        if ran.return_value == NEXT { Ok(()) } else { Err(DatapathError::NotInjected) }
    }
}
