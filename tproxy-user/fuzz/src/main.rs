//! libFuzzer with one of the targets, which the environment names.
#![no_main]

use std::sync::LazyLock;

use tproxy_fuzz::{Target, target};

/// The variable with its name.
const NAME: &str = "TPROXY_FUZZ";

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var(NAME).unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("{NAME}='{name}' names no target"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.read)(bytes));
