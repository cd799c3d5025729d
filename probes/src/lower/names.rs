//! The programs that keep the names of threads, so that a trace can show a name beside a number: apart from the rings,
//! which overwrite themselves and would lose a name with the record that told it.
//!
//! ```text
//! task:task_newtask         names[task.pid] = { task.tgid, task.comm }
//! task:task_rename          names[task.pid] = { task.tgid, comm }
//! sched:sched_process_exit  names[p.pid] = { p.tgid, p.comm }, where it is not there any more
//! ```
//!
//! In: where the kernel keeps a task's numbers and name. Out: three typed programs on one map, attached once for all
//! packs. What an entry looks like is in `layout.rs`.
//!
//! The map is an LRU one: names of dead threads are what it is for, nobody can say when the last is needed, and so the
//! oldest make room for new ones. Keys of spans must not go that way: there the oldest are the hung requests that one
//! looks for. A thread that lives long is among the oldest too. While it lives `/proc` knows its name, and when it ends
//! it is entered once more: what a trace needs most is the name of what has just died.
//!
//! Measured (Linux 6.18, x86-64, a VM): a rename pays 200 ns, the best of many loops with and without. A fork pays about 1 µs,
//! since a new entry has to be found for it, and an exit 0.3 µs, by the kernel's own statistics (`bpf_stats_enabled`), which
//! count some of their own cost: together 1 % of the 136 µs that fork, exit and wait take there.
//!
//! INVARIANT: an entry is written whole, by one update: no reader sees the process of one thread with the name of
//! another.

use super::{Emit, LowerError, Part, slot};
use crate::asm::{Alu, Code, Cond, Helper, MapRef, Reg, Size};
use crate::features::Features;
use crate::layout::name;
use lkst_rules::schema::Path;

/// Where a tracepoint's arguments say which thread it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPaths {
    /// `task->pid`: the thread.
    pub tid: Path,
    /// `task->tgid`: its process.
    pub pid: Path,
    /// Its name: an array of 16 bytes, or a pointer to text.
    pub comm: Path,
}

/// As [`TaskPaths`], for each tracepoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesPaths {
    /// `task:task_newtask`
    pub newtask: TaskPaths,
    /// `task:task_rename`: the name that comes.
    pub rename: TaskPaths,
    /// `sched:sched_process_exit`
    pub exit: TaskPaths,
}

/// The tracepoints of [`names`], in its order, by system and name.
pub const NAMES_EVENTS: [(&str, &str); 3] = [
    ("task", "task_newtask"),
    ("task", "task_rename"),
    ("sched", "sched_process_exit"),
];

/// Where the key lies on the stack: paths are read by way of `slot::KEY`.
const TID: i16 = slot::WORD;
/// Where the value lies: its text at a multiple of 8, since stores to the stack must be aligned.
const VALUE: i16 = slot::TEXTS + 4;
const _: () = assert!((VALUE + name::COMM as i16) % 8 == 0 && name::COMM_BYTES == 16);

/// The programs on [`NAMES_EVENTS`]. With `direct`, members of the task are read by plain loads where the schema allows
/// them; otherwise by probe reads.
///
/// # Errors
/// None in practice: the programs are short.
pub fn names(features: &Features, paths: &NamesPaths, direct: bool) -> Result<[Code; 3], LowerError> {
    Ok([
        program(features, &paths.newtask, direct, false)?,
        program(features, &paths.rename, direct, false)?,
        program(features, &paths.exit, direct, true)?,
    ])
}

fn program(
    features: &Features,
    paths: &TaskPaths,
    direct: bool,
    only_missing: bool,
) -> Result<Code, LowerError> {
    let mut emit = Emit::new(features, Part::of_lkst(direct));
    emit.prologue();
    let exit = emit.exit;

    // if (!(tid = task->pid)) return
    emit.load_path(&paths.tid, Size::B4);
    emit.asm.branch32(Cond::Eq, Reg::R1, 0, exit);
    emit.asm.store(Size::B4, Reg::R10, TID, Reg::R1);
    if only_missing {
        // if (lookup(names, &tid)) return; the look-up alone keeps the entry among the youngest
        key(&mut emit);
        emit.asm.call(Helper::MapLookupElem);
        emit.asm.branch(Cond::Ne, Reg::R0, 0, exit);
    }

    // value = { task->tgid, comm }: what comes behind the end of the text is zero
    emit.load_path(&paths.pid, Size::B4);
    emit.asm
        .store(Size::B4, Reg::R10, VALUE + name::PID as i16, Reg::R1);
    let comm = VALUE + name::COMM as i16;
    emit.asm.store_imm(Size::B8, Reg::R10, comm, 0);
    emit.asm.store_imm(Size::B8, Reg::R10, comm + 8, 0);
    emit.address_of_path(&paths.comm, exit);
    address(&mut emit, Reg::R1, comm);
    emit.asm.mov(Reg::R2, name::COMM_BYTES as i32);
    emit.asm.call(if paths.comm.text_behind {
        Helper::ProbeReadKernelStr
    } else {
        Helper::ProbeReadKernel
    });
    emit.asm.branch(Cond::Slt, Reg::R0, 0, exit);

    // names[tid] = value
    key(&mut emit);
    address(&mut emit, Reg::R3, VALUE);
    emit.asm.mov(Reg::R4, 0);
    emit.asm.call(Helper::MapUpdateElem);
    emit.epilogue();
    Ok(emit.asm.finish(false)?)
}

/// The first two arguments of a helper: the map, and the address of the key.
fn key(emit: &mut Emit<'_>) {
    emit.asm.map(Reg::R1, MapRef::Names);
    address(emit, Reg::R2, TID);
}

fn address(emit: &mut Emit<'_>, to: Reg, at: i16) {
    emit.asm.mov(to, Reg::R10);
    emit.asm.alu(Alu::Add, to, i32::from(at));
}
