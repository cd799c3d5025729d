//! The one place that asks the kernel, by the bare `bpf` system call, whether it would take a program.
//!
//! In: instructions, a type of program. Out: a descriptor of the loaded program, or the kernel's refusal with the
//! verifier's words. Nothing is attached here; what was loaded goes with its descriptor.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// One instruction, as the kernel takes it.
pub type Instruction = u64;

/// `BPF_PROG_TYPE_…` and what else says of which type a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramType {
    /// `BPF_PROG_TYPE_TRACEPOINT`: a classic one.
    Tracepoint,
    /// `BPF_PROG_TYPE_TRACING` with `BPF_TRACE_RAW_TP`, for the tracepoint of this `btf_trace_…` typedef.
    RawTracepointBtf(u32),
}

/// The kernel's refusal.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}{log}", if log.is_empty() { "" } else { ": " })]
pub struct Refused {
    /// Its error number.
    pub error: io::Error,
    /// The verifier's words, if it came to that.
    pub log: String,
}

/// An instruction of its parts: `struct bpf_insn` of include/uapi/linux/bpf.h.
#[must_use]
pub const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    (code as u64)
        | (destination as u64) << 8
        | (source as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const LICENSE: &CStr = c"GPL";

/// The part of `union bpf_attr` that loading a program needs, up to the last member that is set.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    padding: u32,
}

/// The part of `union bpf_attr` that making a link needs.
#[repr(C)]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: i32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// Loads a program, which nothing runs before it is attached.
///
/// # Errors
/// [`Refused`].
pub fn load(kind: ProgramType, program: &[Instruction]) -> Result<OwnedFd, Refused> {
    let (prog_type, expected_attach_type, attach_btf_id) = match kind {
        ProgramType::Tracepoint => (5, 0, 0),
        ProgramType::RawTracepointBtf(id) => (26, 23, id),
    };
    let mut log = vec![0u8; 1 << 16];
    let mut attributes = LoadAttributes {
        prog_type,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        expected_attach_type,
        attach_btf_id,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes are those of PROG_LOAD and as long as said; the addresses in them are of `program`, which
    // has `insn_cnt` instructions, of a text with a NUL and of `log`, which has `log_size` bytes; all three live on.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw mut attributes,
            size_of::<LoadAttributes>(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        let text =
            CStr::from_bytes_until_nul(&log).map_or_else(|_| String::new(), |t| t.to_string_lossy().into());
        return Err(Refused {
            error,
            log: text.trim().to_owned(),
        });
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Asks for a link of a program to no perf event at all. It never succeeds; the error says whether links of that kind
/// are known.
#[must_use]
pub fn link_to_nothing(program: &OwnedFd) -> io::Error {
    const PERF_EVENT: u32 = 41;
    let mut attributes = LinkAttributes {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: -1,
        attach_type: PERF_EVENT,
        flags: 0,
        cookie: 0,
    };
    // SAFETY: the attributes are those of LINK_CREATE and as long as said; they hold no address.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            LINK_CREATE,
            &raw mut attributes,
            size_of::<LinkAttributes>(),
        )
    };
    if result < 0 {
        io::Error::last_os_error()
    } else {
        io::ErrorKind::Other.into()
    }
}
