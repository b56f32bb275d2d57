//! The documentation keeps its promises: links lead somewhere, and the README stays short.

mod links;
mod page;
