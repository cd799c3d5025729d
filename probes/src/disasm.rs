//! A program as people read it: one instruction a line, in the notation of the kernel's own listings, with what each
//! part is for beside it.
//!
//! In: a [`Code`]. Out: text. Nothing is executed or changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::asm::{Code, Helper, Insn, MapRef, code};

/// The listing of a program.
#[must_use]
pub fn listing(program: &Code) -> String {
    let maps: BTreeMap<usize, MapRef> = program.maps.iter().copied().collect();
    let targets: BTreeSet<i64> = program
        .insns
        .iter()
        .enumerate()
        .filter_map(|(at, insn)| jump_target(at, *insn))
        .collect();
    let mut notes = program.notes.iter().peekable();
    let mut out = String::new();
    let mut wide = false;
    for (at, insn) in program.insns.iter().enumerate() {
        while let Some((_, text)) = notes.next_if(|(place, _)| *place <= at) {
            let _ = writeln!(out, "; {text}");
        }
        if std::mem::take(&mut wide) {
            continue;
        }
        let mark = if targets.contains(&(at as i64)) { ':' } else { ' ' };
        let text = if insn.code == code::LD_IMM64 {
            wide = true;
            let high = program.insns.get(at + 1).map_or(0, |next| next.imm);
            wide_load(*insn, high, maps.get(&at))
        } else {
            instruction(at, *insn)
        };
        let _ = writeln!(out, "{at:>6}{mark} {text}");
    }
    out
}

fn jump_target(at: usize, insn: Insn) -> Option<i64> {
    let class = insn.code & 7;
    match insn.code {
        code::CALL if insn.src != code::PSEUDO_CALL => None,
        code::EXIT => None,
        code::CALL | code::JA32 => Some(at as i64 + 1 + i64::from(insn.imm)),
        _ if class == 5 || class == 6 => Some(at as i64 + 1 + i64::from(insn.off)),
        _ => None,
    }
}

fn wide_load(insn: Insn, high: i32, map: Option<&MapRef>) -> String {
    let dst = insn.dst;
    match (insn.src, map) {
        (code::PSEUDO_MAP_FD, Some(map)) => format!("r{dst} = &{map}"),
        (code::PSEUDO_MAP_VALUE, Some(map)) => format!("r{dst} = &{map}[0] + {high}"),
        _ => {
            let value = u64::from(insn.imm.cast_unsigned()) | u64::from(high.cast_unsigned()) << 32;
            format!("r{dst} = {value:#x}")
        }
    }
}

fn instruction(at: usize, insn: Insn) -> String {
    let Insn {
        dst, src, off, imm, ..
    } = insn;
    let class = insn.code & 7;
    let size = match insn.code & 0x18 {
        0x00 => "u32",
        0x08 => "u16",
        0x10 => "u8",
        _ => "u64",
    };
    match class {
        1 => format!("r{dst} = *({size} *)(r{src} {off:+})"),
        2 => format!("*({size} *)(r{dst} {off:+}) = {imm}"),
        3 if insn.code == code::ATOMIC64 => match imm {
            code::CMPXCHG => format!("r0 = cmpxchg((u64 *)(r{dst} {off:+}), r0, r{src})"),
            code::FETCH_ADD => format!("r{src} = fetch_add((u64 *)(r{dst} {off:+}), r{src})"),
            _ => format!("lock *(u64 *)(r{dst} {off:+}) += r{src}"),
        },
        3 => format!("*({size} *)(r{dst} {off:+}) = r{src}"),
        4 | 7 => arithmetic(insn, if class == 4 { 'w' } else { 'r' }),
        5 | 6 => jump(at, insn, if class == 6 { 'w' } else { 'r' }),
        _ => format!(".byte {:02x?}", insn.to_bytes()),
    }
}

fn arithmetic(insn: Insn, reg: char) -> String {
    let Insn { dst, src, imm, .. } = insn;
    let right = if insn.code & 8 == 0 {
        imm.to_string()
    } else {
        format!("{reg}{src}")
    };
    let op = match insn.code & 0xf0 {
        0x00 => "+=",
        0x10 => "-=",
        0x20 => "*=",
        0x30 => "/=",
        0x40 => "|=",
        0x50 => "&=",
        0x60 => "<<=",
        0x70 => ">>=",
        0x80 => return format!("{reg}{dst} = -{reg}{dst}"),
        0x90 => "%=",
        0xa0 => "^=",
        0xb0 => "=",
        _ => "s>>=",
    };
    format!("{reg}{dst} {op} {right}")
}

fn jump(at: usize, insn: Insn, reg: char) -> String {
    let Insn { dst, src, imm, .. } = insn;
    let to = jump_target(at, insn).unwrap_or(0);
    match insn.code {
        code::CALL if insn.src == code::PSEUDO_CALL => return format!("call function at {to}"),
        code::CALL => return format!("call {}", Helper::name(imm).unwrap_or("?")),
        code::EXIT => return "exit".to_owned(),
        code::JA | code::JA32 => return format!("goto {to}"),
        _ => {}
    }
    let right = if insn.code & 8 == 0 {
        imm.to_string()
    } else {
        format!("{reg}{src}")
    };
    let op = match insn.code & 0xf0 {
        0x10 => "==",
        0x20 => ">",
        0x30 => ">=",
        0x40 => "&",
        0x50 => "!=",
        0x60 => "s>",
        0x70 => "s>=",
        0xa0 => "<",
        0xb0 => "<=",
        0xc0 => "s<",
        _ => "s<=",
    };
    format!("if {reg}{dst} {op} {right} goto {to}")
}
