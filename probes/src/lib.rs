//! Plans → eBPF programs and map contents.
pub mod layout;
