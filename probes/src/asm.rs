//! The assembler: calls → instructions → bytes.
//!
//! In: one call an instruction, with labels for jumps and [`MapRef`]s for maps. Out: [`Code`], whose jumps are
//! resolved and whose map references are still symbolic; [`Code::bytes`] puts in the file descriptors that the loader
//! has by then.
//!
//! INVARIANT: nobody outside `asm/jumps.rs` writes a jump offset.
//!
//! The instruction set: Documentation/bpf/standardization/instruction-set.rst of the kernel.

mod jumps;

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The frame pointer.
    R10,
}

/// The right side of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Src {
    /// A register.
    Reg(Reg),
    /// A constant, sign-extended to 64 bits.
    Imm(i32),
}

impl From<Reg> for Src {
    fn from(reg: Reg) -> Self {
        Src::Reg(reg)
    }
}

impl From<i32> for Src {
    fn from(imm: i32) -> Self {
        Src::Imm(imm)
    }
}

/// The width of a memory access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Size {
    B8 = 0x18,
    B4 = 0x00,
    B2 = 0x08,
    B1 = 0x10,
}

impl Size {
    /// The access of so many bytes; `None` unless 1, 2, 4 or 8.
    #[must_use]
    pub fn of_bytes(bytes: usize) -> Option<Size> {
        match bytes {
            1 => Some(Size::B1),
            2 => Some(Size::B2),
            4 => Some(Size::B4),
            8 => Some(Size::B8),
            _ => None,
        }
    }
}

/// Arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Alu {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Div = 0x30,
    Or = 0x40,
    And = 0x50,
    Lsh = 0x60,
    Rsh = 0x70,
    Neg = 0x80,
    Mod = 0x90,
    Xor = 0xa0,
    Mov = 0xb0,
    Arsh = 0xc0,
}

/// When a jump is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the instruction set's")]
pub enum Cond {
    Eq = 0x10,
    Gt = 0x20,
    Ge = 0x30,
    /// Some bit is in both.
    Set = 0x40,
    Ne = 0x50,
    Sgt = 0x60,
    Sge = 0x70,
    Lt = 0xa0,
    Le = 0xb0,
    Slt = 0xc0,
    Sle = 0xd0,
}

impl Cond {
    pub(crate) const ALL: [Cond; 11] = [
        Cond::Eq,
        Cond::Gt,
        Cond::Ge,
        Cond::Set,
        Cond::Ne,
        Cond::Sgt,
        Cond::Sge,
        Cond::Lt,
        Cond::Le,
        Cond::Slt,
        Cond::Sle,
    ];

    /// The opposite; `None` for [`Cond::Set`], which has none.
    #[must_use]
    pub fn inverse(self) -> Option<Cond> {
        Some(match self {
            Cond::Eq => Cond::Ne,
            Cond::Ne => Cond::Eq,
            Cond::Gt => Cond::Le,
            Cond::Le => Cond::Gt,
            Cond::Ge => Cond::Lt,
            Cond::Lt => Cond::Ge,
            Cond::Sgt => Cond::Sle,
            Cond::Sle => Cond::Sgt,
            Cond::Sge => Cond::Slt,
            Cond::Slt => Cond::Sge,
            Cond::Set => return None,
        })
    }
}

/// A kernel helper, by its number in include/uapi/linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum Helper {
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapDeleteElem = 3,
    GetPrandomU32 = 7,
    GetSmpProcessorId = 8,
    TailCall = 12,
    GetCurrentPidTgid = 14,
    GetCurrentUidGid = 15,
    ProbeReadUser = 112,
    ProbeReadKernel = 113,
    ProbeReadUserStr = 114,
    ProbeReadKernelStr = 115,
    Jiffies64 = 118,
    KtimeGetBootNs = 125,
    RingbufOutput = 130,
    RingbufReserve = 131,
    RingbufSubmit = 132,
    GetCurrentTaskBtf = 158,
}

impl Helper {
    /// The kernel's name for it.
    #[must_use]
    pub fn name(number: i32) -> Option<&'static str> {
        Some(match number {
            1 => "map_lookup_elem",
            2 => "map_update_elem",
            3 => "map_delete_elem",
            7 => "get_prandom_u32",
            8 => "get_smp_processor_id",
            12 => "tail_call",
            14 => "get_current_pid_tgid",
            15 => "get_current_uid_gid",
            112 => "probe_read_user",
            113 => "probe_read_kernel",
            114 => "probe_read_user_str",
            115 => "probe_read_kernel_str",
            118 => "jiffies64",
            125 => "ktime_get_boot_ns",
            130 => "ringbuf_output",
            131 => "ringbuf_reserve",
            132 => "ringbuf_submit",
            158 => "get_current_task_btf",
            _ => return None,
        })
    }
}

