//! Recording: reserve, fill, commit.
//!
//! In: a [`Record`]: a layout and where each column comes from. Out: instructions that write it into the pack's
//! current buffer on this CPU, count it, and fall through; a record that finds no room is counted as lost.
//!
//! Interrupts and NMIs nest in a writer on the same CPU, a reader looks while it goes on, a crash stops it anywhere.
//! Therefore: a place is taken by compare-and-exchange of `pos`; its word says *reserved* before anything else is
//! written, and *committed* last; `busy` says where the outermost writer is, so that a nested one never laps into its
//! page. The order of these stores is the protocol: do not change it without the stress test of the test crate.
//!
//! **A stream** does not overwrite itself: the page that a record would be the first in must not hold, a lap ago, what
//! lies at or above `floor`, which the reader raises behind what it has written. That is asked only on the way into a
//! page, and whoever moves `pos` into one, a nested writer too, has come that way. `floor` only rises, so the answer
//! stays true until the exchange, and for all that follow in the page. The reader takes nothing at or above
//! `busy >> 16` where somebody is writing, nor at or above `pos` otherwise: below that all was committed, since nested
//! writers end before the outermost one. So `floor` never passes a writer, and the page of an interrupted one is never
//! entered anew: the check against `busy`, which other rings need, follows from this.
//! On entering a quarter of the ring the reader is woken, after the exchange and before the record's word is stored.
//! Interrupts that nest there find a writer at work, as anywhere else between the two.

use lkst_rules::plan::{Expr, Load, Node, TaskValue};
use lkst_rules::schema::{Place, Recipe};

use super::field::size_of_bits;
use super::function::Function;
use super::section::PackEnv;
use super::text::length_slot;
use super::value::constant;
use super::{Emit, Kind, slot};
use crate::arena::Spot;
use crate::asm::{Alu, Cond, Helper, Label, MapRef, Reg, Size, Src};
use crate::layout::{
    Encoding, PAGE_BYTES, RecordLayout, TAG_MULTIPLIER, VARYING_MAX_BYTES, counter, head, page, record,
};
use crate::numbers::Ring;

/// Where a column's value comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'p> {
    /// An expression over the hit.
    Expr(&'p Expr),
    /// A constant.
    Constant(u64),
    /// A slot of the stack.
    Slot(i16),
}

/// A record to be made.
#[derive(Debug, Clone)]
pub(crate) struct Record<'p> {
    /// Its layout.
    pub(crate) layout: RecordLayout,
    /// The values in the layout's order.
    pub(crate) values: Vec<Value<'p>>,
    /// The event's counters.
    pub(crate) counters: Spot,
    /// It is lkst's own record: programs of several events count it, and one may interrupt another.
    pub(crate) own: bool,
    /// The id lies in the slot `ID`: several events of one shape share this code.
    pub(crate) shared: bool,
}

/// How a place is taken: by constants and slots in the way of a hit, by registers in the function that firings call.
#[derive(Debug, Clone, Copy)]
struct Claim {
    /// The last byte of a page that the record may begin at.
    last: Src,
    /// What it needs; `None`: the slot `LENGTH`.
    length: Option<Src>,
    /// Pages of its ring.
    pages: Src,
    /// Tries left; `None`: the slot `TRIES`, in the way of a hit.
    tries: Option<Reg>,
    /// The ring is a stream.
    stream: bool,
}

const PAGE: i32 = PAGE_BYTES as i32;
const HEADER: i32 = page::HEADER_BYTES as i32;

