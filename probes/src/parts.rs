//! One event's program in parts: the kernel limits how many maps a program may use, and how much of it its verifier looks
//! at.
//!
//! In: what the packs want of one tracepoint. Out: the parts, each of which goes on to the next by a tail call. First those
//! that record and judge conditions, then those with the firings, into which a hit goes only where a condition holds:
//! see `lower/fire.rs`.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::asm::Code;
use crate::features::Features;
use crate::image::Attach;
use crate::lower::{
    self, Area, Entry, Firing, Kind, LowerError, Part, Piece, Section, SyscallLeaf, area, frame,
};

/// Maps that one program may use: `MAX_USED_MAPS` of include/linux/bpf_verifier.h.
const MAPS_MAX: usize = 64;
/// Parts that a hit may pass through: `MAX_TAIL_CALL_CNT` of include/linux/bpf.h, less the dispatcher's call.
const PARTS_MAX: usize = 32;
/// Rings that a part is tried with first: it uses some maps beside theirs.
const RINGS_A_PART: usize = 48;
/// Triggers whose firings are in one part: what the verifier follows in well below its million instructions.
const TRIGGERS_A_PART: usize = 64;

/// What one pack wants of a tracepoint.
pub(crate) trait Wish: Sized {
    /// Of the tracepoint, or of each of the system calls behind it: only one of them is what a hit is about.
    fn sections(&self) -> Vec<&Section<'_>>;
    /// Says where the firings of a section are.
    fn set_firing(&mut self, section: usize, firing: Firing);
    /// Lowers a part that records and judges conditions.
    fn lower(wishes: &[Self], areas: &[Area], features: &Features, part: Part) -> Result<Code, LowerError>;
}

impl Wish for Section<'_> {
    fn sections(&self) -> Vec<&Section<'_>> {
        vec![self]
    }

    fn set_firing(&mut self, _section: usize, firing: Firing) {
        self.firing = Some(firing);
    }

    fn lower(wishes: &[Self], areas: &[Area], features: &Features, part: Part) -> Result<Code, LowerError> {
        lower::program(wishes, areas, features, part)
    }
}

impl Wish for Vec<SyscallLeaf<'_>> {
    fn sections(&self) -> Vec<&Section<'_>> {
        self.iter().map(|leaf| &leaf.section).collect()
    }

    fn set_firing(&mut self, section: usize, firing: Firing) {
        if let Some(leaf) = self.get_mut(section) {
            leaf.section.firing = Some(firing);
        }
    }

    fn lower(wishes: &[Self], areas: &[Area], features: &Features, part: Part) -> Result<Code, LowerError> {
        lower::syscall_program(wishes, areas, features, part)
    }
}

fn rings(wish: &impl Wish) -> usize {
    wish.sections()
        .first()
        .map_or(1, |section| section.pack.rings.len().max(1))
}

/// Some triggers of a section of a wish, by their places.
#[derive(Debug, Clone)]
struct Slice {
    wish: usize,
    section: usize,
    triggers: Range<usize>,
    entry: Entry,
    next: Option<Entry>,
}

/// A part that judges conditions, and the firing parts that it goes to.
#[derive(Debug, Default)]
struct Group {
    wishes: Range<usize>,
    areas: Vec<Area>,
    firings: Vec<Vec<Slice>>,
    /// How many of them one hit may pass through.
    passed: usize,
}

/// Lowers what the packs want of one tracepoint, in as few parts as the kernel's limits allow.
pub(crate) fn in_parts<W: Wish>(
    attach: &Attach,
    wishes: &mut [W],
    number: u16,
    direct: bool,
    features: &Features,
) -> Result<Vec<Code>, LowerError> {
    let mut room = RINGS_A_PART;
    loop {
        let (groups, frame_bytes) = grouped(wishes, room);
        let passed = groups.iter().map(|group| 1 + group.passed).sum::<usize>();
        if passed > PARTS_MAX || frame_bytes > i16::MAX as u32 {
            return Err(LowerError::TooManyParts {
                event: format!("{}:{}", attach.system, attach.name),
                parts: passed,
            });
        }
        let part = Part {
            kind: if attach.typed { Kind::Typed } else { Kind::Classic },
            direct,
            number,
            next: None,
            frame_bytes,
        };
        let parts = lowered(wishes, &groups, features, part)?;
        let maps = |code: &Code| {
            let maps: BTreeSet<_> = code.maps.iter().map(|(_, map)| map).collect();
            maps.len()
        };
        if room == 1 || parts.iter().all(|part| maps(part) <= MAPS_MAX) {
            return Ok(parts);
        }
        room /= 2;
    }
}

