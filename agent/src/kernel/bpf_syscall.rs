//! The one place that gives programs to the kernel, by the bare `bpf` system call.
//!
//! In: instructions, a type of program, a name. Out: a descriptor of the loaded program, or the kernel's refusal with the
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

/// The functions of a program, where it has others than the main one.
#[derive(Debug)]
pub struct Functions {
    /// Their types, which [`load_types`] has loaded.
    pub types: OwnedFd,
    /// For each, where it begins and its type; first the main one: `struct bpf_func_info`.
    pub info: Vec<[u32; 2]>,
}

const PROG_LOAD: libc::c_long = 5;
const BTF_LOAD: libc::c_long = 18;
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

/// The part of `union bpf_attr` that loading types needs.
#[repr(C)]
struct TypesAttributes {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
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

/// How often the verifier may be interrupted by a signal before that is an error.
const TRIES: usize = 10;
/// How long the verifier's words may be, from one try to the next; of kernels before 6.4 it is the beginning that is
/// kept, of later ones the end.
const LOG_BYTES: [usize; 3] = [64 << 10, 1 << 20, 16 << 20];

impl Refused {
    /// Whether the verifier refuses the program for what it does, not for its size.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        !self.log.is_empty() && self.error.raw_os_error() != Some(libc::E2BIG)
    }
}

/// Loads a program, which nothing runs before it is attached. The kernel's lists show 15 bytes of its name, which has
/// letters, digits and underscores.
///
/// # Errors
/// [`Refused`].
pub fn load(
    kind: ProgramType,
    program: &[Instruction],
    functions: Option<&Functions>,
    name: &str,
) -> Result<OwnedFd, Refused> {
    let try_load = |log: &mut [u8]| try_load(kind, program, functions, name, log);
    // A good program is not told of, which is most of what a verifier's time goes into.
    let mut refused = match try_load(&mut []) {
        Ok(loaded) => return Ok(loaded),
        Err(error) => Refused {
            error,
            log: String::new(),
        },
    };
    for bytes in LOG_BYTES {
        let mut log = vec![0; bytes];
        match try_load(&mut log) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => {
                let text = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy);
                refused.log = text.unwrap_or_default().trim().to_owned();
                // No room for all of its words: they are not the reason.
                if error.raw_os_error() != Some(libc::ENOSPC) {
                    refused.error = error;
                    break;
                }
            }
        }
    }
    Err(refused)
}

/// Loads the types of a program's functions: BTF.
///
/// # Errors
/// What the kernel says.
pub fn load_types(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = TypesAttributes {
        btf: btf.as_ptr() as u64,
        btf_log_buf: 0,
        btf_size: btf.len() as u32,
        btf_log_size: 0,
    };
    // SAFETY: the attributes are those of BTF_LOAD; the address in them is of `btf`, which has so many bytes and lives on.
    unsafe { bpf(BTF_LOAD, &mut attributes) }
}

/// Calls bpf(2) for a descriptor.
///
/// # Safety
/// The attributes are those of the command, and each address in them is of as much memory as they say, which lives on.
unsafe fn bpf<Attributes>(command: libc::c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's word; the attributes are as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut *attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn try_load(
    kind: ProgramType,
    program: &[Instruction],
    functions: Option<&Functions>,
    name: &str,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let (prog_type, expected_attach_type, attach_btf_id) = match kind {
        ProgramType::Tracepoint => (5, 0, 0),
        ProgramType::RawTracepointBtf(id) => (26, 23, id),
    };
    let mut prog_name = [0; 16];
    // The last byte stays the NUL.
    for (place, byte) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    let mut attributes = LoadAttributes {
        prog_type,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: match log.is_empty() {
            true => 0,
            false => log.as_mut_ptr() as u64,
        },
        prog_name,
        expected_attach_type,
        attach_btf_id,
        ..LoadAttributes::default()
    };
    if let Some(Functions { types, info }) = functions {
        attributes.prog_btf_fd = types.as_raw_fd().cast_unsigned();
        attributes.func_info_rec_size = size_of::<[u32; 2]>() as u32;
        attributes.func_info = info.as_ptr() as u64;
        attributes.func_info_cnt = info.len() as u32;
    }
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: the attributes are those of PROG_LOAD and as long as said; the addresses in them are of `program`,
        // which has `insn_cnt` instructions, of a text with a NUL, of `info`, which has `func_info_cnt` records of that
        // size, or none, and of `log`, which has `log_size` bytes, or none; all live on.
        let error = match unsafe { bpf(PROG_LOAD, &mut attributes) } {
            Ok(loaded) => return Ok(loaded),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::EAGAIN) || tries == TRIES {
            return Err(error);
        }
    }
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
    let link = unsafe { bpf(LINK_CREATE, &mut attributes) };
    link.err().unwrap_or_else(|| io::ErrorKind::Other.into())
}