impl Emit<'_> {
    /// Writes a record. Needs the clock and `WHO`. On success `then` is emitted with R9 = the committed record; R9 is
    /// lost afterwards.
    pub(crate) fn record(&mut self, pack: &PackEnv<'_>, record: &Record<'_>, then: impl FnOnce(&mut Self)) {
        self.asm.note(format!("record {}", record.layout.name));
        let from = self.asm.len();
        let [lost, done, fill] = std::array::from_fn(|_| self.asm.label());
        self.prepare(record);
        let length = self.length(record);
        self.reserve(pack, record.layout.max_bytes, length, fill, lost);
        self.asm.bind(fill);
        self.asm.store(Size::B8, Reg::R9, record::TIME as i16, Reg::R8);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::WHO);
        self.asm.store(Size::B4, Reg::R9, record::TID as i16, Reg::R1);
        self.asm.alu(Alu::Rsh, Reg::R1, 32);
        self.asm.store(Size::B4, Reg::R9, record::PID as i16, Reg::R1);
        self.fill(record);
        self.commit(record);
        self.charge_record(pack, record, from);
        then(self);
        self.asm.jump(done);
        self.asm.bind(lost);
        self.count_record(record, counter::LOST);
        self.asm.bind(done);
    }

    fn count_record(&mut self, record: &Record<'_>, which: u32) {
        match (record.shared, record.own) {
            (true, _) => self.count_named(record.counters.map, which),
            (false, true) => self.count_shared(record.counters.plus(which)),
            (false, false) => self.count(record.counters.plus(which)),
        }
    }

    /// Reads what varies in length, so that the record can be reserved at the length it needs.
    fn prepare(&mut self, record: &Record<'_>) {
        let varying = record
            .layout
            .columns
            .iter()
            .zip(&record.values)
            .filter(|(c, _)| c.offset.is_none());
        for (index, (column, value)) in varying.enumerate() {
            let Value::Expr(expr) = value else { continue };
            match column.encoding {
                Encoding::Sequence { .. } => self.prepare_sequence(expr, index),
                _ => self.prepare_text(expr, index),
            }
        }
    }

    /// The length slot = the bytes of a `__data_loc` array, cut to 256.
    fn prepare_sequence(&mut self, expr: &Expr, index: usize) {
        let fits = self.asm.label();
        match place_of(expr, self.kind) {
            Some(Place::DataLoc(offset) | Place::RelLoc(offset)) => {
                self.asm.load(Size::B4, Reg::R1, Reg::R6, offset.cast_signed());
                self.asm.alu(Alu::Rsh, Reg::R1, 16);
                self.asm.branch(Cond::Le, Reg::R1, VARYING_MAX_BYTES as i32, fits);
            }
            _ => self.asm.mov(Reg::R1, 0),
        }
        self.asm.mov(
            Reg::R1,
            if place_of(expr, self.kind).is_some() {
                VARYING_MAX_BYTES as i32
            } else {
                0
            },
        );
        self.asm.bind(fits);
        self.asm.store(Size::B8, Reg::R10, length_slot(index), Reg::R1);
    }

    /// The record's length: `Some` where it is constant, otherwise in the slot `LENGTH`.
    fn length(&mut self, record: &Record<'_>) -> Option<i32> {
        let varying = record.layout.columns.iter().filter(|c| c.offset.is_none());
        let fixed = i32::from(record.layout.fixed_bytes);
        let round = record::ALIGN as i32 - 1;
        let mut any = false;
        for (index, column) in varying.enumerate() {
            let count = if matches!(column.encoding, Encoding::Sequence { .. }) {
                2
            } else {
                0
            };
            self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
            if any {
                self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
            } else {
                self.asm.mov(Reg::R1, Reg::R2);
            }
            if count > 0 {
                self.asm.alu(Alu::Add, Reg::R1, count);
            }
            any = true;
        }
        if !any {
            return Some((fixed + round) & !round);
        }
        self.asm.alu(Alu::Add, Reg::R1, fixed + round);
        self.asm.alu(Alu::And, Reg::R1, !round);
        self.asm.store(Size::B8, Reg::R10, slot::LENGTH, Reg::R1);
        None
    }

    /// R9 = a reserved record of the current buffer, then to `fill`; or to `lost`.
    fn reserve(&mut self, pack: &PackEnv<'_>, max: u16, length: Option<i32>, fill: Label, lost: Label) {
        let labels: Vec<Label> = pack.rings.iter().map(|_| self.asm.label()).collect();
        if pack.rings.len() > 1 {
            self.asm.mov(Reg::R1, Reg::R7);
            self.asm.alu(
                Alu::Rsh,
                Reg::R1,
                crate::layout::state::CURRENT_SHIFT.cast_signed(),
            );
            self.asm.alu(Alu::And, Reg::R1, 7);
            for (buffer, label) in labels.iter().enumerate().skip(1) {
                match pack.rings.get(buffer) {
                    Some(Some(_)) => self.asm.branch(Cond::Eq, Reg::R1, buffer as i32, *label),
                    // A buffer that these rules do not have any more: until recording is back in one that they have
                    // there is no place for this record.
                    _ => self.asm.branch(Cond::Eq, Reg::R1, buffer as i32, lost),
                }
            }
        }
        let rings: Vec<(Label, Ring)> = labels
            .into_iter()
            .zip(&pack.rings)
            .filter_map(|(label, ring)| Some((label, (*ring)?)))
            .collect();
        for (place, (label, ring)) in rings.iter().enumerate() {
            self.asm.bind(*label);
            self.reserve_in(pack, *ring, max, length, lost);
            if place + 1 < rings.len() {
                self.asm.jump(fill);
            }
        }
    }

    /// Takes a place, and makes a record of it: R9 = the record.
    fn reserve_in(&mut self, pack: &PackEnv<'_>, ring: Ring, max: u16, length: Option<i32>, lost: Label) {
        let [no_room, entered, got] = std::array::from_fn(|_| self.asm.label());
        self.asm
            .map_value(Reg::R5, MapRef::Heads(ring.heads.map), ring.heads.at);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::CPU);
        self.asm
            .alu(Alu::Lsh, Reg::R1, head::BYTES.trailing_zeros().cast_signed());
        self.asm.alu(Alu::Add, Reg::R5, Reg::R1);
        self.asm.store(Size::B8, Reg::R10, slot::HEAD, Reg::R5);
        if self.functions.is_some() && !ring.stream {
            self.call_claim(ring, max, length, lost);
        } else {
            let claim = Claim {
                last: (PAGE - i32::from(max)).into(),
                length: length.map(Src::Imm),
                pages: ring.pages.cast_signed().into(),
                tries: None,
                stream: ring.stream,
            };
            self.asm.store_imm(Size::B8, Reg::R10, slot::TRIES, 4);
            self.claim(claim, [got, entered, no_room]);
            self.asm.bind(no_room);
            self.no_room(lost);
            self.asm.jump(lost);
        }
        if ring.stream {
            self.asm.bind(entered);
            self.entered(pack, ring);
        }
        self.asm.bind(got);
        self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::AT);
        self.asm.alu(Alu::Rsh, Reg::R3, 12);
        self.word(length);
        self.page(ring, max, lost);
    }

    /// As [`Emit::claim`], by the function; to `lost` where it finds no room.
    fn call_claim(&mut self, ring: Ring, max: u16, length: Option<i32>, lost: Label) {
        self.asm.mov(Reg::R1, Reg::R5);
        self.asm.mov(Reg::R2, i32::from(max));
        match length {
            Some(length) => self.asm.mov(Reg::R3, length),
            None => self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::LENGTH),
        }
        self.asm.mov(Reg::R4, ring.pages.cast_signed());
        self.call_function(Function::Claim);
        self.asm.branch(Cond::Eq, Reg::R0, 0, lost);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.alu(Alu::And, Reg::R1, 1);
        self.asm.store(Size::B8, Reg::R10, slot::OUTER, Reg::R1);
        self.asm.alu(Alu::Rsh, Reg::R0, 1);
        self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R0);
        self.asm.load(Size::B8, Reg::R5, Reg::R10, slot::HEAD);
    }

    /// R1 the head, R2 the most that the record may need, R3 what it needs, R4 the pages of its ring. Returns twice its
    /// position, and 1 more where an interrupted writer is on the way; or goes to `failed`.
    pub(super) fn claim_function(&mut self, failed: Label) {
        let [got, outermost, no_room] = std::array::from_fn(|_| self.asm.label());
        let (last, length, pages, tries) = (Reg::R6, Reg::R7, Reg::R8, Reg::R9);
        self.asm.mov(Reg::R5, Reg::R1);
        self.asm.mov(last, PAGE);
        self.asm.alu(Alu::Sub, last, Reg::R2);
        self.asm.mov(length, Reg::R3);
        self.asm.mov(pages, Reg::R4);
        self.asm.mov(tries, 4);
        let claim = Claim {
            last: last.into(),
            length: Some(length.into()),
            pages: pages.into(),
            tries: Some(tries),
            stream: false,
        };
        self.claim(claim, [got, got, no_room]);
        self.asm.bind(got);
        self.asm.mov(Reg::R0, Reg::R1);
        self.asm.alu(Alu::Sub, Reg::R0, length);
        self.asm.alu(Alu::Lsh, Reg::R0, 1);
        self.asm.branch(Cond::Eq, Reg::R4, 0, outermost);
        self.asm.alu(Alu::Or, Reg::R0, 1);
        self.asm.bind(outermost);
        self.asm.exit();
        self.asm.bind(no_room);
        self.no_room(failed);
        self.asm.jump(failed);
    }

    /// Takes a place in the ring of the head at R5. To `got`, with R1 the position behind it and R4 not 0 where an interrupted
    /// writer is on the way; of a stream that enters a page to `entered`; or to `no_room`. In the way of a hit the position and
    /// what was `busy` are then in the slots `AT` and `OUTER`. R0 old position, R1 the record's, R2 and R3 scratch.
    fn claim(&mut self, claim: Claim, [got, entered, no_room]: [Label; 3]) {
        let [again, next_page, placed] = std::array::from_fn(|_| self.asm.label());
        self.asm.load(Size::B8, Reg::R4, Reg::R5, head::BUSY as i16);
        if claim.tries.is_none() {
            // Once more, to be tested at the end: of one value the verifier would know there which way it went here, and
            // follow all that lies between once for each. Whoever nests between the two loads leaves it as it was.
            self.asm.load(Size::B8, Reg::R1, Reg::R5, head::BUSY as i16);
            self.asm.store(Size::B8, Reg::R10, slot::OUTER, Reg::R1);
        }

        self.asm.bind(again);
        self.asm.load(Size::B8, Reg::R0, Reg::R5, head::POS as i16);
        self.asm.mov(Reg::R1, Reg::R0);
        self.asm.mov(Reg::R2, Reg::R0);
        self.asm.alu(Alu::And, Reg::R2, PAGE - 1);
        self.asm.branch(Cond::Lt, Reg::R2, HEADER, next_page);
        self.asm.branch(Cond::Gt, Reg::R2, claim.last, next_page);
        self.asm.bind(placed);
        self.exchange(claim, [got, again, no_room]);

        // Apart from the way that most take. Also so that the verifier comes to it last: it knows more of a place at a
        // page's begin, and has then seen all that follows for any place.
        self.asm.bind(next_page);
        self.asm.alu(Alu::Add, Reg::R1, PAGE - 1);
        self.asm.alu(Alu::And, Reg::R1, -PAGE);
        self.asm.alu(Alu::Add, Reg::R1, HEADER);
        if claim.stream {
            self.unless_drained(claim, no_room);
            self.exchange(claim, [entered, again, no_room]);
        } else {
            self.asm.jump(placed);
        }
    }

    /// Counts a record that found no room. To `nested` where an interrupted writer is on the way, whose place stays known.
    fn no_room(&mut self, nested: Label) {
        // Atomic: a nested writer may find no room between our load and our store.
        self.asm.mov(Reg::R1, 1);
        self.asm.atomic_add(Reg::R5, head::LOST as i16, Reg::R1);
        self.asm.branch(Cond::Ne, Reg::R4, 0, nested);
        self.asm.store_imm(Size::B8, Reg::R5, head::BUSY as i16, 0);
    }

    /// To `no_room` where the page of R1 still holds, a lap ago, what was not drained. Uses R2 and R3.
    fn unless_drained(&mut self, claim: Claim, no_room: Label) {
        self.asm.mov(Reg::R3, Reg::R1);
        self.asm.alu(Alu::Rsh, Reg::R3, 12);
        self.asm.load(Size::B8, Reg::R2, Reg::R5, head::FLOOR as i16);
        self.asm.alu(Alu::Rsh, Reg::R2, 12);
        self.asm.alu(Alu::Sub, Reg::R3, Reg::R2);
        self.asm.branch(Cond::Ge, Reg::R3, claim.pages, no_room);
    }

    /// `op= length`. Uses R2.
    fn by_length(&mut self, claim: Claim, op: Alu, to: Reg) {
        let length = claim.length.unwrap_or_else(|| {
            self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::LENGTH);
            Reg::R2.into()
        });
        self.asm.alu(op, to, length);
    }

    /// Moves `pos` from R0 behind a record at R1. Goes to `got`; to `again` where somebody
    /// else moved it; or to `no_room`.
    fn exchange(&mut self, claim: Claim, [got, again, no_room]: [Label; 3]) {
        let [nested, exchange] = std::array::from_fn(|_| self.asm.label());
        if claim.tries.is_none() {
            self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
        }
        // In a stream the interrupted writer's page is not drained, so that nobody enters it anew: `unless_drained`.
        self.asm
            .branch(Cond::Ne, Reg::R4, 0, if claim.stream { exchange } else { nested });
        self.asm.mov(Reg::R3, Reg::R0);
        self.asm.alu(Alu::Lsh, Reg::R3, 16);
        self.by_length(claim, Alu::Or, Reg::R3);
        self.asm.store(Size::B8, Reg::R5, head::BUSY as i16, Reg::R3);
        if !claim.stream {
            self.asm.jump(exchange);

            self.asm.bind(nested);
            // Never into the interrupted writer's page.
            self.asm.mov(Reg::R3, Reg::R1);
            self.asm.alu(Alu::Rsh, Reg::R3, 12);
            self.asm.mov(Reg::R2, Reg::R4);
            self.asm.alu(Alu::Rsh, Reg::R2, 28);
            self.asm.alu(Alu::Sub, Reg::R3, Reg::R2);
            self.asm.branch(Cond::Ge, Reg::R3, claim.pages, no_room);
        }

        self.asm.bind(exchange);
        self.by_length(claim, Alu::Add, Reg::R1);
        self.asm.mov(Reg::R3, Reg::R0);
        self.asm.cmpxchg(Reg::R5, head::POS as i16, Reg::R1);
        self.asm.branch(Cond::Eq, Reg::R0, Reg::R3, got);
        match claim.tries {
            Some(tries) => {
                self.asm.alu(Alu::Sub, tries, 1);
                self.asm.branch(Cond::Ne, tries, 0, again);
            }
            None => self.try_again(again),
        }
        self.asm.jump(no_room);
    }

    /// A stream has entered a page: the reader is told where that begins a quarter of the ring. R5 stays.
    fn entered(&mut self, pack: &PackEnv<'_>, ring: Ring) {
        let quarter = (ring.pages / 4).max(1);
        let no_quarter = self.asm.label();
        if quarter > 1 {
            self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::AT);
            self.asm.alu(Alu::Rsh, Reg::R3, 12);
            match quarter.is_power_of_two() {
                true => self.asm.alu(Alu::And, Reg::R3, quarter.cast_signed() - 1),
                false => self.asm.alu(Alu::Mod, Reg::R3, quarter.cast_signed()),
            }
            self.asm.branch(Cond::Ne, Reg::R3, 0, no_quarter);
        }
        self.wake_reader(pack.index);
        self.asm.load(Size::B8, Reg::R5, Reg::R10, slot::HEAD);
        self.asm.bind(no_quarter);
    }

    /// The slot `WORD` = length and tag. R3 the page's sequence number, kept; R5 the head.
    fn word(&mut self, length: Option<i32>) {
        // As `layout::tag`.
        self.asm.mov(Reg::R1, Reg::R3);
        self.asm.alu32(Alu::Add, Reg::R1, 1);
        self.asm.alu32(Alu::Mul, Reg::R1, TAG_MULTIPLIER.cast_signed());
        self.asm.load(Size::B4, Reg::R2, Reg::R5, head::SALT as i16);
        self.asm.alu32(Alu::Xor, Reg::R1, Reg::R2);
        self.asm.alu32(Alu::Or, Reg::R1, 1);
        self.asm.alu(Alu::Lsh, Reg::R1, 32);
        match length {
            Some(length) => self.asm.alu(Alu::Or, Reg::R1, length << 16),
            None => {
                self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::LENGTH);
                self.asm.alu(Alu::Lsh, Reg::R2, 16);
                self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
            }
        }
        self.asm.store(Size::B8, Reg::R10, slot::WORD, Reg::R1);
    }

    /// R9 = the record, its word saying *reserved*, its page's head saying which page it is. R3 the page's sequence
    /// number.
    fn page(&mut self, Ring { map, pages, .. }: Ring, max: u16, lost: Label) {
        self.asm.mov(Reg::R9, Reg::R3);
        match pages.is_power_of_two() {
            true => self.asm.alu32(Alu::And, Reg::R3, pages.cast_signed() - 1),
            false => self.asm.alu(Alu::Mod, Reg::R3, pages.cast_signed()),
        }
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::CPU);
        self.asm.alu(Alu::Mul, Reg::R1, pages.cast_signed());
        self.asm.alu(Alu::Add, Reg::R3, Reg::R1);
        self.asm.store(Size::B4, Reg::R10, slot::KEY, Reg::R3);
        self.asm.map(Reg::R1, MapRef::Pages(map));
        self.asm.mov(Reg::R2, Reg::R10);
        self.asm.alu(Alu::Add, Reg::R2, i32::from(slot::KEY));
        self.asm.call(Helper::MapLookupElem);
        self.asm.branch(Cond::Eq, Reg::R0, 0, lost);
        self.asm.mov(Reg::R1, Reg::R0);
        // It lies in the page, see `reserve_in`; the verifier is told here, where all ways have met.
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::AT);
        self.asm.alu(Alu::And, Reg::R2, PAGE - 1);
        self.asm.branch(Cond::Gt, Reg::R2, PAGE - i32::from(max), lost);
        self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::WORD);
        self.asm.store(Size::B8, Reg::R1, record::ID as i16, Reg::R2);
        // Only whoever comes first in a page says something new; to look whether that is us takes longer than to say it.
        self.asm.store(Size::B8, Reg::R0, page::SEQ as i16, Reg::R9);
        self.asm.mov(Reg::R9, Reg::R1);
    }

    /// The varying columns first: their texts wait in this program's frame, where a condition among the fixed columns
    /// may read texts of its own.
    fn fill(&mut self, record: &Record<'_>) {
        let columns = || record.layout.columns.iter().zip(&record.values);
        let varying = columns().filter(|(column, _)| column.offset.is_none());
        for (index, (column, value)) in varying.enumerate() {
            if index == 0 {
                self.asm.mov(Reg::R1, Reg::R9);
                self.asm
                    .alu(Alu::Add, Reg::R1, i32::from(record.layout.fixed_bytes));
                self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
            }
            if let Value::Expr(expr) = value {
                self.fill_varying(&column.encoding, expr, index);
            }
        }
        for (column, value) in columns() {
            let Some(offset) = column.offset else { continue };
            let offset = offset.cast_signed();
            match (&column.encoding, value) {
                (Encoding::Int { bits, .. }, value) => {
                    self.fill_int(size_of_bits(*bits), value, offset);
                }
                (Encoding::Enum(_), value) => self.fill_int(Size::B4, value, offset),
                (encoding, Value::Expr(expr)) => {
                    let bytes = encoding.fixed().map_or(0, |(_, bytes)| bytes);
                    self.fill_bytes(expr, bytes, offset);
                }
                _ => {}
            }
        }
    }

    fn fill_int(&mut self, size: Size, value: &Value<'_>, offset: i16) {
        match value {
            Value::Constant(value) => self.asm.constant(Reg::R1, *value),
            Value::Slot(at) => self.asm.load(Size::B8, Reg::R1, Reg::R10, *at),
            Value::Expr(expr) => match (&expr.node, constant(expr)) {
                (_, Some(value)) if i32::try_from(value.cast_signed()).is_ok() => {
                    self.asm.store_imm(size, Reg::R9, offset, value as u32 as i32);
                    return;
                }
                // What is stored is as wide as what is loaded, so its sign does not matter.
                (Node::Load(load), _) => self.load(load, expr.ty, true),
                _ => self.value(expr),
            },
        }
        self.asm.store(size, Reg::R9, offset, Reg::R1);
    }

    /// A fixed array: word by word where plain loads reach it, by a probe read elsewhere.
    fn fill_bytes(&mut self, expr: &Expr, bytes: usize, offset: i16) {
        if let Some(Place::At(from)) = place_of(expr, self.kind)
            && bytes <= 64
        {
            let mut at = 0;
            while at < bytes {
                let place = usize::from(from) + at;
                let width = [8, 4, 2, 1]
                    .into_iter()
                    .find(|w| *w <= bytes - at && place.is_multiple_of(*w))
                    .unwrap_or(1);
                let size = Size::of_bytes(width).unwrap_or(Size::B1);
                self.asm.load(size, Reg::R1, Reg::R6, place as i16);
                self.asm.store(size, Reg::R9, offset + at as i16, Reg::R1);
                at += width;
            }
            return;
        }
        if let (
            Node::Load(Load::Field {
                recipe: Some(Recipe::AnySyscallArguments),
                ..
            }),
            Kind::Typed,
        ) = (&expr.node, self.kind)
        {
            return self.store_syscall_arguments(offset);
        }
        let (null, done) = (self.asm.label(), self.asm.label());
        if let Some((path, from)) = self.plain_array(expr)
            && bytes <= 64
            && bytes.is_multiple_of(8)
        {
            self.walk(path, null);
            self.asm.branch(Cond::Eq, Reg::R1, 0, null);
            for at in (0..bytes as i16).step_by(8) {
                self.asm.load(Size::B8, Reg::R2, Reg::R1, from + at);
                self.asm.store(Size::B8, Reg::R9, offset + at, Reg::R2);
            }
            self.asm.jump(done);
            self.zeros(null, bytes, offset);
            self.asm.bind(done);
            return;
        }
        match (&expr.node, place_of(expr, self.kind)) {
            (_, Some(place)) => self.place_address(place),
            (
                Node::Load(Load::Field {
                    recipe: Some(recipe), ..
                }),
                _,
            ) => self.address_of_recipe(recipe, null),
            (Node::Load(Load::Task(TaskValue::Comm(path))), _) => self.address_of_path(path, null),
            _ => self.asm.jump(null),
        }
        self.asm.mov(Reg::R1, Reg::R9);
        self.asm.alu(Alu::Add, Reg::R1, i32::from(offset));
        self.asm.mov(Reg::R2, bytes as i32);
        // Where it fails the kernel fills the destination with zeros.
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.jump(done);
        self.zeros(null, bytes, offset);
        self.asm.bind(done);
    }

    /// At `null`: so many zeros in the record.
    fn zeros(&mut self, null: Label, bytes: usize, offset: i16) {
        self.asm.bind(null);
        let mut at = 0;
        while at < bytes {
            let place = offset as usize + at;
            let width = [8, 4, 2, 1]
                .into_iter()
                .find(|w| *w <= bytes - at && place.is_multiple_of(*w))
                .unwrap_or(1);
            let size = Size::of_bytes(width).unwrap_or(Size::B1);
            self.asm.store_imm(size, Reg::R9, place as i16, 0);
            at += width;
        }
    }

    /// A varying column at the cursor, which lies in the slot `AT`.
    fn fill_varying(&mut self, encoding: &Encoding, expr: &Expr, index: usize) {
        if let Encoding::Sequence { bits, .. } = encoding {
            self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AT);
            self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
            self.asm
                .alu(Alu::Rsh, Reg::R2, (bits / 8).trailing_zeros().cast_signed());
            self.asm.store(Size::B2, Reg::R1, 0, Reg::R2);
            self.asm.alu(Alu::Add, Reg::R1, 2);
            self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
            match place_of(expr, self.kind) {
                Some(place) => self.place_address(place),
                None => self.asm.mov(Reg::R3, 0),
            }
        } else {
            self.prepared_text_in_r3(index);
        }
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AT);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
        self.asm.call(Helper::ProbeReadKernel);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::AT);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, length_slot(index));
        self.asm.alu(Alu::Add, Reg::R1, Reg::R2);
        self.asm.store(Size::B8, Reg::R10, slot::AT, Reg::R1);
    }

    fn commit(&mut self, record: &Record<'_>) {
        self.asm.note("commit");
        let nested = self.asm.label();
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::WORD);
        if record.shared {
            self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::ID);
            self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
        } else {
            self.asm.alu(Alu::Or, Reg::R1, i32::from(record.layout.id));
        }
        self.asm.store(Size::B8, Reg::R9, record::ID as i16, Reg::R1);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::OUTER);
        self.asm.branch(Cond::Ne, Reg::R1, 0, nested);
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::HEAD);
        self.asm.store_imm(Size::B8, Reg::R1, head::BUSY as i16, 0);
        self.asm.bind(nested);
        self.count_record(record, counter::RECORDED);
    }
}

/// Where a field lies in a classic program's context.
fn place_of(expr: &Expr, kind: Kind) -> Option<Place> {
    match (&expr.node, kind) {
        (Node::Load(Load::Field { place, .. }), Kind::Classic) => *place,
        _ => None,
    }
}
