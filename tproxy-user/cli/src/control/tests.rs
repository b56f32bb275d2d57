//! The control socket with an instance behind it that always answers the same.

mod limits;
mod protocol;
mod rig;