/// A map, by what it is for. Packs, buffers and programs by their number in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapRef {
    /// Generation, state words, ends, limits; several maps of them.
    Control(u8),
    /// Counters, a run of bytes a CPU; several maps of them.
    Counters(u8),
    /// Heads of rings, for each buffer one a CPU; several maps of them.
    Heads(u8),
    /// The pages of a ring of each CPU: one allocation of a buffer.
    Pages(u32),
    /// What firings tell the agent.
    Notices,
    /// The processes of COMMAND.
    Traced,
    /// The names of threads.
    Names,
    /// Scratch memory of an event's program, of so many bytes a CPU.
    Frame(u16, u32),
    /// The two slots of an event's dispatcher.
    Slots(u16),
    /// The parts of an event's program that follow its first: a map of its own for each program that is loaded.
    Parts(u16),
}

impl std::fmt::Display for MapRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MapRef::Control(number) => write!(f, "control_{number}"),
            MapRef::Counters(number) => write!(f, "counters_{number}"),
            MapRef::Heads(number) => write!(f, "heads_{number}"),
            MapRef::Pages(number) => write!(f, "pages_{number}"),
            MapRef::Notices => write!(f, "notices"),
            MapRef::Traced => write!(f, "traced"),
            MapRef::Names => write!(f, "names"),
            MapRef::Frame(program, bytes) => write!(f, "frame_{program}_{bytes}"),
            MapRef::Slots(program) => write!(f, "slots_{program}"),
            MapRef::Parts(program) => write!(f, "parts_{program}"),
        }
    }
}

/// One instruction slot of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Insn {
    /// The operation.
    pub code: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register, or what kind of constant a wide load has.
    pub src: u8,
    /// Jump or memory offset.
    pub off: i16,
    /// Constant.
    pub imm: i32,
}

impl Insn {
    /// As the kernel reads it (struct bpf_insn, little-endian).
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let off = self.off.to_le_bytes();
        let imm = self.imm.to_le_bytes();
        [
            self.code,
            self.src << 4 | self.dst,
            off[0],
            off[1],
            imm[0],
            imm[1],
            imm[2],
            imm[3],
        ]
    }
}

/// Operation codes that more than one file must recognise.
pub mod code {
    /// Load a 64-bit constant: two slots.
    pub const LD_IMM64: u8 = 0x18;
    /// Jump always, 16-bit offset.
    pub const JA: u8 = 0x05;
    /// Jump always, 32-bit offset in `imm`.
    pub const JA32: u8 = 0x06;
    /// Call a helper.
    pub const CALL: u8 = 0x85;
    /// Source of a call: a function of the program, not a helper.
    pub const PSEUDO_CALL: u8 = 1;
    /// Return.
    pub const EXIT: u8 = 0x95;
    /// Atomic operation on 64 bits; which one is in `imm`.
    pub const ATOMIC64: u8 = 0xdb;
    /// `imm` of compare-and-exchange.
    pub const CMPXCHG: i32 = 0xf1;
    /// `imm` of fetch-and-add.
    pub const FETCH_ADD: i32 = 0x01;
    /// `imm` of an add that returns nothing.
    pub const ADD: i32 = 0x00;
    /// Source of a wide load: a map by file descriptor.
    pub const PSEUDO_MAP_FD: u8 = 1;
    /// Source of a wide load: an address in the value of a one-entry array map.
    pub const PSEUDO_MAP_VALUE: u8 = 2;
}

/// A place to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label(usize);

#[derive(Debug, Clone, Copy)]
enum Target {
    None,
    Label(Label),
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    insn: Insn,
    target: Target,
    map: Option<MapRef>,
}

/// A jump that fits neither 16 bits nor what this kernel offers, or a label that nobody placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AsmError {
    /// The program is too long for this kernel's jumps.
    #[error("the program of one event has {0} instructions, and this kernel jumps at most 32,767 far")]
    TooFar(usize),
    /// A defect of the code generator.
    #[error("label {0} was used and never placed")]
    Unplaced(usize),
}

/// What costs something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priced {
    /// A hit, up to where nothing is recorded.
    Hit,
    /// A record of this event, beyond the hit.
    Record(String),
}

/// What a pack pays for something, by the constants of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// The pack's number.
    pub pack: u16,
    /// For what.
    pub of: Priced,
    /// Nanoseconds.
    pub ns: u32,
}

