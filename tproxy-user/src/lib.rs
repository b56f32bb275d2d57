//! placeholder
pub mod config;
pub mod flow;
pub mod host;
pub mod mark;
pub mod policy;
