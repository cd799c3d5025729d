//! Plans → eBPF programs and map contents.
//!
//! ```text
//! Plan ─image→ sections ─lower→ asm → Code ─→ what the kernel loads
//!        └──── layout: every offset ────┘
//! ```
//!
//! **Architecture invariant:** no system calls. An image is a function of its plans and of what the kernel can do.
#![forbid(unsafe_code)]

pub mod arena;
pub mod asm;
pub mod catalogue;
pub mod disasm;
pub mod features;
pub mod image;
mod kinds;
pub mod layout;
pub mod lower;
pub mod numbers;
mod parts;
mod records;
