//! What a format file's field is to a rule: its type, and where a classic program finds it.
//!
//! In: a [`FormatField`], and BTF where there is one. Out: type, sign, hexadecimal or not, enumerators.
//!
//! Whom to believe: for events of their own, size and sign of the format file, which the kernel's compiler computed.
//! For system calls the file says 8 bytes and no sign of every argument, so their types come from their names in C.

use std::sync::Arc;

use lkst_rules::schema::{Place, Symbols, Type};

use super::btf::{Btf, Kind, Type as CType};
use super::btf_path::enumerators_of;
use super::format::{FormatField, Shape};

/// A field's type and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Typed {
    /// Its type.
    pub ty: Type,
    /// Its type in C with the array's length.
    pub declared: String,
    /// Shown in hexadecimal.
    pub hex: bool,
    /// Of its enum.
    pub enumerators: Symbols,
}

/// The type of a field of an event of its own. `None` for a field without size, whose end no format file tells.
#[must_use]
pub fn of_event(field: &FormatField, btf: Option<&Btf>) -> Option<Typed> {
    let declared = &field.declared;
    let known = basic(declared, btf);
    let mut typed = Typed {
        ty: Type::U64,
        declared: declared.clone(),
        hex: false,
        enumerators: Arc::from([]),
    };
    let size = field.size;
    match field.shape {
        Shape::DataLoc | Shape::RelLoc => {
            typed.declared = field.full_type();
            typed.ty = if is_char(declared) {
                Type::TEXT
            } else {
                sequence(known)
            };
        }
        Shape::Array => {
            let element = known.map_or(1, |(bytes, _)| bytes).min(size);
            let count = size
                .checked_div(element)
                .filter(|count| count * element == size)?;
            typed.declared = format!("{declared}[{count}]");
            typed.ty = match known {
                _ if is_char(declared) => Type::Text {
                    capacity: count.min(256),
                },
                Some((_, _)) => Type::Array {
                    bits: (element * 8) as u8,
                    signed: field.signed,
                    count,
                },
                None => Type::Array {
                    bits: 8,
                    signed: false,
                    count: size,
                },
            };
        }
        Shape::Scalar => {
            let structure = is_structure(declared, btf);
            typed.hex = declared.contains('*');
            typed.enumerators = enumerators(declared, btf);
            typed.ty = match size {
                0 => return None,
                1 if is_bool(declared, btf) => Type::Bool,
                1 | 2 | 4 | 8 if !structure => Type::Int {
                    bits: (size * 8) as u8,
                    signed: field.signed,
                },
                _ => Type::Array {
                    bits: 8,
                    signed: false,
                    count: size,
                },
            };
        }
    }
    Some(typed)
}

/// The type of an argument or result of a system call, by its declared C type; what is not known is an `unsigned long`.
#[must_use]
pub fn of_syscall(field: &FormatField, btf: Option<&Btf>) -> Typed {
    let declared = &field.declared;
    let pointer = declared.contains('*');
    let ty = match basic(declared, btf) {
        _ if pointer => Type::U64,
        Some((1, _)) if is_bool(declared, btf) => Type::Bool,
        Some((bytes @ (1 | 2 | 4 | 8), signed)) => Type::Int {
            bits: (bytes * 8) as u8,
            signed,
        },
        _ => Type::U64,
    };
    // A typedef of a pointer, such as `cap_user_header_t`.
    let hidden = !pointer && resolve(declared, btf).is_some_and(|ty| ty.kind == Kind::Ptr);
    Typed {
        ty,
        declared: declared.clone(),
        hex: pointer || hidden,
        enumerators: enumerators(declared, btf),
    }
}

/// Where a classic program finds it.
#[must_use]
pub fn place(field: &FormatField) -> Place {
    match field.shape {
        Shape::Scalar | Shape::Array => Place::At(field.offset),
        Shape::DataLoc => Place::DataLoc(field.offset),
        Shape::RelLoc => Place::RelLoc(field.offset),
    }
}

fn sequence(element: Option<(u16, bool)>) -> Type {
    match element {
        Some((bytes @ (1 | 2 | 4 | 8), signed)) => Type::Sequence {
            bits: (bytes * 8) as u8,
            signed,
        },
        _ => Type::Sequence {
            bits: 8,
            signed: false,
        },
    }
}

fn is_char(declared: &str) -> bool {
    unqualified(declared) == "char"
}

