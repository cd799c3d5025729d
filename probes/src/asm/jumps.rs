//! Where jumps go: labels → offsets, by the shortest way.
//!
//! In: an [`Asm`] that is complete. Out: its [`Code`]. Whoever emits need not care how many jumps that takes: a jump to a
//! jump goes on at once, what no path reaches is dropped, and so are jumps to where the program goes anyway.
//!
//! A jump that does not fit 16 bits becomes a long one (`gotol`, Linux 6.6) where the kernel has it, and an error where
//! it has not.

use std::collections::BTreeSet;

use super::{Asm, AsmError, Code, Cond, Insn, Label, Slot, Target, code};

/// How far a short jump may go, where there are long ones: half of what 16 bits hold. The kernel replaces calls such as
/// a map's lookup by several instructions after it has verified a program, and refuses it ("cannot be patched due to
/// 16-bit range") where a short jump does not reach any more.
const REACH: i64 = 1 << 14;

/// The code of the conditional jump that goes the other way.
fn opposite(code: u8) -> Option<u8> {
    const OPERATION: u8 = 0xf0;
    let cond = Cond::ALL
        .into_iter()
        .find(|cond| *cond as u8 == code & OPERATION)?;
    Some(code & !OPERATION | cond.inverse()? as u8)
}

impl Asm {
    /// Resolves the jumps.
    ///
    /// # Errors
    /// [`AsmError::TooFar`] where a jump does not fit and `long_jumps` (Linux 6.6) are not to be had.
    pub fn finish(mut self, long_jumps: bool) -> Result<Code, AsmError> {
        self.thread();
        self.drop_unreachable()?;
        self.straighten();
        // Which jumps are long. Making one long moves others apart, so repeat until nothing changes.
        let mut long: BTreeSet<usize> = BTreeSet::new();
        loop {
            let places = self.places(&long);
            let mut grew = false;
            for (index, slot) in self.slots.iter().enumerate() {
                let Target::Label(label) = slot.target else {
                    continue;
                };
                // A call has 32 bits for it.
                if long.contains(&index) || slot.insn.code == code::CALL {
                    continue;
                }
                let distance = self.distance(&places, index, label)?;
                // Without long jumps all that 16 bits hold is tried; where the kernel moves things apart it says so.
                let reach = if long_jumps { REACH } else { i16::MAX.into() };
                if distance.abs() > reach {
                    if !long_jumps {
                        return Err(AsmError::TooFar(self.slots.len()));
                    }
                    long.insert(index);
                    grew = true;
                }
            }
            if !grew {
                return self.emit(&places, &long);
            }
        }
    }

    /// Drops what no path reaches: verifiers refuse it, and so nobody who emits need care whether the code before
    /// falls through.
    fn drop_unreachable(&mut self) -> Result<(), AsmError> {
        let mut reached = vec![false; self.slots.len()];
        let mut open = vec![0];
        while let Some(index) = open.pop() {
            let (Some(seen), Some(slot)) = (reached.get_mut(index), self.slots.get(index)) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            if let Target::Label(label) = slot.target {
                open.push(self.place(label).ok_or(AsmError::Unplaced(label.0))?);
            }
            if !matches!(slot.insn.code, code::JA | code::EXIT) {
                open.push(index + 1);
            }
        }
        // A function that nothing calls is no function.
        let labels = &self.labels;
        self.functions.retain(|(label, _)| {
            let place = labels.get(label.0).copied().flatten();
            place.is_some_and(|place| reached.get(place) == Some(&true))
        });
        self.keep(&reached);
        Ok(())
    }

    /// Lets a jump to a jump go where that one goes.
    fn thread(&mut self) {
        for label in (0..self.labels.len()).map(Label) {
            let mut place = self.place(label);
            // As many steps as there are jumps end every chain but a circle.
            for _ in 0..self.slots.len() {
                let slot = place.and_then(|place| self.slots.get(place));
                let Some(Slot {
                    insn,
                    target: Target::Label(next),
                    ..
                }) = slot
                else {
                    break;
                };
                let beyond = self.place(*next);
                if insn.code != code::JA || beyond.is_none() || beyond == place {
                    break;
                }
                place = beyond;
            }
            if let Some(known) = self.labels.get_mut(label.0) {
                *known = place;
            }
        }
    }

