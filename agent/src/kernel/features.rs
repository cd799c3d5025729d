//! What this kernel and these privileges allow, found by trying, never by version.
//!
//! In: nothing. Out: [`Features`], or every [`Missing`] thing that lkst cannot do without, each with what to do
//! about it: what the command prints before it ends with exit code 3.
//!
//! INVARIANT: trying leaves nothing behind: programs are loaded, never attached, and gone with their descriptors.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use lkst_probes::asm::{Asm, Helper, MapRef, Reg, Signature};
use lkst_probes::image::{Attach, MapImage, MapKind};

use super::bpf_syscall::{self, Instruction, ProgramType, Refused, instruction};
use super::btf::{Btf, Kind};
use super::load::{load_code, make_map};
use super::schema::BTF_PATH;

/// Something that lkst needs and does not have here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What, as one would name it to an administrator.
    pub what: String,
    /// How we know, or what it is needed for.
    pub why: String,
    /// What to do about it.
    pub mend: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.mend)
    }
}

impl Missing {
    fn new(what: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Missing {
        Missing {
            what: what.into(),
            why: why.into(),
            mend: mend.into(),
        }
    }
}

/// What may be there or not, where lkst can do with both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// BTF: typed events, `args.`. Without it every event is classic.
    pub btf: bool,
    /// `bpf_preempt_disable`, which is needed where tracepoints run preemptibly.
    pub preempt_disable: bool,
    /// bpffs is mounted at the usual place.
    pub bpffs_mounted: bool,
}

/// Tries everything that lkst needs.
///
/// # Errors
/// All that is missing, not only the first.
pub fn probe() -> Result<Features, Vec<Missing>> {
    let mut missing = Vec::new();
    missing.extend(architecture());
    missing.extend(capabilities());
    missing.extend(lockdown());
    missing.extend(realtime(
        &fs::read_to_string("/sys/kernel/realtime").unwrap_or_default(),
        &rustix::system::uname().version().to_string_lossy(),
    ));
    let btf = fs::read(BTF_PATH).ok().and_then(|bytes| Btf::parse(bytes).ok());
    if btf.is_none() {
        missing.push(Missing::new(
            "BTF",
            format!("{BTF_PATH} cannot be read, so the kernel does not describe its types"),
            "use a kernel that was built with CONFIG_DEBUG_INFO_BTF=y, as those of all large distributions are",
        ));
    }
    missing.extend(bpffs_supported());
    // Without capabilities every trial fails, which would say nothing of the kernel.
    if missing.is_empty() {
        missing.extend(try_programs(btf.as_ref()));
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    Ok(Features {
        btf: btf.is_some(),
        preempt_disable: btf.is_some_and(|btf| btf.find(Kind::Func, "bpf_preempt_disable").is_some()),
        bpffs_mounted: is_bpffs(Path::new("/sys/fs/bpf")),
    })
}

fn architecture() -> Option<Missing> {
    // Where a system call's arguments lie, and in which order a record's stores are seen, is known for x86-64 alone.
    let supported = cfg!(target_arch = "x86_64");
    (!supported).then(|| {
        Missing::new(
            format!("the architecture {}", std::env::consts::ARCH),
            "lkst knows the calling convention of x86-64 alone",
            "run it on an x86-64 machine",
        )
    })
}

/// The numbers of include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn capabilities() -> Vec<Missing> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_capabilities(&status)
}

fn missing_capabilities(status: &str) -> Vec<Missing> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 != 0;
    if has(CAP_SYS_ADMIN) {
        // It includes the other two.
        return Vec::new();
    }
    let needed = [
        (CAP_BPF, "CAP_BPF", "loads the programs"),
        (
            CAP_PERFMON,
            "CAP_PERFMON",
            "lets them read kernel memory and attaches them to tracepoints",
        ),
    ];
    needed
        .into_iter()
        .filter(|(capability, ..)| !has(*capability))
        .map(|(_, name, use_of)| {
            Missing::new(
                name,
                format!("this process does not have it, and it {use_of}"),
                format!("run lkst as root, or grant it (systemd: `AmbientCapabilities={name}`)"),
            )
        })
        .collect()
}