/// A function of a program beside its main one, as the kernel is told of it: it verifies each once for a program, for any
/// arguments, whoever calls it. Arguments in R1 to R5: pointers first; the result, a number, in R0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    /// Its name, in the kernel's listings.
    pub name: &'static str,
    /// For each pointer, how many bytes lie there. The function has to look whether it is null.
    pub memory: &'static [u32],
    /// How many numbers follow.
    pub numbers: usize,
}

/// Collects instructions.
#[derive(Debug, Default)]
pub struct Asm {
    functions: Vec<(Label, Signature)>,
    prices: Vec<Price>,
    slots: Vec<Slot>,
    labels: Vec<Option<usize>>,
    notes: Vec<(usize, String)>,
}

/// An assembled program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// The instructions, jumps resolved, map references without their file descriptors.
    pub insns: Vec<Insn>,
    /// Which wide loads name which map: (index of the first slot, map).
    pub maps: Vec<(usize, MapRef)>,
    /// What stands at an instruction, for listings: (index, text), ascending.
    pub notes: Vec<(usize, String)>,
    /// What its sections and records cost.
    pub prices: Vec<Price>,
    /// Its functions beside the main one, which begins the program: (index of the first slot, what it takes), ascending.
    pub functions: Vec<(usize, Signature)>,
}

/// Tells programs apart, whatever their listings say: the same text of all parts on the same maps has the same.
#[must_use]
pub fn digest(parts: &[Code]) -> [u64; 2] {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    [0_u64, 1].map(|seed| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        for part in parts {
            (&part.insns, &part.maps).hash(&mut hasher);
        }
        hasher.finish()
    })
}

