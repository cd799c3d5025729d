//! The running kernel: what it has (tracefs, BTF, features), and our programs and rings in it.
pub mod adopt;
pub mod arguments;
pub mod bpf_syscall;
pub mod btf;
pub mod btf_path;
mod btf_write;
pub mod costs;
pub mod features;
pub mod field;
pub mod format;
pub mod generation;
pub mod hz;
pub mod link;
pub mod load;
pub mod loaded;
pub mod memory;
pub mod names;
pub mod pins;
pub mod print_format;
pub mod restricted;
pub mod ring;
pub mod schema;
mod stage;
pub mod syscall;
pub mod tracefs;

/// One more than the highest CPU number that can ever appear: what rings and counters are made for.
///
/// # Errors
/// Where `/sys/devices/system/cpu/possible` cannot be read or understood.
pub fn cpus() -> std::io::Result<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().unwrap_or_default();
    last.parse::<u32>()
        .map(|last| last + 1)
        .map_err(std::io::Error::other)
}
