//! The agent and command `lkst`: rules in, kernel programs loaded and attached, traces out.

pub mod accounts;
pub mod cli;
pub mod command;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod guard;
pub mod kernel;
pub mod metrics;
pub mod pack;
pub mod reload;
pub mod rules_dir;
pub mod session;
pub mod status;
pub mod store;
pub mod trace;
pub mod trust;
pub mod watch;
