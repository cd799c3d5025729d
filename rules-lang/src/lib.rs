//! The lkst rule language: text → [`plan::Plan`].
//!
//! ```text
//! source ─parse→ ast ─resolve→ plan ─eval→ values (the reference the kernel must agree with)
//!                  └── schema: what the kernel has ──┘
//! ```
//!
//! **Architecture invariant:** no I/O, no clock, no kernel. Everything a stage needs is in its arguments, so the same
//! text and the same schema always give the same plan.
#![forbid(unsafe_code)]

pub mod ast;
mod check;
pub mod codes;
mod compile;
pub mod diagnostic;
pub mod eval;
mod hot;
pub mod nearest;
pub mod parse;
pub mod plan;
mod plan_print;
pub mod print;
mod resolve;
pub mod schema;
pub mod source;
pub mod symbols;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use compile::{ConditionError, Options, Pack, compile, compile_condition};
