//! placeholder
pub mod cli;
pub mod config;
pub mod datapath;
pub mod flow;
pub mod host;
pub mod logging;
pub mod mark;
pub mod plan;
pub mod policy;
pub mod tcp;
