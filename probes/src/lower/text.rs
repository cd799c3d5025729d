//! Text: reading it, and comparing it.
//!
//! In: expressions of type text. Out: branches, or text in this program's frame, ready to be recorded.
//!
//! Text is read with `bpf_probe_read_*_str`, which ends at the first NUL and says the length with its NUL. A fixed
//! array of a classic context, or of a structure that plain loads reach, is compared where it lies. Text that cannot be
//! read makes every comparison false, negated ones too, and is counted.

use lkst_rules::plan::{Expr, Load, Node, TaskValue};
use lkst_rules::schema::{Path, Place, Recipe, Type};

use super::held::{Ground, Held};
use super::{Emit, Kind, frame, slot};
use crate::asm::{Alu, Cond, Helper, Label, Reg, Size};
use crate::layout::{CUT, UNREADABLE, VARYING_MAX_BYTES};

/// Bytes of a text on the stack.
const STACK_BYTES: usize = 32;

pub(super) fn literal(expr: &Expr) -> Option<&[u8]> {
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

pub(super) fn text_slot(index: usize) -> i32 {
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
    pub(super) fn count_unreadable(&mut self) {
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
    pub(super) fn hold(&mut self, expr: &Expr, unreadable: Label) -> Held {
        if literal(expr).is_some() {
            return Held::Literal;
        }
        if let Some(index) = self.shared_text(expr, unreadable) {
            return Held::Frame(index);
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
            return Held::Stack(capacity + 1);
        }
        self.read_for_condition(expr, 0, unreadable);
        Held::Frame(0)
    }

    /// As [`Emit::read_to_frame`], as much of the text as a condition looks at.
    pub(super) fn read_for_condition(&mut self, expr: &Expr, index: usize, unreadable: Label) {
        let bytes = VARYING_MAX_BYTES.min(capacity(expr) + 1);
        self.read_to_frame(expr, index, bytes, unreadable);
    }

    /// R0 = the length of a text with its NUL. It lies in the text slot that is returned.
    fn measured(&mut self, expr: &Expr, unreadable: Label) -> usize {
        self.shared_text(expr, unreadable).unwrap_or_else(|| {
            self.read_for_condition(expr, 0, unreadable);
            0
        })
    }

    /// Jumps to `yes` where the text is one of these; falls through where it is not.
    fn one_of(&mut self, value: &Expr, list: &[&[u8]], yes: Label, unreadable: Label) {
        let held = self.hold(value, unreadable);
        let no = self.asm.label();
        let targets: Vec<(&[u8], Label)> = list.iter().map(|text| (*text, yes)).collect();
        self.search_text(held, &targets, no);
        self.asm.bind(no);
    }

    fn begins_with(&mut self, value: &Expr, body: &[u8], [yes, no, unreadable]: [Label; 3]) {
        let held = self.hold(value, unreadable);
        match held.pattern(body, true) {
            Some(pattern) => {
                let ground = self.ground(held);
                self.match_bytes(ground, 0, &pattern, no);
                self.asm.jump(yes);
            }
            None => self.asm.jump(no),
        }
    }

    fn ends_with(&mut self, value: &Expr, body: &[u8], [yes, no, unreadable]: [Label; 3]) {
        if body.len() >= VARYING_MAX_BYTES {
            return self.asm.jump(no);
        }
        let index = self.measured(value, unreadable);
        self.asm.alu(Alu::Sub, Reg::R0, 1 + body.len() as i32);
        self.asm.branch(Cond::Slt, Reg::R0, 0, no);
        self.asm.branch(
            Cond::Gt,
            Reg::R0,
            VARYING_MAX_BYTES as i32 - 1 - body.len() as i32,
            no,
        );
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R3, text_slot(index));
        self.asm.alu(Alu::Add, Reg::R3, Reg::R0);
        self.match_bytes(Ground::in_r3(body.len()), 0, body, no);
        self.asm.jump(yes);
    }

    /// Tries every place in turn: R3 the place, R4 the last place, R5 how many were tried.
    fn holds(&mut self, value: &Expr, body: &[u8], [yes, no, unreadable]: [Label; 3]) {
        if body.len() >= VARYING_MAX_BYTES {
            return self.asm.jump(no);
        }
        let index = self.measured(value, unreadable);
        let (top, next) = (self.asm.label(), self.asm.label());
        self.asm.mov(Reg::R4, Reg::R0);
        self.asm.alu(Alu::Sub, Reg::R4, 1 + body.len() as i32);
        self.asm.branch(Cond::Slt, Reg::R4, 0, no);
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
        self.asm.alu(Alu::Add, Reg::R3, text_slot(index));
        self.asm.mov(Reg::R5, 0);
        self.asm.bind(top);
        self.match_bytes(Ground::in_r3(body.len()), 0, body, next);
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
            self.read_for_condition(side, index, unreadable);
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
