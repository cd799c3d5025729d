//! Traces: from the pages that the kernel filled to CTF on disk, and back to records.
//!
//! ```text
//! RawStream ─raw→ records in place ─seal→ folder { ctf/metadata, ctf/BUFFER_CPU …, incident.json } ─read→ RecordView
//!                                            └ metadata (layouts → TSDL)          └ tsdl (TSDL → layouts)
//! ```
//!
//! **Architecture invariant:** where a byte lies is asked of [`lkst_probes::layout`] and nowhere else, so the kernel's
//! writer, the CTF metadata and the readers cannot disagree.

mod cursor;
pub mod decode;
pub mod escape;
pub mod filter;
pub mod incident;
mod merge;
pub mod metadata;
pub mod names;
pub mod piece;
pub mod raw;
pub mod read;
pub mod saved;
pub mod seal;
pub mod stream;
pub mod tsdl;
pub mod whole;
