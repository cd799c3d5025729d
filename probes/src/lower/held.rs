//! Text that is held where plain loads reach it: compared with constants, and searched for among many.
//!
//! In: a [`Held`], as `text.rs` brings it about. Out: jumps. Texts are compared by words of eight bytes and less; of many
//! texts, the first eight bytes are looked for in a search tree, and only one that begins with them is compared further.

use std::collections::BTreeMap;

use super::text::text_slot;
use super::{Emit, slot};
use crate::asm::{Alu, Cond, Label, Reg, Size};
use crate::layout::VARYING_MAX_BYTES;

/// So many different beginnings make a tree.
const SEARCHED_MIN: usize = 4;

/// Where a text lies while it is compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Held {
    /// In a classic program's context, from this byte, in so many bytes.
    Context(i16, usize),
    /// In a structure that R3 points to, from this byte, in so many bytes, by plain loads.
    Array(i16, usize),
    /// In so many bytes at the slot for short texts.
    Stack(usize),
    /// In the frame, in this text slot.
    Frame(usize),
    /// A constant.
    Literal,
}

impl Held {
    /// Bytes that may be loaded.
    fn room(self) -> usize {
        match self {
            Held::Context(_, bytes) | Held::Array(_, bytes) | Held::Stack(bytes) => bytes,
            Held::Frame(_) => VARYING_MAX_BYTES,
            Held::Literal => 0,
        }
    }

    /// What must lie there where it is this text, or `begins` with it; `None` where that cannot be.
    pub(super) fn pattern(self, text: &[u8], begins: bool) -> Option<Vec<u8>> {
        let mut bytes = text.to_vec();
        // An array that is full has no NUL.
        let may_be_full = matches!(self, Held::Context(..) | Held::Array(..));
        let is_full = may_be_full && text.len() == self.room();
        if !(begins || is_full) {
            bytes.push(0);
        }
        (bytes.len() <= self.room()).then_some(bytes)
    }
}

/// Memory that is compared: bytes from an offset of a register on, of which so many may be loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground {
    base: Reg,
    offset: i16,
    room: usize,
}

impl Ground {
    /// So many bytes that R3 points to.
    pub(super) fn in_r3(room: usize) -> Ground {
        let (base, offset) = (Reg::R3, 0);
        Ground { base, offset, room }
    }

    /// Whether so many bytes can be loaded at once from there on: the verifier refuses unaligned loads of the context.
    fn takes(self, at: usize, width: usize) -> bool {
        let place = self.offset.unsigned_abs() as usize + at;
        at + width <= self.room && (self.base != Reg::R6 || place.is_multiple_of(width))
    }
}

/// What lies where a text is, and where to go then.
type Pattern = (Vec<u8>, Label);

/// The first eight bytes, 0 where there are fewer, the first of them the lowest.
fn first_word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

