//! The running kernel: what it can be asked for (tracefs, BTF, features).
pub mod arguments;
pub mod bpf_syscall;
pub mod btf;
pub mod btf_path;
pub mod features;
pub mod field;
pub mod format;
pub mod hz;
pub mod print_format;
pub mod schema;
pub mod syscall;
pub mod tracefs;
