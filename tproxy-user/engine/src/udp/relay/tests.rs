//! A relay by itself: what it has others do is done by a [`rig`] that has no sockets, only knows which there would be.

mod answers;
mod beginnings;
mod endings;
mod endpoints;
mod model;
mod own;
mod rig;