fn lockdown() -> Option<Missing> {
    let state = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    state.contains("[confidentiality]").then(|| {
        Missing::new(
            "reading kernel memory",
            "kernel lockdown is in its confidentiality mode",
            "boot without `lockdown=confidentiality`",
        )
    })
}

/// With PREEMPT_RT tracepoints run preemptibly, and two writers of one ring on a CPU would no longer be last in, first
/// out. `/sys/kernel/realtime` is there on patched kernels, the version (`uname -v`) says it on all.
fn realtime(flag: &str, version: &str) -> Option<Missing> {
    (flag.trim() == "1" || version.contains("PREEMPT_RT")).then(|| {
        Missing::new(
            "a kernel without PREEMPT_RT",
            "here tracepoints are preemptible, and records in a ring could overlap",
            "use a kernel with another preemption model",
        )
    })
}

fn bpffs_supported() -> Option<Missing> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"));
    (!known).then(|| {
        Missing::new(
            "bpffs",
            "the kernel does not have this filesystem",
            "use a kernel with CONFIG_BPF_SYSCALL=y",
        )
    })
}

/// True where a bpffs is mounted there.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    const BPF_FS_MAGIC: u64 = 0xCAFE_4A11;
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u64 == BPF_FS_MAGIC)
}

/// `r0 = 0; exit`
const RETURN_0: [Instruction; 2] = [instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)];

/// A compare-and-exchange of 64 bits on the stack.
const COMPARE_AND_EXCHANGE: [Instruction; 6] = [
    instruction(0x7a, 10, 0, -8, 0),    // *(u64 *)(r10 - 8) = 0
    instruction(0xb7, 0, 0, 0, 0),      // r0 = 0, what is expected
    instruction(0xb7, 1, 0, 0, 1),      // r1 = 1, what is stored
    instruction(0xdb, 10, 1, -8, 0xf1), // r0 = cmpxchg_64(r10 - 8, r0, r1)
    instruction(0xb7, 0, 0, 0, 0),      // r0 = 0
    instruction(0x95, 0, 0, 0, 0),      // exit
];

/// `call helper; r0 = 0; exit`
const fn call(helper: i32) -> [Instruction; 3] {
    let [zero, exit] = RETURN_0;
    [instruction(0x85, 0, 0, 0, helper), zero, exit]
}

const KTIME_GET_BOOT_NS: i32 = 125;
const GET_CURRENT_TASK_BTF: i32 = 158;

/// The name of programs that are loaded to see whether they can be.
const TRIAL: &str = "lkst_trial";

fn try_programs(btf: Option<&Btf>) -> Vec<Missing> {
    let newer = "use Linux 5.15 or later";
    let plain = match bpf_syscall::load(ProgramType::Tracepoint, &RETURN_0, None, TRIAL) {
        Ok(program) => program,
        Err(refused) => return vec![no_bpf_at_all(&refused)],
    };
    let mut missing = Vec::new();
    missing.extend(functions());
    // EBADF: the kind of link is known and looks for its perf event. EINVAL: it is not known.
    if bpf_syscall::link_to_nothing(&plain).raw_os_error() == Some(libc::EINVAL) {
        missing.push(Missing::new(
            "links of tracepoint programs",
            "the kernel does not know them (5.15 does)",
            newer,
        ));
    }
    let mut try_one = |kind, program: &[Instruction], what: &str| {
        if let Err(refused) = bpf_syscall::load(kind, program, None, TRIAL) {
            missing.push(Missing::new(
                what,
                format!("the kernel refuses it: {}", refused.error),
                newer,
            ));
        }
    };
    try_one(
        ProgramType::Tracepoint,
        &COMPARE_AND_EXCHANGE,
        "atomic compare-and-exchange in BPF",
    );
    try_one(
        ProgramType::Tracepoint,
        &call(KTIME_GET_BOOT_NS),
        "the boot clock in BPF",
    );
    if let Some(typedef) = btf.and_then(|btf| btf.find(Kind::Typedef, "btf_trace_sys_enter")) {
        let kind = ProgramType::RawTracepointBtf(typedef.id);
        try_one(kind, &RETURN_0, "BPF programs with typed arguments");
        try_one(kind, &call(GET_CURRENT_TASK_BTF), "the current task in BPF");
    }
    missing
}

