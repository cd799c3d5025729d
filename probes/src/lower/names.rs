//! The program that keeps the names of threads that have ended, so that a trace can show a name beside a number: apart
//! from the rings, which overwrite themselves and would lose a name with the record that told it.
//!
//! ```text
//! sched:sched_process_exit  names[p.pid] = { p.tgid, p.comm }
//! ```
//!
//! In: where the kernel keeps a task's numbers and name. Out: a typed program on a map of its own, attached once for all
//! packs. What an entry looks like is in `layout.rs`.
//!
//! The living have their names in `/proc`; so nothing is done, and nothing costs anything, when a thread is made or
//! renamed. The entry is made before `/proc` forgets the thread: whoever looks there first and then here finds it.
//!
//! The map is an LRU one: nobody can say when the last of the dead is needed, and so the oldest make room for new ones.
//! Keys of spans must not go that way: there the oldest are the hung requests that one looks for.
//!
//! INVARIANT: an entry is written whole, by one update: no reader sees the process of one thread with the name of
//! another.

use super::{Emit, LowerError, Part, slot};
use crate::asm::{Alu, Code, Cond, Helper, MapRef, Reg, Size};
use crate::features::Features;
use crate::layout::name;
use lkst_rules::schema::Path;

/// Where the tracepoint's argument says which thread it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesPaths {
    /// `p->pid`: the thread.
    pub tid: Path,
    /// `p->tgid`: its process.
    pub pid: Path,
    /// `p->comm`: its name, an array of 16 bytes.
    pub comm: Path,
}

/// The tracepoint of [`names`], by system and name.
pub const NAMES_EVENT: (&str, &str) = ("sched", "sched_process_exit");

/// Where the key lies on the stack: paths are read by way of `slot::KEY`.
const TID: i16 = slot::WORD;
/// Where the value lies: its text at a multiple of 8, since stores to the stack must be aligned.
const VALUE: i16 = slot::TEXTS + 4;
const _: () = assert!((VALUE + name::COMM as i16) % 8 == 0 && name::COMM_BYTES == 16);

/// The program on [`NAMES_EVENT`]. With `direct`, members of the task are read by plain loads where the schema allows
/// them; otherwise by probe reads.
///
/// # Errors
/// None in practice: the program is short.
pub fn names(features: &Features, paths: &NamesPaths, direct: bool) -> Result<Code, LowerError> {
    let mut emit = Emit::new(features, Part::of_lkst(direct));
    emit.prologue();
    let exit = emit.exit;

    // if (!(tid = p->pid)) return
    emit.load_path(&paths.tid, Size::B4);
    emit.asm.branch32(Cond::Eq, Reg::R1, 0, exit);
    emit.asm.store(Size::B4, Reg::R10, TID, Reg::R1);

    // value = { p->tgid, p->comm }
    emit.load_path(&paths.pid, Size::B4);
    emit.asm
        .store(Size::B4, Reg::R10, VALUE + name::PID as i16, Reg::R1);
    let comm = VALUE + name::COMM as i16;
    emit.asm.store_imm(Size::B8, Reg::R10, comm, 0);
    emit.asm.store_imm(Size::B8, Reg::R10, comm + 8, 0);
    emit.address_of_path(&paths.comm, exit);
    address(&mut emit, Reg::R1, comm);
    emit.asm.mov(Reg::R2, name::COMM_BYTES as i32);
    emit.asm.call(Helper::ProbeReadKernel);
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
