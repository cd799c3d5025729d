//! Where a field lies: the one interface between expressions and the two kinds of program.
//!
//! In: a [`Place`] in a classic program's context, or a [`Recipe`] through the kernel's types. Out: R1 = the value,
//! canonical (extended to 64 bits by its type's sign), or R3 = the address of text or of an array.
//!
//! A path through a null pointer is 0. Plain loads through pointers whose types the verifier knows are guarded by the
//! kernel's exception tables; everything else goes through `bpf_probe_read_kernel`, which returns an error.

use lkst_rules::plan::{Load, TaskValue};
use lkst_rules::schema::{Base, Operator, Path, Place, Recipe, Type};

use super::{Emit, Kind, slot};
use crate::asm::{Alu, Cond, Helper, Label, MapRef, Reg, Size};

/// What a typed tracepoint program of `raw_syscalls` finds in `struct pt_regs`: byte offsets on x86-64
/// (arch/x86/include/asm/ptrace.h), arguments in the order of the system call convention.
pub(crate) mod pt_regs {
    pub(crate) const ARGUMENTS: [i16; 6] = [112, 104, 96, 56, 72, 64];
    /// Those of 32-bit calls: `syscall_get_arguments()`, arch/x86/include/asm/syscall.h.
    pub(crate) const ARGUMENTS_32: [i16; 6] = [40, 88, 96, 104, 112, 32];
    pub(crate) const ORIG_AX: i16 = 120;
}

/// A pointer on the way may be null, as that to the current task never is: the verifier knows, and would have to cut out what
/// is done where it is.
pub(super) fn may_be_null(path: &Path) -> bool {
    path.base != Base::CurrentTask || path.hops.len() > 1
}

/// How a load of so many bits is done.
pub(crate) fn size_of_bits(bits: u8) -> Size {
    Size::of_bytes(usize::from(bits / 8)).unwrap_or(Size::B8)
}

/// Width and sign of a value in a register.
pub(crate) fn shape(ty: Type) -> (u8, bool) {
    match ty {
        Type::Int { bits, signed } | Type::Array { bits, signed, .. } | Type::Sequence { bits, signed } => {
            (bits, signed)
        }
        Type::Bool => (8, false),
        Type::Duration | Type::Text { .. } => (64, false),
    }
}

