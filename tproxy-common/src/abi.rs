//! The maps: their names, keys and values. Sizes are asserted, since the kernel compares bytes.

mod arrivals;
mod connections;
mod control;
mod datagrams;
mod names;
mod tables;
mod workers;

pub use arrivals::*;
pub use connections::*;
pub use control::*;
pub use datagrams::*;
pub use names::*;
pub use tables::*;
pub use workers::*;

use crate::{flow::Tuple, rule::RuleSet};

const _: () = {
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<Origin>() == 16);
    assert!(size_of::<Decision>() == 32);
    assert!(size_of::<HeldSyn>() == 328);
    assert!(size_of::<Destination>() == 20);
    assert!(size_of::<Finding>() == 72);
    assert!(size_of::<Entered>() == 88);
    assert!(size_of::<Memory>() == 40);
    assert!(size_of::<TranslationKey>() == 40);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Told>() == 72);
    assert!(size_of::<SlotAddr>() == 20);
    assert!(size_of::<SlotKey>() == 8);
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<Control>() == 36);
    assert!(size_of::<RuleSet>() == 520);
    assert!(size_of::<PortBits>() == 8192);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        CgroupKey, Control, Decision, Destination, FragmentKey, Memory, Others, PortBits, RuleSet, SlotAddr,
        SlotKey, Told, Tuple,
    };
    use crate::addr::Addr;

    macro_rules! pod {
        ($($type:ty)*) => {$(
            // SAFETY: `repr(C)`, built of integers and byte arrays only, and the sizes asserted above leave no padding.
            unsafe impl aya::Pod for $type {}
        )*};
    }

    pod! { Addr CgroupKey Control Decision Destination FragmentKey Memory Others PortBits RuleSet SlotAddr SlotKey Told Tuple }
}