/// Which wishes go together, with at most `room` rings in a part, and where each section's firings are; and the bytes of the
/// frame.
fn grouped<W: Wish>(wishes: &mut [W], room: usize) -> (Vec<Group>, u32) {
    let mut groups: Vec<Group> = Vec::new();
    let mut begin = 0;
    while begin < wishes.len() {
        let mut used = 0;
        let fits = wishes.iter().skip(begin).take_while(|wish| {
            used += rings(*wish);
            used <= room
        });
        let end = begin + fits.count().max(1);
        groups.push(Group {
            wishes: begin..end,
            ..Group::default()
        });
        begin = end;
    }
    let mut frame_bytes = frame::AREAS as u32;
    // Places among the parts after the first.
    let mut place = groups.len().saturating_sub(1);
    for group in &mut groups {
        let mut at = frame::AREAS as u32;
        let mut used = 0;
        let mut full = TRIGGERS_A_PART;
        for wish in group.wishes.clone() {
            let Some(of_pack) = wishes.get_mut(wish) else {
                continue;
            };
            let counts: Vec<usize> = of_pack.sections().iter().map(|s| s.plan.triggers.len()).collect();
            let most = counts.iter().copied().max().unwrap_or(0);
            if most == 0 {
                continue;
            }
            let area = Area { at: at as i16 };
            group.areas.push(area);
            at += area::bytes(most);
            group.passed += most.div_ceil(TRIGGERS_A_PART) + 1;
            let rings = rings(of_pack);
            // A part that another pack's firings are in has to have room for the rings of this one.
            used += rings;
            if used > room {
                full = TRIGGERS_A_PART;
            }
            for (section, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
                let mut begin = 0;
                while begin < count {
                    if full >= TRIGGERS_A_PART {
                        group.firings.push(Vec::new());
                        (full, used) = (0, rings);
                    }
                    let last = group.firings.len() - 1;
                    let Some(part) = group.firings.last_mut() else {
                        break;
                    };
                    let end = count.min(begin + TRIGGERS_A_PART - full);
                    let entry = Entry {
                        part: (place + last) as u16,
                        piece: part.len() as u16,
                    };
                    if begin == 0 {
                        of_pack.set_firing(section, Firing { area, first: entry });
                    }
                    // What does not fit goes on at the beginning of a new part.
                    let next = Entry {
                        part: entry.part + 1,
                        piece: 0,
                    };
                    part.push(Slice {
                        wish,
                        section,
                        triggers: begin..end,
                        entry,
                        next: (end < count).then_some(next),
                    });
                    full += end - begin;
                    begin = end;
                }
            }
        }
        group.passed = group.passed.min(group.firings.len());
        place += group.firings.len();
        frame_bytes = frame_bytes.max(at);
    }
    (groups, frame_bytes.next_multiple_of(64))
}

fn lowered<W: Wish>(
    wishes: &[W],
    groups: &[Group],
    features: &Features,
    part: Part,
) -> Result<Vec<Code>, LowerError> {
    let mut parts = Vec::new();
    let mut firing_parts = Vec::new();
    for (number, group) in (0..).zip(groups) {
        let part = Part {
            next: (number as usize + 1 < groups.len()).then_some(number),
            ..part
        };
        let some = wishes.get(group.wishes.clone()).unwrap_or_default();
        parts.push(W::lower(some, &group.areas, features, part)?);
        for slices in &group.firings {
            let pieces: Vec<Piece<'_>> = slices
                .iter()
                .filter_map(|slice| {
                    let sections = wishes.get(slice.wish)?.sections();
                    Some(Piece {
                        section: sections.get(slice.section)?,
                        range: slice.triggers.clone(),
                        entry: slice.entry,
                        next: slice.next,
                    })
                })
                .collect();
            firing_parts.push(lower::firings(&pieces, &group.areas, features, part)?);
        }
    }
    parts.append(&mut firing_parts);
    Ok(parts)
}