impl Emit<'_> {
    /// Where a held text can be loaded from. It may need R3.
    pub(super) fn ground(&mut self, held: Held) -> Ground {
        let (base, offset) = match held {
            Held::Context(offset, _) => (Reg::R6, offset),
            Held::Array(offset, _) => (Reg::R3, offset),
            Held::Stack(_) => (Reg::R10, slot::TEXTS),
            Held::Frame(index) => {
                self.asm.load(Size::B8, Reg::R3, Reg::R10, slot::FRAME);
                self.asm.alu(Alu::Add, Reg::R3, text_slot(index));
                (Reg::R3, 0)
            }
            Held::Literal => (Reg::R10, 0),
        };
        let room = held.room();
        Ground { base, offset, room }
    }

    /// Jumps to `miss` unless `bytes` lie there from `at` on. Uses R1 and R2.
    pub(super) fn match_bytes(&mut self, ground: Ground, mut at: usize, bytes: &[u8], miss: Label) {
        let mut rest = bytes;
        while !rest.is_empty() {
            // A word of which the last bytes are shifted out, rather than two or three smaller ones.
            let in_one = rest.len() < 8 && !rest.len().is_power_of_two() && ground.takes(at, 8);
            let width = match in_one {
                true => rest.len(),
                false => [8, 4, 2, 1]
                    .into_iter()
                    .find(|&width| width <= rest.len() && ground.takes(at, width))
                    .unwrap_or(1),
            };
            let (these, others) = rest.split_at(width);
            let mut word = first_word(these);
            let size = Size::of_bytes(width).unwrap_or(Size::B8);
            self.asm
                .load(size, Reg::R1, ground.base, ground.offset + at as i16);
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
            rest = others;
        }
    }

    /// Goes where the held text is found among the targets, all different, otherwise to `miss`. Uses R1 to R5.
    ///
    /// Where there are many, a search tree over their first eight bytes finds the one that it may be.
    pub(super) fn search_text(&mut self, held: Held, targets: &[(&[u8], Label)], miss: Label) {
        let ground = self.ground(held);
        let mut by_word: BTreeMap<u64, Vec<Pattern>> = BTreeMap::new();
        for (text, hit) in targets {
            if let Some(pattern) = held.pattern(text, false) {
                let word = first_word(&pattern);
                by_word.entry(word).or_default().push((pattern, *hit));
            }
        }
        let by_halves = ground.takes(0, 4) && ground.takes(4, 4);
        if by_word.len() < SEARCHED_MIN || !by_halves {
            for (pattern, hit) in by_word.into_values().flatten() {
                self.found(ground, 0, &pattern, hit);
            }
            return self.asm.jump(miss);
        }
        self.load_word(ground);
        if by_word.values().flatten().any(|(pattern, _)| pattern.len() < 8) {
            self.end_word();
        }
        let branches: Vec<(u64, Label, Vec<Pattern>)> = by_word
            .into_iter()
            .map(|(word, patterns)| match patterns.as_slice() {
                [(pattern, hit)] if pattern.len() <= 8 => (word, *hit, Vec::new()),
                _ => (word, self.asm.label(), patterns),
            })
            .collect();
        let words: Vec<(u64, Label)> = branches.iter().map(|(word, label, _)| (*word, *label)).collect();
        self.search(&words, miss);
        for (_, label, patterns) in branches {
            if patterns.is_empty() {
                continue;
            }
            self.asm.bind(label);
            for (pattern, hit) in patterns {
                self.found(ground, 8, &pattern, hit);
            }
            self.asm.jump(miss);
        }
    }

    /// Jumps to `hit` where the pattern's bytes from `at` on lie there. Uses R1 and R2.
    fn found(&mut self, ground: Ground, at: usize, pattern: &[u8], hit: Label) {
        let next = self.asm.label();
        self.match_bytes(ground, at, pattern.get(at..).unwrap_or_default(), next);
        self.asm.jump(hit);
        self.asm.bind(next);
    }

    /// R1 = the first eight bytes, the first of them the lowest. Uses R2.
    fn load_word(&mut self, ground: Ground) {
        let Ground { base, offset, .. } = ground;
        if ground.takes(0, 8) {
            return self.asm.load(Size::B8, Reg::R1, base, offset);
        }
        self.asm.load(Size::B4, Reg::R1, base, offset);
        self.asm.load(Size::B4, Reg::R2, base, offset + 4);
        self.asm.alu(Alu::Lsh, Reg::R2, 32);
        self.asm.alu(Alu::Or, Reg::R1, Reg::R2);
    }

    /// R1 = R1 with nothing behind its first NUL, whatever lies there. Uses R2, R4 and R5.
    ///
    /// `(w - 0x01…01) & ~w & 0x80…80` has its lowest bit in the first byte that is 0; what lies below that bit is the text.
    /// Without such a byte it is 0, and all is below.
    fn end_word(&mut self) {
        self.asm.mov(Reg::R4, Reg::R1);
        self.asm.constant(Reg::R2, 0x0101_0101_0101_0101);
        self.asm.alu(Alu::Sub, Reg::R4, Reg::R2);
        self.asm.mov(Reg::R5, Reg::R1);
        self.asm.alu(Alu::Xor, Reg::R5, -1);
        self.asm.alu(Alu::And, Reg::R4, Reg::R5);
        self.asm.constant(Reg::R2, 0x8080_8080_8080_8080);
        self.asm.alu(Alu::And, Reg::R4, Reg::R2);
        self.asm.mov(Reg::R5, Reg::R4);
        self.asm.neg(Reg::R5);
        self.asm.alu(Alu::And, Reg::R4, Reg::R5);
        self.asm.alu(Alu::Sub, Reg::R4, 1);
        self.asm.alu(Alu::And, Reg::R1, Reg::R4);
    }
}
