//! One file a subcommand; each is a function of what it needs, free of how options are written.

pub mod event;
pub mod events;
pub mod show;