/// Firing parts have functions and go on by tail calls: both together take the kernel's JIT compiler.
fn functions() -> Option<Missing> {
    let signature = Signature {
        name: "nothing",
        memory: &[],
        numbers: 0,
    };
    let mut asm = Asm::default();
    let function = asm.label();
    asm.mov(Reg::R6, Reg::R1);
    asm.call_function(function);
    asm.mov(Reg::R1, Reg::R6);
    asm.map(Reg::R2, MapRef::Slots(0));
    asm.mov(Reg::R3, 0);
    asm.call(Helper::TailCall);
    asm.mov(Reg::R0, 0);
    asm.exit();
    asm.function(function, signature);
    asm.mov(Reg::R0, 0);
    asm.exit();
    let attach = Attach {
        system: "lkst".to_owned(),
        name: "trial".to_owned(),
        typed: false,
        calls: false,
    };
    let slots = MapImage {
        map: MapRef::Slots(0),
        kind: MapKind::Programs,
        value_bytes: 4,
        entries: 1,
    };
    let load = || -> anyhow::Result<()> {
        let slots = make_map(&slots)?;
        let fd = slots.fd().as_fd().as_raw_fd();
        load_code(&attach, &asm.finish(false)?, |_| Some(fd), None)?;
        Ok(())
    };
    let error = load().err()?;
    Some(Missing::new(
        "functions and tail calls in one BPF program",
        format!("the kernel refuses it: {error}"),
        "switch the kernel's BPF compiler on: `sysctl net.core.bpf_jit_enable=1`",
    ))
}

/// Whether a program may jump farther than 32,767 instructions: `gotol`, since Linux 6.6.
#[must_use]
pub fn long_jumps() -> bool {
    let [zero, exit] = RETURN_0;
    let program = [zero, instruction(0x06, 0, 0, 0, 0), exit];
    bpf_syscall::load(ProgramType::Tracepoint, &program, None, TRIAL).is_ok()
}

fn no_bpf_at_all(refused: &Refused) -> Missing {
    let mend = match refused.error.raw_os_error() {
        Some(libc::EPERM) => {
            "in a container, allow the `bpf` system call in its seccomp profile; else run lkst as root"
        }
        Some(libc::ENOSYS) => "use a kernel with CONFIG_BPF_SYSCALL=y",
        _ => "use a kernel with CONFIG_BPF_SYSCALL=y and CONFIG_BPF_EVENTS=y",
    };
    Missing::new(
        "BPF",
        format!("the kernel refuses an empty program: {}", refused.error),
        mend,
    )
}

#[cfg(test)]
mod tests {
    use super::{missing_capabilities, realtime};

    fn names(status: &str) -> Vec<String> {
        missing_capabilities(status)
            .into_iter()
            .map(|missing| missing.what)
            .collect()
    }

    #[test]
    fn real_time_kernels_are_refused() {
        assert!(realtime("", "#1 SMP PREEMPT_DYNAMIC Sun Nov 22 2026").is_none());
        assert!(realtime("", "#1 SMP PREEMPT_RT Debian 6.12.1-1").is_some());
        assert!(realtime("1\n", "#1 SMP PREEMPT RT").is_some());
    }

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(names("CapEff:\t000001ffffffffff\n"), Vec::<String>::new());
        assert_eq!(names("CapEff:\t0000000000200000\n"), Vec::<String>::new());
        assert_eq!(names("CapEff:\t0000008000000000\n"), ["CAP_PERFMON"]);
        assert_eq!(names("CapEff:\t0000004000000000\n"), ["CAP_BPF"]);
        assert_eq!(names("CapEff:\t0000000000000000\n"), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(names("nothing of the kind"), ["CAP_BPF", "CAP_PERFMON"]);
    }
}
