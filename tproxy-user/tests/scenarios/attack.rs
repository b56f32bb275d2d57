//! Programs that try to get by, at their smallest. `cargo xtask attack` runs them for longer.

mod evade;
mod forms;
mod packets;
mod server;
mod wire;

/// As many as the environment says: `cargo xtask attack` asks for more than a test run has the time for.
fn times(usual: u32) -> u32 {
    const VARIABLE: &str = "TPROXY_ATTACK_TIMES";
    let factor = std::env::var(VARIABLE).map_or(1, |text| {
        text.parse().unwrap_or_else(|error| panic!("{VARIABLE}='{text}' is no number: {error}"))
    });
    usual.saturating_mul(factor)
}