    /// Drops jumps to where the program goes anyway, and turns conditions that only jump over a jump.
    fn straighten(&mut self) {
        loop {
            let mut targets = vec![false; self.slots.len() + 1];
            for slot in &self.slots {
                if let Some(aimed) = self.place_of(slot).and_then(|place| targets.get_mut(place)) {
                    *aimed = true;
                }
            }
            let mut stays = vec![true; self.slots.len()];
            let mut turned = Vec::new();
            for (index, slot) in self.slots.iter().enumerate() {
                let Some(place) = self.place_of(slot) else {
                    continue;
                };
                let next = self.slots.get(index + 1);
                let is_aimed_at = targets.get(index + 1).copied().unwrap_or(true);
                if slot.insn.code == code::JA && place == index + 1 {
                    *stays.get_mut(index).unwrap_or(&mut true) = false;
                } else if let Some(next) = next
                    && next.insn.code == code::JA
                    && place == index + 2
                    && !is_aimed_at
                    && let Some(opposite) = opposite(slot.insn.code)
                {
                    turned.push((index, opposite, next.target));
                    *stays.get_mut(index + 1).unwrap_or(&mut true) = false;
                }
            }
            for (index, opposite, target) in turned {
                if let Some(slot) = self.slots.get_mut(index) {
                    slot.insn.code = opposite;
                    slot.target = target;
                }
            }
            if stays.iter().all(|stays| *stays) {
                return;
            }
            self.keep(&stays);
        }
    }

    fn place(&self, label: Label) -> Option<usize> {
        self.labels.get(label.0).copied().flatten()
    }

    /// Where a slot jumps to, if it does.
    fn place_of(&self, slot: &Slot) -> Option<usize> {
        match slot.target {
            Target::Label(label) => self.place(label),
            Target::None => None,
        }
    }

    /// Drops the other slots. A label on one of them moves to the next that stays.
    fn keep(&mut self, stays: &[bool]) {
        // How many slots before each one stay.
        let mut moved = Vec::with_capacity(stays.len() + 1);
        let mut stay = 0;
        for stays in stays {
            moved.push(stay);
            stay += usize::from(*stays);
        }
        moved.push(stay);
        let to = |at: usize| moved.get(at).copied().unwrap_or(stay);
        for place in self.labels.iter_mut().flatten() {
            *place = to(*place);
        }
        for (at, _) in &mut self.notes {
            *at = to(*at);
        }
        let mut stays = stays.iter();
        self.slots.retain(|_| stays.next().is_some_and(|stays| *stays));
    }

    /// Where each slot comes to lie.
    fn places(&self, long: &BTreeSet<usize>) -> Vec<i64> {
        let mut at = 0;
        let mut places = Vec::with_capacity(self.slots.len() + 1);
        for (index, slot) in self.slots.iter().enumerate() {
            places.push(at);
            // A long conditional jump is the condition over a short jump, that jump, and a long one.
            at += if long.contains(&index) && slot.insn.code != code::JA {
                3
            } else {
                1
            };
        }
        places.push(at);
        places
    }

    fn distance(&self, places: &[i64], index: usize, label: Label) -> Result<i64, AsmError> {
        let to = self.place(label).ok_or(AsmError::Unplaced(label.0))?;
        match (places.get(to), places.get(index)) {
            (Some(to), Some(from)) => Ok(to - from - 1),
            _ => Err(AsmError::Unplaced(label.0)),
        }
    }

