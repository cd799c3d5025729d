//! Reserving: a place for a record in the ring of this CPU.
//!
//! In: a pack's rings, and what the record may need and needs. Out: instructions that leave R9 at a record whose word says
//! *reserved*, or go to where a record that found no room is counted.
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

use super::function::Function;
use super::section::PackEnv;
use super::{Emit, slot};
use crate::asm::{Alu, Cond, Helper, Label, MapRef, Reg, Size, Src};
use crate::layout::{PAGE_BYTES, TAG_MULTIPLIER, head, page, record};
use crate::numbers::Ring;

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
    /// R9 = a reserved record of the current buffer, then to `fill`; or to `lost`.
    pub(super) fn reserve(
        &mut self,
        pack: &PackEnv<'_>,
        max: u16,
        length: Option<i32>,
        fill: Label,
        lost: Label,
    ) {
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
}
