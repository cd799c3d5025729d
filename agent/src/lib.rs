//! The agent and command `lkst`: rules in, kernel programs loaded and attached, traces out.

pub mod command;
pub mod kernel;
pub mod trace;