    fn emit(&self, places: &[i64], long: &BTreeSet<usize>) -> Result<Code, AsmError> {
        let mut insns = Vec::with_capacity(self.slots.len());
        let mut maps = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(map) = slot.map {
                maps.push((insns.len(), map));
            }
            let mut insn = slot.insn;
            let Target::Label(label) = slot.target else {
                insns.push(insn);
                continue;
            };
            let distance = self.distance(places, index, label)?;
            if insn.code == code::CALL {
                insn.imm = distance as i32;
                insns.push(insn);
                continue;
            }
            if !long.contains(&index) {
                insn.off = distance as i16;
                insns.push(insn);
                continue;
            }
            let jump = |code, off, imm| Insn {
                code,
                dst: 0,
                src: 0,
                off,
                imm,
            };
            if insn.code == code::JA {
                insns.push(jump(code::JA32, 0, distance as i32));
            } else {
                insn.off = 1;
                insns.push(insn);
                insns.push(jump(code::JA, 1, 0));
                insns.push(jump(code::JA32, 0, distance as i32 - 2));
            }
        }
        let notes = self
            .notes
            .iter()
            .map(|(at, text)| (places.get(*at).copied().unwrap_or(0) as usize, text.clone()))
            .collect();
        let functions = self.functions.iter().map(|(label, signature)| {
            let place = self.place(*label).and_then(|place| places.get(place));
            let place = place.ok_or(AsmError::Unplaced(label.0))?;
            Ok((*place as usize, *signature))
        });
        Ok(Code {
            insns,
            maps,
            notes,
            prices: self.prices.clone(),
            functions: functions.collect::<Result<_, AsmError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reg;
    use super::*;

    #[test]
    fn jumps_forwards_and_backwards_are_counted_from_the_next_instruction() -> Result<(), AsmError> {
        let mut asm = Asm::default();
        let top = asm.label();
        let end = asm.label();
        asm.bind(top);
        asm.branch(Cond::Eq, Reg::R1, 7, end);
        asm.mov(Reg::R1, 7);
        asm.jump(top);
        asm.bind(end);
        asm.exit();
        let code = asm.finish(false)?;
        assert_eq!(code.insns[0].off, 2);
        assert_eq!(code.insns[2].off, -3);
        Ok(())
    }

    #[test]
    fn a_function_is_called_by_its_distance_and_kept_only_where_it_is_called() -> Result<(), AsmError> {
        let signature = |name| crate::asm::Signature {
            name,
            memory: &[8],
            numbers: 1,
        };
        let mut asm = Asm::default();
        let [called, not_called] = [asm.label(), asm.label()];
        asm.mov(Reg::R2, 1);
        asm.call_function(called);
        asm.exit();
        asm.function(not_called, signature("not_called"));
        asm.mov(Reg::R0, 0);
        asm.exit();
        asm.function(called, signature("called"));
        asm.mov(Reg::R0, 7);
        asm.exit();
        let code = asm.finish(false)?;
        assert_eq!(code.insns.len(), 5);
        let call = code.insns[1];
        assert_eq!(
            (call.code, call.src, call.imm),
            (code::CALL, code::PSEUDO_CALL, 1)
        );
        assert_eq!(code.functions, [(3, signature("called"))]);
        Ok(())
    }

    #[test]
    fn a_far_jump_needs_the_kernels_long_jump() -> Result<(), AsmError> {
        let build = || {
            let mut asm = Asm::default();
            let end = asm.label();
            asm.branch(Cond::Set, Reg::R1, 7, end);
            for _ in 0..40_000 {
                asm.mov(Reg::R0, 0);
            }
            asm.bind(end);
            asm.exit();
            asm
        };
        assert!(matches!(build().finish(false), Err(AsmError::TooFar(_))));
        let code = build().finish(true)?;
        assert_eq!((code.insns[0].off, code.insns[1].off), (1, 1));
        assert_eq!(code.insns[2].imm, 40_000);
        Ok(())
    }

    #[test]
    fn jumps_leave_room_for_what_the_kernel_puts_in() -> Result<(), AsmError> {
        let build = |between: usize| {
            let mut asm = Asm::default();
            let end = asm.label();
            asm.jump(end);
            let start = asm.label();
            asm.bind(start);
            for _ in 0..between {
                asm.mov(Reg::R0, 0);
            }
            asm.bind(end);
            asm.branch(Cond::Set, Reg::R1, 7, start);
            asm.exit();
            asm
        };
        let short = build(20_000).finish(false)?;
        assert_eq!(short.insns[0].off, 20_000);
        let long = build(20_000).finish(true)?;
        assert_eq!((long.insns[0].off, long.insns[0].imm), (0, 20_000));
        Ok(())
    }

    #[test]
    fn what_no_path_reaches_is_dropped() -> Result<(), AsmError> {
        let mut asm = Asm::default();
        let end = asm.label();
        asm.jump(end);
        asm.mov(Reg::R0, 1);
        asm.constant(Reg::R1, u64::MAX / 3);
        asm.bind(end);
        asm.exit();
        let code = asm.finish(false)?;
        assert_eq!(code.insns.len(), 1);
        Ok(())
    }

    #[test]
    fn a_jump_to_a_jump_goes_where_that_one_goes() -> Result<(), AsmError> {
        let mut asm = Asm::default();
        let [first, second, end] = std::array::from_fn(|_| asm.label());
        asm.branch(Cond::Gt, Reg::R1, 7, first);
        asm.jump(second);
        asm.bind(first);
        asm.mov(Reg::R0, 1);
        asm.bind(second);
        asm.jump(end);
        asm.bind(end);
        asm.exit();
        let code = asm.finish(false)?;
        // `if r1 <= 7` over the one instruction that is left between.
        assert_eq!(code.insns.len(), 3);
        assert_eq!(
            (code.insns[0].code, code.insns[0].off),
            (0x05 | Cond::Le as u8, 1)
        );
        Ok(())
    }

    #[test]
    fn a_jump_in_a_circle_stays_one() -> Result<(), AsmError> {
        let mut asm = Asm::default();
        let [one, other] = std::array::from_fn(|_| asm.label());
        asm.bind(one);
        asm.jump(other);
        asm.bind(other);
        asm.jump(one);
        let code = asm.finish(false)?;
        assert_eq!(code.insns.len(), 1);
        assert_eq!(code.insns[0].off, -1);
        Ok(())
    }

    #[test]
    fn a_label_without_a_place_is_an_error() -> Result<(), AsmError> {
        let mut asm = Asm::default();
        let nowhere = asm.label();
        asm.jump(nowhere);
        assert_eq!(asm.finish(true), Err(AsmError::Unplaced(0)));
        Ok(())
    }
}
