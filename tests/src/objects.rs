//! What a process holds in the kernel's BPF subsystem, and whether it is still there.
//!
//! Objects are known by number, not by name: another lkst may run beside the test.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// Numbers of programs, maps and links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// What a process holds open, by `/proc/PID/fdinfo`.
    #[must_use]
    pub fn of_process(pid: u32) -> Objects {
        let mut found = Objects::default();
        let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .into_iter()
            .flatten()
            .flatten();
        for text in entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()) {
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|value| value.trim().parse::<u32>().ok())
            };
            // A link's own text names its program too.
            if let Some(link) = field("link_id:") {
                found.links.insert(link);
            } else if let Some(program) = field("prog_id:") {
                found.programs.insert(program);
            } else if let Some(map) = field("map_id:") {
                found.maps.insert(map);
            }
        }
        found
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Objects) -> Objects {
        Objects {
            programs: &self.programs - &other.programs,
            maps: &self.maps - &other.maps,
            links: &self.links - &other.links,
        }
    }

    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those that the kernel still has. It frees them a while after the last use, by workers that wait for grace
    /// periods, which takes seconds on a busy machine: so this waits, and gives up after a minute.
    #[must_use]
    pub fn left(&self) -> Objects {
        let left = || Objects {
            programs: there(BPF_PROG_GET_NEXT_ID, &self.programs),
            maps: there(BPF_MAP_GET_NEXT_ID, &self.maps),
            links: there(BPF_LINK_GET_NEXT_ID, &self.links),
        };
        for _ in 0..600 {
            if left().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        left()
    }
}

// enum bpf_cmd: include/uapi/linux/bpf.h.
const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_long = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;

/// Those of the numbers that the kernel has given to an object.
///
/// No object is opened: a map of programs that is opened by its number, and closed again, while the kernel is about to
/// empty it after its last use, is never freed (kernel/bpf/arraymap.c, `prog_array_map_clear`: it takes a reference for
/// work that is pending already). So a look by descriptors would make what it looks for.
fn there(command: libc::c_long, numbers: &BTreeSet<u32>) -> BTreeSet<u32> {
    let exists = |number: u32| {
        // union bpf_attr: start_id, next_id, open_flags.
        let mut attributes = [number.wrapping_sub(1), 0_u32, 0];
        // SAFETY: the kernel reads and writes these twelve bytes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                attributes.as_mut_ptr(),
                size_of_val(&attributes) as libc::c_uint,
            )
        };
        result == 0 && attributes[1] == number
    };
    numbers.iter().copied().filter(|number| exists(*number)).collect()
}
