//! Text: reading it, and comparing it.
//!
//! In: expressions of type text. Out: branches, or text in this program's frame, ready to be recorded.
//!
//! Text is read with `bpf_probe_read_*_str`, which ends at the first NUL and says the length with its NUL. A fixed
//! array of a classic context, or of a structure that plain loads reach, is compared where it lies. Text that cannot be
//! read makes every comparison false, negated ones too, and is counted.

use lkst_rules::plan::{Expr, Load, Node, TaskValue};
use lkst_rules::schema::{Path, Place, Recipe, Type};

use super::{Emit, Kind, frame, slot};
use crate::asm::{Alu, Cond, Helper, Label, Reg, Size};
use crate::layout::{CUT, UNREADABLE, VARYING_MAX_BYTES};

/// Bytes of a text on the stack.
const STACK_BYTES: usize = 32;

/// Where a text lies while it is compared.
#[derive(Debug, Clone, Copy)]
enum Held {
    /// In a classic program's context, from this byte, in so many bytes.
    Context(i16, usize),
    /// In a structure that R3 points to, from this byte, in so many bytes, by plain loads.
    Array(i16, usize),
    /// On the stack.
    Stack(i16),
    /// In the frame, in this text slot.
    Frame(usize),
    /// A constant.
    Literal,
}

fn literal(expr: &Expr) -> Option<&[u8]> {
    match &expr.node {
        Node::Text(text) => Some(text),
        Node::Load(Load::EventName(name)) => Some(name.as_bytes()),
        _ => None,
    }
}

fn capacity(expr: &Expr) -> usize {
    match expr.ty {
        Type::Text { capacity } => usize::from(capacity),
        _ => VARYING_MAX_BYTES,
    }
}

fn text_slot(index: usize) -> i32 {
    i32::from(frame::TEXTS) + i32::from(frame::TEXT_BYTES) * index as i32
}