impl Asm {
    /// A new label, not yet placed.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label here.
    pub fn bind(&mut self, label: Label) {
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(self.slots.len());
        }
    }

    /// Says what follows, in listings.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push((self.slots.len(), text.into()));
    }

    /// Says what something costs.
    pub fn price(&mut self, price: Price) {
        self.prices.push(price);
    }

    /// How many slots there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True where nothing was emitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn push(&mut self, code: u8, dst: Reg, src: u8, off: i16, imm: i32) {
        let insn = Insn {
            code,
            dst: dst as u8,
            src,
            off,
            imm,
        };
        self.slots.push(Slot {
            insn,
            target: Target::None,
            map: None,
        });
    }

    /// `dst op= src`, 64 bits.
    pub fn alu(&mut self, op: Alu, dst: Reg, src: impl Into<Src>) {
        match src.into() {
            Src::Reg(src) => self.push(0x0f | op as u8, dst, src as u8, 0, 0),
            Src::Imm(imm) => self.push(0x07 | op as u8, dst, 0, 0, imm),
        }
    }

    /// `dst op= src`, 32 bits, the upper half cleared.
    pub fn alu32(&mut self, op: Alu, dst: Reg, src: impl Into<Src>) {
        match src.into() {
            Src::Reg(src) => self.push(0x0c | op as u8, dst, src as u8, 0, 0),
            Src::Imm(imm) => self.push(0x04 | op as u8, dst, 0, 0, imm),
        }
    }

    /// `dst = src`
    pub fn mov(&mut self, dst: Reg, src: impl Into<Src>) {
        self.alu(Alu::Mov, dst, src);
    }

    /// `dst = -dst`
    pub fn neg(&mut self, dst: Reg) {
        self.push(0x87, dst, 0, 0, 0);
    }

    /// `dst = value`, in one slot where it fits.
    pub fn constant(&mut self, dst: Reg, value: u64) {
        match i32::try_from(value.cast_signed()) {
            Ok(imm) => self.mov(dst, imm),
            Err(_) => self.wide(dst, 0, value, None),
        }
    }

    fn wide(&mut self, dst: Reg, src: u8, value: u64, map: Option<MapRef>) {
        let low = Insn {
            code: code::LD_IMM64,
            dst: dst as u8,
            src,
            off: 0,
            imm: value as u32 as i32,
        };
        let high = Insn {
            code: 0,
            dst: 0,
            src: 0,
            off: 0,
            imm: (value >> 32) as u32 as i32,
        };
        self.slots.push(Slot {
            insn: low,
            target: Target::None,
            map,
        });
        self.slots.push(Slot {
            insn: high,
            target: Target::None,
            map: None,
        });
    }

    /// `dst = &map`
    pub fn map(&mut self, dst: Reg, map: MapRef) {
        self.wide(dst, code::PSEUDO_MAP_FD, 0, Some(map));
    }

    /// `dst = &map's only value + offset`
    pub fn map_value(&mut self, dst: Reg, map: MapRef, offset: u32) {
        self.wide(dst, code::PSEUDO_MAP_VALUE, u64::from(offset) << 32, Some(map));
    }

    /// `dst = *(size *)(base + off)`, zero-extended.
    pub fn load(&mut self, size: Size, dst: Reg, base: Reg, off: i16) {
        self.push(0x61 | size as u8, dst, base as u8, off, 0);
    }

    /// `*(size *)(base + off) = src`
    pub fn store(&mut self, size: Size, base: Reg, off: i16, src: Reg) {
        self.push(0x63 | size as u8, base, src as u8, off, 0);
    }

    /// `*(size *)(base + off) = imm`
    pub fn store_imm(&mut self, size: Size, base: Reg, off: i16, imm: i32) {
        self.push(0x62 | size as u8, base, 0, off, imm);
    }

    /// `if *(u64 *)(base + off) == R0 { *(u64 *)(base + off) = src }; R0 = what was there`
    pub fn cmpxchg(&mut self, base: Reg, off: i16, src: Reg) {
        self.push(code::ATOMIC64, base, src as u8, off, code::CMPXCHG);
    }

    /// `src = fetch_add(*(u64 *)(base + off), src)`
    pub fn fetch_add(&mut self, base: Reg, off: i16, src: Reg) {
        self.push(code::ATOMIC64, base, src as u8, off, code::FETCH_ADD);
    }

    /// `*(u64 *)(base + off) += src`, atomically.
    pub fn atomic_add(&mut self, base: Reg, off: i16, src: Reg) {
        self.push(code::ATOMIC64, base, src as u8, off, code::ADD);
    }

    /// Jumps.
    pub fn jump(&mut self, label: Label) {
        self.push(code::JA, Reg::R0, 0, 0, 0);
        self.aim(label);
    }

    /// Jumps if, 64 bits.
    pub fn branch(&mut self, cond: Cond, dst: Reg, src: impl Into<Src>, label: Label) {
        self.branch_of(0x05, cond, dst, src.into(), label);
    }

    /// Jumps if, 32 bits.
    pub fn branch32(&mut self, cond: Cond, dst: Reg, src: impl Into<Src>, label: Label) {
        self.branch_of(0x06, cond, dst, src.into(), label);
    }

    fn branch_of(&mut self, class: u8, cond: Cond, dst: Reg, src: Src, label: Label) {
        match src {
            Src::Reg(src) => self.push(class | 0x08 | cond as u8, dst, src as u8, 0, 0),
            Src::Imm(imm) => self.push(class | cond as u8, dst, 0, 0, imm),
        }
        self.aim(label);
    }

    fn aim(&mut self, label: Label) {
        if let Some(last) = self.slots.last_mut() {
            last.target = Target::Label(label);
        }
    }

    /// How many calls, of helpers and functions, were emitted from an instruction on, without those of some helpers.
    #[must_use]
    pub fn calls_since(&self, from: usize, without: &[Helper]) -> u64 {
        let since = self.slots.get(from..).unwrap_or_default();
        let is_counted = |slot: &&Slot| {
            let is_free = |helper: &Helper| slot.insn.src == 0 && slot.insn.imm == *helper as i32;
            slot.insn.code == code::CALL && !without.iter().any(is_free)
        };
        since.iter().filter(is_counted).count() as u64
    }

    /// Changes the constant of an instruction that was emitted.
    pub fn set_immediate(&mut self, at: usize, value: i32) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.insn.imm = value;
        }
    }

    /// Calls a helper: arguments in R1 to R5, the result in R0, R1 to R5 lost.
    pub fn call(&mut self, helper: Helper) {
        self.push(code::CALL, Reg::R0, 0, 0, helper as i32);
    }

    /// Calls a function of the program, which [`Asm::function`] places.
    pub fn call_function(&mut self, function: Label) {
        self.push(code::CALL, Reg::R0, code::PSEUDO_CALL, 0, 0);
        self.aim(function);
    }

    /// Begins a function here, behind everything that came before.
    pub fn function(&mut self, function: Label, signature: Signature) {
        self.bind(function);
        self.functions.push((function, signature));
        self.note(format!("function {}", signature.name));
    }

    /// Returns R0.
    pub fn exit(&mut self) {
        self.push(code::EXIT, Reg::R0, 0, 0, 0);
    }
}

impl Code {
    /// The bytes, with each map's file descriptor put in.
    ///
    /// # Errors
    /// The first map that `fd` does not know.
    pub fn bytes(&self, fd: impl Fn(MapRef) -> Option<i32>) -> Result<Vec<u8>, MapRef> {
        let mut insns = self.insns.clone();
        for &(at, map) in &self.maps {
            let fd = fd(map).ok_or(map)?;
            if let Some(insn) = insns.get_mut(at) {
                insn.imm = fd;
            }
        }
        Ok(insns.into_iter().flat_map(Insn::to_bytes).collect())
    }
}