impl Emit<'_> {
    /// R1 = R1 extended from its type's width to 64 bits.
    pub(crate) fn extend(&mut self, bits: u8, signed: bool) {
        match (bits, signed) {
            (64, _) => {}
            (32, false) => self.asm.alu32(Alu::Mov, Reg::R1, Reg::R1),
            (_, false) => self.asm.alu(Alu::And, Reg::R1, (1_i32 << bits) - 1),
            (_, true) => {
                self.asm.alu(Alu::Lsh, Reg::R1, 64 - i32::from(bits));
                self.asm.alu(Alu::Arsh, Reg::R1, 64 - i32::from(bits));
            }
        }
    }

    /// R1 = a value of the hit. `zero_extended` where the caller looks at the low bits only.
    pub(crate) fn load(&mut self, load: &Load, ty: Type, zero_extended: bool) {
        if self.shared_value(load, ty) {
            return;
        }
        let (bits, signed) = shape(ty);
        let signed = signed && !zero_extended;
        match load {
            Load::Field { place, recipe, .. } => match (self.kind, place, recipe) {
                (Kind::Classic, Some(place), _) => self.load_place(*place, bits, signed),
                (Kind::Typed, _, Some(recipe)) => {
                    self.load_recipe(recipe, bits, signed);
                    if bits == 64 && !zero_extended && matches!(recipe, Recipe::Path(_)) {
                        self.forget_pointer();
                    }
                }
                // INVARIANT: the kind was chosen so that every value of the event is there.
                _ => self.asm.mov(Reg::R1, 0),
            },
            Load::Task(value) => self.load_task(value, bits, signed),
            Load::Cpu => {
                self.cpu_in_r0();
                self.asm.mov(Reg::R1, Reg::R0);
            }
            Load::Time => {
                self.need_clock();
                self.asm.mov(Reg::R1, Reg::R8);
            }
            Load::EventName(_) => self.asm.mov(Reg::R1, 0),
        }
    }

    /// R1 as it is, and no pointer to the verifier any more: it refuses most arithmetic on pointers, and holds some
    /// that may be null for never null. A negated pointer is a number to it.
    fn forget_pointer(&mut self) {
        self.asm.neg(Reg::R1);
        self.asm.neg(Reg::R1);
    }

    fn load_place(&mut self, place: Place, bits: u8, signed: bool) {
        let (Place::At(offset) | Place::DataLoc(offset) | Place::RelLoc(offset)) = place;
        let size = size_of_bits(bits);
        if u32::from(offset).is_multiple_of(u32::from(bits / 8)) {
            self.asm.load(size, Reg::R1, Reg::R6, offset.cast_signed());
            if signed {
                self.extend(bits, true);
            }
            return;
        }
        // The verifier refuses unaligned loads of the context.
        self.asm.mov(Reg::R3, Reg::R6);
        self.asm.alu(Alu::Add, Reg::R3, i32::from(offset));
        self.probe_read_r3(size);
        self.extend(bits, signed);
    }

    /// R1 = the value at the kernel address R3, 0 where it cannot be read.
    fn probe_read_r3(&mut self, size: Size) {
        let (failed, done) = (self.asm.label(), self.asm.label());
        self.asm.mov(Reg::R1, Reg::R10);
        self.asm.alu(Alu::Add, Reg::R1, i32::from(slot::KEY));
        self.asm.mov(Reg::R2, bytes_of(size));
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.branch(Cond::Ne, Reg::R0, 0, failed);
        self.asm.load(size, Reg::R1, Reg::R10, slot::KEY);
        self.asm.jump(done);
        self.asm.bind(failed);
        self.asm.mov(Reg::R1, 0);
        self.asm.bind(done);
    }

    fn load_recipe(&mut self, recipe: &Recipe, bits: u8, signed: bool) {
        match recipe {
            Recipe::Path(path) => {
                self.load_path(path, size_of_bits(bits));
                match path.bits {
                    Some(field) => {
                        // Up to the top, then down again with its sign.
                        let up = 64 - i32::from(field.shift) - i32::from(field.width);
                        self.asm.alu(Alu::Lsh, Reg::R1, up);
                        let down = if signed { Alu::Arsh } else { Alu::Rsh };
                        self.asm.alu(down, Reg::R1, 64 - i32::from(field.width));
                    }
                    // A load is zero-extended already, an argument is whatever its caller left in the upper half.
                    None if signed || path.hops.is_empty() => self.extend(bits, signed),
                    None => {}
                }
            }
            Recipe::SyscallNumber => self.load_syscall_number(bits, signed),
            Recipe::SyscallArgument(index) => {
                self.asm.load(Size::B8, Reg::R1, Reg::R6, 0);
                self.load_argument(&pt_regs::ARGUMENTS, *index);
                self.extend(bits, signed);
            }
            Recipe::AnySyscallArgument(index) => {
                self.by_kind_of_call(|emit, registers| emit.load_argument(registers, *index));
                self.extend(bits, signed);
            }
            Recipe::SyscallReturn => {
                self.asm.load(Size::B8, Reg::R1, Reg::R6, 8);
                self.extend(bits, signed);
            }
            Recipe::Jiffies => {
                self.asm.call(Helper::Jiffies64);
                self.asm.mov(Reg::R1, Reg::R0);
                self.extend(bits, signed);
            }
            Recipe::SwitchState {
                preempt,
                prev_state,
                exit_state,
            } => {
                self.load_switch_state(preempt, prev_state, exit_state);
            }
            Recipe::Siginfo {
                member,
                none,
                private,
            } => {
                self.load_siginfo(member, *none, *private, size_of_bits(bits));
                self.extend(bits, signed);
            }
            // Text is read by `text.rs`, and six arguments are no integer.
            Recipe::TextOr { .. } | Recipe::AnySyscallArguments => self.asm.mov(Reg::R1, 0),
            Recipe::Constant(value) => {
                self.asm.constant(Reg::R1, value.cast_unsigned());
                self.extend(bits, signed);
            }
            Recipe::As {
                of,
                bits: own,
                signed: own_sign,
            } => {
                self.load_recipe(of, *own, *own_sign);
                if *own == 64 {
                    self.forget_pointer();
                }
                if (bits, signed) != (*own, *own_sign) {
                    self.extend(bits, signed);
                }
            }
            Recipe::Binary { operator, a, b } => {
                self.load_binary(*operator, a, b);
                self.extend(bits, signed);
            }
        }
    }

    /// R1 = two values in one.
    fn load_binary(&mut self, operator: Operator, a: &Recipe, b: &Recipe) {
        let alu = match operator {
            Operator::Add => Some(Alu::Add),
            Operator::Subtract => Some(Alu::Sub),
            Operator::Multiply => Some(Alu::Mul),
            Operator::And => Some(Alu::And),
            Operator::Left => Some(Alu::Lsh),
            Operator::Right => Some(Alu::Rsh),
            Operator::NotEqual => None,
        };
        match b {
            Recipe::Constant(b) => {
                self.load_recipe(a, 64, false);
                self.asm.constant(Reg::R2, b.cast_unsigned());
            }
            _ => {
                self.load_recipe(a, 64, false);
                let temp = self.temp(lkst_rules::source::Span::default());
                self.asm.store(Size::B8, Reg::R10, temp, Reg::R1);
                self.load_recipe(b, 64, false);
                self.asm.mov(Reg::R2, Reg::R1);
                self.asm.load(Size::B8, Reg::R1, Reg::R10, temp);
                self.drop_temp();
            }
        }
        match alu {
            Some(alu) => self.asm.alu(alu, Reg::R1, Reg::R2),
            None => {
                let (differ, done) = (self.asm.label(), self.asm.label());
                self.asm.branch(Cond::Ne, Reg::R1, Reg::R2, differ);
                self.asm.mov(Reg::R1, 0);
                self.asm.jump(done);
                self.asm.bind(differ);
                self.asm.mov(Reg::R1, 1);
                self.asm.bind(done);
            }
        }
    }

    /// R1 = the number of the system call: an argument of `sys_enter`; `sys_exit` has it in the saved registers.
    pub(crate) fn load_syscall_number(&mut self, bits: u8, signed: bool) {
        self.asm.load(Size::B8, Reg::R1, Reg::R6, 0);
        self.asm.load(Size::B8, Reg::R1, Reg::R1, pt_regs::ORIG_AX);
        self.extend(bits, signed);
    }

    /// R1 = the register of the saved ones at R1 that has an argument.
    fn load_argument(&mut self, registers: &[i16; 6], index: u8) {
        let register = registers.get(usize::from(index)).copied().unwrap_or(0);
        self.asm.load(Size::B8, Reg::R1, Reg::R1, register);
    }

    /// Stores the six arguments of a system call at `offset` of the record. R0 to R5 are lost.
    pub(crate) fn store_syscall_arguments(&mut self, offset: i16) {
        self.by_kind_of_call(|emit, registers| {
            for (argument, register) in (0..).zip(registers) {
                emit.asm.load(Size::B8, Reg::R2, Reg::R1, *register);
                emit.asm.store(Size::B8, Reg::R9, offset + 8 * argument, Reg::R2);
            }
        });
    }

    /// Does something with the saved registers in R1, whichever of them have the arguments. R0 to R5 are lost.
    fn by_kind_of_call(&mut self, then: impl Fn(&mut Self, &[i16; 6])) {
        let [foreign, done] = std::array::from_fn(|_| self.asm.label());
        self.unless_foreign(foreign);
        self.asm.load(Size::B8, Reg::R1, Reg::R6, 0);
        then(self, &pt_regs::ARGUMENTS);
        self.asm.jump(done);
        self.asm.bind(foreign);
        self.asm.load(Size::B8, Reg::R1, Reg::R6, 0);
        then(self, &pt_regs::ARGUMENTS_32);
        self.asm.bind(done);
    }

    /// R1 = where a path begins.
    fn load_base(&mut self, base: Base) {
        match base {
            Base::Argument(index) => self.asm.load(Size::B8, Reg::R1, Reg::R6, 8 * i16::from(index)),
            Base::CurrentTask => {
                self.asm.call(Helper::GetCurrentTaskBtf);
                self.asm.mov(Reg::R1, Reg::R0);
            }
        }
    }

    /// R1 = what lies at the end of a path, loaded at `size`, zero-extended; 0 where a pointer on the way is null or
    /// cannot be read.
    pub(crate) fn load_path(&mut self, path: &Path, size: Size) {
        let Some(last) = path.hops.last() else {
            return self.load_base(path.base);
        };
        let (null, done) = (self.asm.label(), self.asm.label());
        let direct = self.walk(path, null);
        self.hop(last.offset, direct && last.direct, size);
        if may_be_null(path) {
            self.asm.jump(done);
            // It is 0 here already, but to the verifier it may still be a pointer, which it lets nobody compute with.
            self.asm.bind(null);
            self.asm.mov(Reg::R1, 0);
            self.asm.bind(done);
        }
    }

    /// R1 = the pointer before a path's last hop. Returns whether plain loads may go on from it. Jumps to `null` with
    /// R1 = 0 where a pointer is null, if one [`may_be_null`].
    pub(super) fn walk(&mut self, path: &Path, null: Label) -> bool {
        self.load_base(path.base);
        let mut direct = self.direct;
        let pointers = path.hops.len().saturating_sub(1);
        if path.base != Base::CurrentTask {
            self.asm.branch(Cond::Eq, Reg::R1, 0, null);
        }
        for hop in path.hops.iter().take(pointers) {
            direct &= hop.direct;
            self.hop(hop.offset, direct, Size::B8);
            self.asm.branch(Cond::Eq, Reg::R1, 0, null);
        }
        direct
    }

    /// R1 = `*(size *)(R1 + offset)`.
    fn hop(&mut self, offset: u32, direct: bool, size: Size) {
        match i16::try_from(offset) {
            Ok(offset) if direct => self.asm.load(size, Reg::R1, Reg::R1, offset),
            _ => {
                self.asm.mov(Reg::R3, Reg::R1);
                self.asm.alu(Alu::Add, Reg::R3, offset.cast_signed());
                self.probe_read_r3(size);
            }
        }
    }

    /// R3 = the kernel address of the text or array that a recipe leads to; jumps to `null` where there is none.
    pub(crate) fn address_of_recipe(&mut self, recipe: &Recipe, null: Label) {
        match recipe {
            Recipe::Path(path) => self.address_of_path(path, null),
            Recipe::TextOr {
                pointer,
                of,
                otherwise,
            } => {
                let (there, done) = (self.asm.label(), self.asm.label());
                self.load_path(pointer, Size::B8);
                self.forget_pointer();
                self.asm.branch(Cond::Ne, Reg::R1, 0, there);
                self.constant_text(otherwise);
                self.asm.jump(done);
                self.asm.bind(there);
                self.address_of_path(of, null);
                self.asm.bind(done);
            }
            _ => self.asm.jump(null),
        }
    }

    /// R3 = the address of a short text with its NUL. It lies in two slots for intermediate values, which nothing uses
    /// before the text is read.
    fn constant_text(&mut self, text: &str) {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(text.bytes().take(15)) {
            *to = from;
        }
        let upper = self.temp(lkst_rules::source::Span::default());
        let lower = self.temp(lkst_rules::source::Span::default());
        let value = u128::from_le_bytes(bytes);
        for (slot, half) in [(lower, value as u64), (upper, (value >> 64) as u64)] {
            self.asm.constant(Reg::R1, half);
            self.asm.store(Size::B8, Reg::R10, slot, Reg::R1);
        }
        self.drop_temp();
        self.drop_temp();
        self.asm.mov(Reg::R3, Reg::R10);
        self.asm.alu(Alu::Add, Reg::R3, i32::from(lower));
    }

    /// R3 = the kernel address of the text or array at the end of a path; jumps to `null` where there is none.
    pub(crate) fn address_of_path(&mut self, path: &Path, null: Label) {
        if path.text_behind {
            self.load_path(path, Size::B8);
            self.asm.branch(Cond::Eq, Reg::R1, 0, null);
            self.asm.mov(Reg::R3, Reg::R1);
            return;
        }
        self.walk(path, null);
        self.asm.mov(Reg::R3, Reg::R1);
        if let Some(last) = path.hops.last() {
            self.asm.alu(Alu::Add, Reg::R3, last.offset.cast_signed());
        }
    }

    fn load_task(&mut self, value: &TaskValue, bits: u8, signed: bool) {
        match value {
            TaskValue::Pid | TaskValue::Tid => {
                self.asm.call(Helper::GetCurrentPidTgid);
                self.asm.mov(Reg::R1, Reg::R0);
                if matches!(value, TaskValue::Pid) {
                    self.asm.alu(Alu::Rsh, Reg::R1, 32);
                }
                self.extend(bits.min(32), signed);
            }
            TaskValue::Uid | TaskValue::Gid => {
                self.asm.call(Helper::GetCurrentUidGid);
                self.asm.mov(Reg::R1, Reg::R0);
                if matches!(value, TaskValue::Gid) {
                    self.asm.alu(Alu::Rsh, Reg::R1, 32);
                }
                self.extend(bits.min(32), signed);
            }
            TaskValue::Ppid(path) => {
                self.load_path(path, size_of_bits(bits));
                self.extend(bits, signed);
            }
            // Text is read by `text.rs`.
            TaskValue::Comm(_) => self.asm.mov(Reg::R1, 0),
            TaskValue::Traced => {
                let end = self.asm.label();
                self.asm.call(Helper::GetCurrentPidTgid);
                self.asm.alu(Alu::Rsh, Reg::R0, 32);
                self.asm.store(Size::B4, Reg::R10, slot::KEY, Reg::R0);
                self.asm.map(Reg::R1, MapRef::Traced);
                self.asm.mov(Reg::R2, Reg::R10);
                self.asm.alu(Alu::Add, Reg::R2, i32::from(slot::KEY));
                self.asm.call(Helper::MapLookupElem);
                self.asm.mov(Reg::R1, 0);
                self.asm.branch(Cond::Eq, Reg::R0, 0, end);
                self.asm.mov(Reg::R1, 1);
                self.asm.bind(end);
            }
        }
    }

    /// `__trace_sched_switch_state()` and `__task_state_index()`, include/trace/events/sched.h and
    /// include/linux/sched.h: the highest bit of the state as it is reported.
    fn load_switch_state(&mut self, preempt: &Path, prev_state: &Path, exit_state: &Path) {
        const TASK_REPORT: i32 = 0x7f;
        const TASK_REPORT_IDLE: i32 = 0x80;
        const TASK_REPORT_MAX: i32 = 0x100;
        const TASK_UNINTERRUPTIBLE: i32 = 0x2;
        const TASK_IDLE: i32 = 0x402;
        const TASK_RTLOCK_WAIT_OR_FROZEN: i32 = 0x1000 | 0x8000;
        let (done, not_idle, not_hidden) = (self.asm.label(), self.asm.label(), self.asm.label());
        let preempted = self.asm.label();
        let temp = self.temp(lkst_rules::source::Span::default());
        self.load_path(preempt, Size::B1);
        self.asm.alu(Alu::And, Reg::R1, 0xff);
        self.asm.branch(Cond::Ne, Reg::R1, 0, preempted);
        self.load_path(prev_state, Size::B4);
        self.asm.store(Size::B8, Reg::R10, temp, Reg::R1);
        self.load_path(exit_state, Size::B4);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, temp);
        self.drop_temp();
        self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        self.asm.alu(Alu::And, Reg::R1, TASK_REPORT);
        self.asm.mov(Reg::R3, Reg::R2);
        self.asm.alu(Alu::And, Reg::R3, TASK_IDLE);
        self.asm.branch(Cond::Ne, Reg::R3, TASK_IDLE, not_idle);
        self.asm.mov(Reg::R1, TASK_REPORT_IDLE);
        self.asm.bind(not_idle);
        self.asm.alu(Alu::And, Reg::R2, TASK_RTLOCK_WAIT_OR_FROZEN);
        self.asm.branch(Cond::Eq, Reg::R2, 0, not_hidden);
        self.asm.mov(Reg::R1, TASK_UNINTERRUPTIBLE);
        self.asm.bind(not_hidden);
        // fls: smear the highest bit downwards, then keep only it.
        for shift in [1, 2, 4] {
            self.asm.mov(Reg::R2, Reg::R1);
            self.asm.alu(Alu::Rsh, Reg::R2, shift);
            self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        }
        self.asm.mov(Reg::R2, Reg::R1);
        self.asm.alu(Alu::Rsh, Reg::R2, 1);
        self.asm.alu(Alu::Sub, Reg::R1, Reg::R2);
        self.asm.jump(done);
        self.asm.bind(preempted);
        self.asm.mov(Reg::R1, TASK_REPORT_MAX);
        self.asm.bind(done);
    }

    /// Always a probe read: the pointer may be 0 or 1, and the verifier would believe it to be a structure.
    fn load_siginfo(&mut self, member: &Path, none: i64, private: i64, size: Size) {
        let (is_none, is_private, done) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.load_base(member.base);
        self.asm.mov(Reg::R3, Reg::R1);
        self.asm.branch(Cond::Eq, Reg::R3, 0, is_none);
        self.asm.branch(Cond::Eq, Reg::R3, 1, is_private);
        if let Some(hop) = member.hops.last() {
            self.asm.alu(Alu::Add, Reg::R3, hop.offset.cast_signed());
        }
        self.probe_read_r3(size);
        self.asm.jump(done);
        self.asm.bind(is_none);
        self.asm.constant(Reg::R1, none.cast_unsigned());
        self.asm.jump(done);
        self.asm.bind(is_private);
        self.asm.constant(Reg::R1, private.cast_unsigned());
        self.asm.bind(done);
    }
}

fn bytes_of(size: Size) -> i32 {
    match size {
        Size::B1 => 1,
        Size::B2 => 2,
        Size::B4 => 4,
        Size::B8 => 8,
    }
}