fn is_bool(declared: &str, btf: Option<&Btf>) -> bool {
    matches!(unqualified(declared).as_str(), "bool" | "_Bool")
        || resolve(declared, btf).is_some_and(|ty| ty.is_bool())
}

fn is_structure(declared: &str, btf: Option<&Btf>) -> bool {
    if declared.contains('*') {
        return false;
    }
    let name = unqualified(declared);
    name.starts_with("struct ")
        || name.starts_with("union ")
        || resolve(declared, btf)
            .is_some_and(|ty| matches!(ty.kind, Kind::Struct | Kind::Union | Kind::Array))
}

fn enumerators(declared: &str, btf: Option<&Btf>) -> Symbols {
    resolve(declared, btf).map_or_else(|| Arc::from([]), enumerators_of)
}

/// The declaration without `const` and `volatile`.
fn unqualified(declared: &str) -> String {
    let words: Vec<_> = declared
        .split_whitespace()
        .filter(|word| !matches!(*word, "const" | "volatile"))
        .collect();
    words.join(" ")
}

/// The declared type in BTF, without typedefs.
fn resolve<'b>(declared: &str, btf: Option<&'b Btf>) -> Option<CType<'b>> {
    if declared.contains('*') {
        return None;
    }
    btf?.find_declared(&unqualified(declared))?.strip()
}

/// (bytes, sign) of a type that is one integer, pointer or enum.
fn basic(declared: &str, btf: Option<&Btf>) -> Option<(u16, bool)> {
    if declared.contains('*') {
        return Some((8, false));
    }
    if let Some(known) = in_c(&unqualified(declared)) {
        return Some(known);
    }
    let ty = resolve(declared, btf)?;
    match ty.kind {
        // `cpumask_t`: bit maps are written as the longs that they consist of.
        Kind::Struct if ty.name == "cpumask" => Some((8, false)),
        Kind::Int | Kind::Enum | Kind::Enum64 | Kind::Ptr => {
            Some((u16::try_from(ty.size()?).ok()?, ty.is_signed()))
        }
        _ => None,
    }
}

/// The types that need no BTF: those of C, by which words they consist of, and the kernel's own names for them.
fn in_c(declared: &str) -> Option<(u16, bool)> {
    const KERNEL: [(&str, u16, bool); 32] = [
        ("bool", 1, false),
        ("_Bool", 1, false),
        ("u8", 1, false),
        ("u16", 2, false),
        ("u32", 4, false),
        ("u64", 8, false),
        ("s8", 1, true),
        ("s16", 2, true),
        ("s32", 4, true),
        ("s64", 8, true),
        ("__u8", 1, false),
        ("__u16", 2, false),
        ("__u32", 4, false),
        ("__u64", 8, false),
        ("__s32", 4, true),
        ("__s64", 8, true),
        ("uint8_t", 1, false),
        ("uint16_t", 2, false),
        ("uint32_t", 4, false),
        ("uint64_t", 8, false),
        ("int32_t", 4, true),
        ("int64_t", 8, true),
        ("size_t", 8, false),
        ("ssize_t", 8, true),
        ("loff_t", 8, true),
        ("off_t", 8, true),
        ("pid_t", 4, true),
        ("uid_t", 4, false),
        ("gid_t", 4, false),
        ("umode_t", 2, false),
        ("dev_t", 4, false),
        ("clockid_t", 4, true),
    ];
    if let Some((_, bytes, signed)) = KERNEL.iter().find(|(name, ..)| *name == declared) {
        return Some((*bytes, *signed));
    }
    let (mut longs, mut unsigned, mut signed, mut base) = (0, false, false, None);
    for word in declared.split_whitespace() {
        match word {
            "long" => longs += 1,
            "unsigned" => unsigned = true,
            "signed" => signed = true,
            "int" | "short" | "char" if base.is_none() || (base == Some("short") && word == "int") => {
                base = base.or(Some(word));
            }
            _ => return None,
        }
    }
    match base {
        _ if longs > 0 => Some((8, !unsigned)),
        Some("char") => Some((1, signed)),
        Some("short") => Some((2, !unsigned)),
        Some(_) => Some((4, !unsigned)),
        None if unsigned || signed => Some((4, signed)),
        None => None,
    }
}

#[cfg(test)]
#[path = "field_tests.rs"]
mod tests;
