//! The small programs around an event's program: its dispatcher, the idle one, and the tracker of COMMAND.

use super::{Emit, LowerError, Part};
use crate::asm::{Alu, Asm, Code, Cond, Helper, MapRef, Reg, Size};
use crate::features::Features;
use crate::layout::control;
use lkst_rules::schema::Path;

/// Reads the generation once and goes to the program in slot 0 or 1. The index is a constant in each branch: the JIT
/// then makes a direct jump of it (arch/x86/net/bpf_jit_comp.c, `emit_bpf_tail_call_direct`).
///
/// # Errors
/// None in practice: the program is short.
pub fn dispatcher(number: u16) -> Result<Code, LowerError> {
    let mut asm = Asm::default();
    let (odd, end) = (asm.label(), asm.label());
    asm.map_value(Reg::R2, MapRef::Control(0), control::GENERATION);
    asm.load(Size::B8, Reg::R4, Reg::R2, 0);
    asm.map(Reg::R2, MapRef::Slots(number));
    asm.branch(Cond::Set, Reg::R4, 1, odd);
    asm.mov(Reg::R3, 0);
    asm.call(Helper::TailCall);
    asm.jump(end);
    asm.bind(odd);
    asm.mov(Reg::R3, 1);
    asm.call(Helper::TailCall);
    asm.bind(end);
    asm.mov(Reg::R0, 0);
    asm.exit();
    Ok(asm.finish(false)?)
}

/// A program that wants nothing: what an idle slot holds. Deleting a slot's entry would wait for RCU.
///
/// # Errors
/// None in practice: the program is short.
pub fn idle() -> Result<Code, LowerError> {
    let mut asm = Asm::default();
    asm.mov(Reg::R0, 0);
    asm.exit();
    Ok(asm.finish(false)?)
}

/// What follows COMMAND: a process whose parent is in the map enters it, the last thread of one that exits leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerPaths {
    /// `sched_process_fork`: `parent->tgid`
    pub parent_tgid: Path,
    /// `sched_process_fork`: `child->tgid`
    pub child_tgid: Path,
    /// `sched_process_exit`: `p->tgid`
    pub exit_tgid: Path,
    /// `sched_process_exit`: `p->signal->live.counter`, 0 once the last thread is going.
    pub exit_live: Path,
}

/// The programs on `sched_process_fork` and `sched_process_exit`, in this order.
///
/// # Errors
/// None in practice: the programs are short.
pub fn tracker(features: &Features, paths: &TrackerPaths) -> Result<[Code; 2], LowerError> {
    const KEY: i16 = super::slot::KEY;
    const VALUE: i16 = super::slot::WHO;
    let start = || {
        let mut emit = Emit::new(features, Part::of_lkst(true));
        emit.prologue();
        emit
    };
    let key = |emit: &mut Emit<'_>| {
        emit.asm.map(Reg::R1, MapRef::Traced);
        emit.asm.mov(Reg::R2, Reg::R10);
        emit.asm.alu(Alu::Add, Reg::R2, i32::from(KEY));
    };

    let mut fork = start();
    fork.load_path(&paths.parent_tgid, Size::B4);
    fork.asm.store(Size::B4, Reg::R10, KEY, Reg::R1);
    key(&mut fork);
    fork.asm.call(Helper::MapLookupElem);
    let not_ours = fork.exit;
    fork.asm.branch(Cond::Eq, Reg::R0, 0, not_ours);
    fork.load_path(&paths.child_tgid, Size::B4);
    fork.asm.store(Size::B4, Reg::R10, KEY, Reg::R1);
    fork.asm.store_imm(Size::B4, Reg::R10, VALUE, 1);
    key(&mut fork);
    fork.asm.mov(Reg::R3, Reg::R10);
    fork.asm.alu(Alu::Add, Reg::R3, i32::from(VALUE));
    fork.asm.mov(Reg::R4, 0);
    fork.asm.call(Helper::MapUpdateElem);
    fork.epilogue();

    let mut exit = start();
    exit.load_path(&paths.exit_live, Size::B4);
    let alive = exit.exit;
    exit.asm.branch32(Cond::Ne, Reg::R1, 0, alive);
    exit.load_path(&paths.exit_tgid, Size::B4);
    exit.asm.store(Size::B4, Reg::R10, KEY, Reg::R1);
    key(&mut exit);
    exit.asm.call(Helper::MapDeleteElem);
    exit.epilogue();

    Ok([fork.asm.finish(false)?, exit.asm.finish(false)?])
}
