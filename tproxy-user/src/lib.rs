//! placeholder
pub mod config;
pub mod flow;
pub mod mark;
pub mod netns;
