//! Every promise of `tproxy`, on the real kernel path: client – gateway – server namespaces, real programs.
//! Needs root, and fails without. `scenarios forwarded::` runs the tests of one module.

mod rig;
mod support;