impl Emit<'_> {
    /// A condition over text: jumps to `target` where it is `truth`.
    pub(crate) fn text_condition(&mut self, expr: &Expr, truth: bool, target: Label) {
        let [yes, no, unreadable, end] = std::array::from_fn(|_| self.asm.label());
        let negated = match &expr.node {
            Node::TextEqual { left, right, negated } => {
                match (literal(left), literal(right)) {
                    (Some(left), Some(right)) => self.asm.jump(if left == right { yes } else { no }),
                    (None, Some(text)) => self.one_of(left, &[text], yes, unreadable),
                    (Some(text), None) => self.one_of(right, &[text], yes, unreadable),
                    (None, None) => self.same_text(left, right, [yes, no, unreadable]),
                }
                *negated
            }
            Node::InTexts { value, list, negated } => {
                let list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
                match literal(value) {
                    Some(text) => self.asm.jump(if list.contains(&text) { yes } else { no }),
                    None => self.one_of(value, &list, yes, unreadable),
                }
                *negated
            }
            Node::Like {
                value,
                open_start,
                body,
                open_end,
                negated,
            } => {
                match (literal(value), open_start, open_end) {
                    (Some(text), ..) => {
                        let like = like(text, *open_start, body, *open_end);
                        self.asm.jump(if like { yes } else { no });
                    }
                    (None, false, false) => self.one_of(value, &[body], yes, unreadable),
                    (None, false, true) => self.begins_with(value, body, [yes, no, unreadable]),
                    (None, true, false) => self.ends_with(value, body, [yes, no, unreadable]),
                    (None, true, true) => self.holds(value, body, [yes, no, unreadable]),
                }
                *negated
            }
            _ => false,
        };
        self.asm.bind(no);
        self.asm.jump(if negated == truth { target } else { end });
        self.asm.bind(yes);
        self.asm.jump(if negated != truth { target } else { end });
        self.asm.bind(unreadable);
        self.count_unreadable();
        self.asm.jump(if truth { end } else { target });
        self.asm.bind(end);
    }

    /// Adds one to the event's unreadable texts. `CPU` may not be known yet.
    fn count_unreadable(&mut self) {
        let Some(spot) = self.unreadable_counter else {
            return;
        };
        self.cpu_in_r0();
        self.asm
            .map_value(Reg::R1, crate::asm::MapRef::Counters(spot.map), spot.at);
        self.asm
            .alu(Alu::Mul, Reg::R0, crate::layout::counter::STRIDE.cast_signed());
        self.asm.alu(Alu::Add, Reg::R1, Reg::R0);
        self.asm.load(Size::B8, Reg::R2, Reg::R1, 0);
        self.asm.alu(Alu::Add, Reg::R2, 1);
        self.asm.store(Size::B8, Reg::R1, 0, Reg::R2);
    }

    /// R3 = the address of a text, and which helper reads there; jumps to `unreadable` where there is none.
    fn text_address(&mut self, expr: &Expr, unreadable: Label) -> Helper {
        match &expr.node {
            Node::Load(Load::Field { place, recipe, .. }) => match (self.kind, place, recipe) {
                (Kind::Classic, Some(place), _) => self.place_address(*place),
                (Kind::Typed, _, Some(recipe)) => self.address_of_recipe(recipe, unreadable),
                _ => self.asm.jump(unreadable),
            },
            Node::Load(Load::Task(TaskValue::Comm(path) | TaskValue::Ppid(path))) => {
                self.address_of_path(path, unreadable);
            }
            Node::Str { pointer, user } => {
                self.value(pointer);
                self.asm.mov(Reg::R3, Reg::R1);
                if *user {
                    return Helper::ProbeReadUserStr;
                }
            }
            _ => self.asm.jump(unreadable),
        }
        Helper::ProbeReadKernelStr
    }

    /// R3 = the address of a place in the context.
    pub(super) fn place_address(&mut self, place: Place) {
        match place {
            Place::At(offset) => {
                self.asm.mov(Reg::R3, Reg::R6);
                self.asm.alu(Alu::Add, Reg::R3, i32::from(offset));
            }
            Place::DataLoc(offset) | Place::RelLoc(offset) => {
                self.asm.load(Size::B4, Reg::R3, Reg::R6, offset.cast_signed());
                self.asm.alu(Alu::And, Reg::R3, 0xffff);
                if matches!(place, Place::RelLoc(_)) {
                    self.asm.alu(Alu::Add, Reg::R3, i32::from(offset) + 4);
                }
                self.asm.alu(Alu::Add, Reg::R3, Reg::R6);
            }
        }
    }

    /// Reads a text of at most `bytes` with its NUL into a text slot of the frame; R0 = its length with the NUL.
    /// The frame's address stays in its stack slot.
    fn read_to_frame(&mut self, expr: &Expr, index: usize, bytes: usize, unreadable: Label) {
        self.frame_in_r1();
        self.asm.store(Size::B8, Reg::R10, slot::FRAME, Reg::R1);
        let helper = self.text_address(expr, unreadable);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R1, text_slot(index));
        self.asm.mov(Reg::R2, bytes as i32);
        self.asm.call(helper);
        self.asm.branch(Cond::Slt, Reg::R0, 0, unreadable);
    }

    /// The path to an array whose bytes plain loads reach, and its offset in the last structure.
    pub(super) fn plain_array<'e>(&self, expr: &'e Expr) -> Option<(&'e Path, i16)> {
        let (Node::Load(Load::Field {
            recipe: Some(Recipe::Path(path)),
            ..
        })
        | Node::Load(Load::Task(TaskValue::Comm(path)))) = &expr.node
        else {
            return None;
        };
        let is_plain = self.kind == Kind::Typed
            && self.direct
            && !path.text_behind
            && path.bits.is_none()
            && path.hops.iter().all(|hop| hop.direct);
        let offset = i16::try_from(path.hops.last()?.offset).ok()?;
        is_plain.then_some((path, offset))
    }

    /// Brings a text to where constant offsets of it can be loaded.
    fn hold(&mut self, expr: &Expr, unreadable: Label) -> Held {
        if literal(expr).is_some() {
            return Held::Literal;
        }
        let capacity = capacity(expr);
        if let (
            Node::Load(Load::Field {
                place: Some(Place::At(offset)),
                ..
            }),
            Kind::Classic,
        ) = (&expr.node, self.kind)
            && capacity < VARYING_MAX_BYTES
        {
            return Held::Context(offset.cast_signed(), capacity);
        }
        if let Some((path, offset)) = self.plain_array(expr) {
            self.walk(path, unreadable);
            self.asm.branch(Cond::Eq, Reg::R1, 0, unreadable);
            self.asm.mov(Reg::R3, Reg::R1);
            return Held::Array(offset, capacity);
        }
        if capacity < STACK_BYTES {
            let helper = self.text_address(expr, unreadable);
            self.asm.mov(Reg::R1, Reg::R10);
            self.asm.alu(Alu::Add, Reg::R1, i32::from(slot::TEXTS));
            self.asm.mov(Reg::R2, capacity as i32 + 1);
            self.asm.call(helper);
            self.asm.branch(Cond::Slt, Reg::R0, 0, unreadable);
            return Held::Stack(slot::TEXTS);
        }
        self.read_to_frame(expr, 0, VARYING_MAX_BYTES.min(capacity + 1), unreadable);
        Held::Frame(0)
    }

    /// Jumps to `miss` unless the held text begins with these bytes, and ends there if `whole`. Uses R1 to R3.
    fn match_held(&mut self, held: Held, text: &[u8], whole: bool, miss: Label) {
        let mut bytes = text.to_vec();
        let (base, offset, room) = match held {
            Held::Context(offset, capacity) | Held::Array(offset, capacity) => {
                if text.len() > capacity {
                    return self.asm.jump(miss);
                }
                // An array that is full has no NUL.
                if whole && text.len() < capacity {
                    bytes.push(0);
                }
                let base = match held {
                    Held::Context(..) => Reg::R6,
                    _ => Reg::R3,
                };
                (base, offset, capacity)
            }
            Held::Stack(offset) => {
                if whole {
                    bytes.push(0);
                }
                if bytes.len() > STACK_BYTES {
                    return self.asm.jump(miss);
                }
                (Reg::R10, offset, STACK_BYTES)
            }
            Held::Frame(index) => {
                if whole {
                    bytes.push(0);
                }
                if bytes.len() > VARYING_MAX_BYTES {
                    return self.asm.jump(miss);
                }
                self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
                self.asm.alu(Alu::Add, Reg::R3, text_slot(index));
                (Reg::R3, 0, VARYING_MAX_BYTES)
            }
            Held::Literal => return self.asm.jump(miss),
        };
        self.match_bytes(base, offset, room, &bytes, miss);
    }

    /// Jumps to `miss` unless the memory at `base + offset`, of which `room` bytes may be loaded, holds these bytes. Uses
    /// R1 and R2.
    fn match_bytes(&mut self, base: Reg, offset: i16, room: usize, bytes: &[u8], miss: Label) {
        // The verifier refuses unaligned loads of the context.
        let aligned = base == Reg::R6;
        let mut at = 0;
        while let Some(rest) = bytes.get(at..)
            && !rest.is_empty()
        {
            let place = offset + at as i16;
            let fits = |width: usize| !aligned || place.unsigned_abs().is_multiple_of(width as u16);
            // A word of which the last bytes are shifted out, rather than two or three smaller ones.
            let in_one = rest.len() < 8 && !rest.len().is_power_of_two() && at + 8 <= room && fits(8);
            let width = match in_one {
                true => rest.len(),
                false => [8, 4, 2, 1]
                    .into_iter()
                    .find(|&w| w <= rest.len() && fits(w))
                    .unwrap_or(1),
            };
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(rest.iter().take(width)) {
                *to = *from;
            }
            let mut word = u64::from_le_bytes(word);
            let size = Size::of_bytes(width).unwrap_or(Size::B8);
            self.asm.load(size, Reg::R1, base, place);
            if in_one {
                let shift = 64 - 8 * width as i32;
                self.asm.alu(Alu::Lsh, Reg::R1, shift);
                word <<= shift;
            }
            if width == 4 {
                self.asm.branch32(Cond::Ne, Reg::R1, word as u32 as i32, miss);
            } else if let Ok(imm) = i32::try_from(word.cast_signed()) {
                self.asm.branch(Cond::Ne, Reg::R1, imm, miss);
            } else {
                self.asm.constant(Reg::R2, word);
                self.asm.branch(Cond::Ne, Reg::R1, Reg::R2, miss);
            }
            at += width;
        }
    }

    /// Jumps to `yes` where the text is one of these; falls through where it is not.
    fn one_of(&mut self, value: &Expr, list: &[&[u8]], yes: Label, unreadable: Label) {
        let held = self.hold(value, unreadable);
        for text in list {
            let next = self.asm.label();
            self.match_held(held, text, true, next);
            self.asm.jump(yes);
            self.asm.bind(next);
        }
    }

    fn begins_with(&mut self, value: &Expr, body: &[u8], [yes, no, unreadable]: [Label; 3]) {
        let held = self.hold(value, unreadable);
        self.match_held(held, body, false, no);
        self.asm.jump(yes);
    }

    fn ends_with(&mut self, value: &Expr, body: &[u8], [yes, no, unreadable]: [Label; 3]) {
        if body.len() >= VARYING_MAX_BYTES {
            return self.asm.jump(no);
        }
        self.read_to_frame(value, 0, VARYING_MAX_BYTES.min(capacity(value) + 1), unreadable);
        self.asm.alu(Alu::Sub, Reg::R0, 1 + body.len() as i32);
        self.asm.branch(Cond::Slt, Reg::R0, 0, no);
        self.asm.branch(
            Cond::Gt,
            Reg::R0,
            VARYING_MAX_BYTES as i32 - 1 - body.len() as i32,
            no,
        );
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R3, text_slot(0));
        self.asm.alu(Alu::Add, Reg::R3, Reg::R0);
        self.match_bytes(Reg::R3, 0, body.len(), body, no);
        self.asm.jump(yes);
    }

    /// Tries every place in turn: R3 the place, R4 the last place, R5 how many were tried.
    fn holds(&mut self, value: &Expr, body: &[u8], [yes, no, unreadable]: [Label; 3]) {
        if body.len() >= VARYING_MAX_BYTES {
            return self.asm.jump(no);
        }
        self.read_to_frame(value, 0, VARYING_MAX_BYTES.min(capacity(value) + 1), unreadable);
        let (top, next) = (self.asm.label(), self.asm.label());
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::Sub, Reg::R4, 1 + body.len() as i32);
        self.asm.branch(Cond::Slt, Reg::R4, 0, no);
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R3, text_slot(0));
        self.asm.mov(Reg::R5, 0);
        self.asm.bind(top);
        self.match_bytes(Reg::R3, 0, body.len(), body, next);
        self.asm.jump(yes);
        self.asm.bind(next);
        self.asm.alu(Alu::Add, Reg::R3, 1);
        self.asm.alu(Alu::Add, Reg::R5, 1);
        self.asm.branch(
            Cond::Gt,
            Reg::R5,
            VARYING_MAX_BYTES as i32 - 1 - body.len() as i32,
            no,
        );
        self.asm.branch(Cond::Ge, Reg::R4, Reg::R5, top);
        self.asm.jump(no);
    }

    /// Two texts that are both read at the hit, byte by byte up to the first NUL, which comes as late as the shorter of
    /// them allows: the verifier walks every turn of the loop.
    fn same_text(&mut self, left: &Expr, right: &Expr, [yes, no, unreadable]: [Label; 3]) {
        let most = VARYING_MAX_BYTES.min(capacity(left) + 1).min(capacity(right) + 1);
        for (index, side) in [left, right].into_iter().enumerate() {
            self.read_to_frame(side, index, VARYING_MAX_BYTES.min(capacity(side) + 1), unreadable);
        }
        let top = self.asm.label();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm.mov(Reg::R2, Reg::R1);
        self.asm.alu(Alu::Add, Reg::R1, text_slot(0));
        self.asm.alu(Alu::Add, Reg::R2, text_slot(1));
        self.asm.mov(Reg::R3, 0);
        self.asm.bind(top);
        self.asm.load(Size::B1, Reg::R4, Reg::R1, 0);
        self.asm.load(Size::B1, Reg::R5, Reg::R2, 0);
        self.asm.branch(Cond::Ne, Reg::R4, Reg::R5, no);
        self.asm.branch(Cond::Eq, Reg::R4, 0, yes);
        for reg in [Reg::R1, Reg::R2, Reg::R3] {
            self.asm.alu(Alu::Add, reg, 1);
        }
        self.asm.branch(Cond::Lt, Reg::R3, most as i32, top);
        self.asm.jump(yes);
    }

    /// Reads a text that will be recorded into text slot `index` of the frame, its length with the NUL into the
    /// length slot: cut texts and unreadable ones as `layout.rs` marks them.
    pub(crate) fn prepare_text(&mut self, expr: &Expr, index: usize) {
        let (unreadable, done, whole) = (self.asm.label(), self.asm.label(), self.asm.label());
        let length = length_slot(index);
        if let Some(text) = literal(expr) {
            self.frame_in_r1();
            self.asm.store(Size::B8, Reg::R10, slot::FRAME, Reg::R1);
            self.asm.alu(Alu::Add, Reg::R1, text_slot(index));
            let text = text.get(..VARYING_MAX_BYTES - 1).unwrap_or(text);
            for (at, byte) in text.iter().copied().chain([0]).enumerate() {
                self.asm.store_imm(Size::B1, Reg::R1, at as i16, i32::from(byte));
            }
            self.asm
                .store_imm(Size::B8, Reg::R10, length, text.len() as i32 + 1);
            return;
        }
        self.read_to_frame(expr, index, VARYING_MAX_BYTES + 1, unreadable);
        self.asm
            .branch(Cond::Le, Reg::R0, VARYING_MAX_BYTES as i32, whole);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R1, text_slot(index));
        self.store_cut(Reg::R1);
        self.asm.mov(Reg::R0, VARYING_MAX_BYTES as i32);
        self.asm.bind(whole);
        self.asm.store(Size::B8, Reg::R10, length, Reg::R0);
        self.asm.jump(done);
        self.asm.bind(unreadable);
        self.count_unreadable();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R1, text_slot(index));
        for (at, byte) in UNREADABLE.bytes().chain([0]).enumerate() {
            self.asm.store_imm(Size::B1, Reg::R1, at as i16, i32::from(byte));
        }
        self.asm
            .store_imm(Size::B8, Reg::R10, length, UNREADABLE.len() as i32 + 1);
        self.asm.bind(done);
    }

    /// Marks the 256 bytes at `base` as cut: the mark and a NUL at their end.
    pub(crate) fn store_cut(&mut self, base: Reg) {
        let at = VARYING_MAX_BYTES - CUT.len() - 1;
        for (index, byte) in CUT.bytes().chain([0]).enumerate() {
            self.asm
                .store_imm(Size::B1, base, (at + index) as i16, i32::from(byte));
        }
    }

    /// R3 = the address of a prepared text.
    pub(crate) fn prepared_text_in_r3(&mut self, index: usize) {
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R3, text_slot(index));
    }
}

/// Where the length of a prepared text is.
pub(crate) fn length_slot(index: usize) -> i16 {
    slot::LENGTHS - 8 * index as i16
}

/// `like` over constants.
fn like(text: &[u8], open_start: bool, body: &[u8], open_end: bool) -> bool {
    match (open_start, open_end) {
        (false, false) => text == body,
        (false, true) => text.starts_with(body),
        (true, false) => text.ends_with(body),
        (true, true) => body.is_empty() || text.windows(body.len()).any(|w| w == body),
    }
}
