//! Walks `args.prev.se.vruntime` and `current.real_parent.tgid` through the kernel's types.
//!
//! In: a [`Start`] and the steps as written. Out: a [`Resolved`] value, or a [`PathError`] that says which step ends,
//! why, and what could have stood there.
//!
//! What the verifier takes as a plain load (kernel/bpf/btf.c, `btf_struct_walk`) is told from what only
//! `bpf_probe_read_kernel` may look at by [`Hop::direct`]: a scalar, pointer or array of scalars that is a member of a
//! structure, reached from a trusted argument by pointers whose targets are structures too. Everything behind a
//! `char *`, a `void *` or an index beyond a pointer's first element is not.

use lkst_rules::schema::{Base, BitField, Hop, Path, PathError, PathStep, Recipe, Resolved, Symbols, Type};

use super::btf::{Btf, Id, Kind, MAX_CHAIN, Member, Type as CType};

/// Where a walk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// An argument of a tracepoint: its number and its type.
    Argument {
        /// Counted from 0.
        number: u8,
        /// Its type.
        ty: Id,
        /// False where it may be no pointer to such a structure at all (null, an error or a small number).
        trusted: bool,
    },
    /// The current `task_struct`.
    CurrentTask,
}

/// Pointers whose address must not be read as it stands, by structure and member: `percpu` ones are offsets into each
/// CPU's area, `user` ones lie in another address space. BTF made by gcc does not mark them, and the verifier then
/// lets a program read nonsense through them.
const SPECIAL_POINTERS: &str = include_str!("special_pointers.txt");

/// No walk looks at more members than this, however structures are nested.
const MAX_MEMBERS: usize = 100_000;

/// Where the walk stands.
struct Walk<'b> {
    /// The type of what was reached.
    ty: CType<'b>,
    base: Base,
    hops: Vec<Hop>,
    /// Bytes from the last loaded pointer; `None` where the argument's register itself was reached.
    offset: Option<u32>,
    /// Plain loads are taken at `offset`.
    direct: bool,
    bits: Option<(u32, u8)>,
    /// The member that was reached: (structure, member), to look up what is special of it.
    member: Option<(&'b str, &'b str)>,
}

/// Follows `steps`, which begin behind the argument's name or at a member of `task_struct`. `first` is the number of
/// the first of them in the path as written.
///
/// # Errors
/// A [`PathError`].
pub fn resolve(btf: &Btf, start: Start, steps: &[PathStep], first: usize) -> Result<Resolved, PathError> {
    let nowhere = || PathError {
        step: first,
        message: "the kernel's type information does not have it".to_owned(),
        known: Vec::new(),
    };
    let mut walk = match start {
        Start::Argument { number, ty, trusted } => Walk {
            ty: btf.ty(ty).ok_or_else(nowhere)?,
            base: Base::Argument(number),
            hops: Vec::new(),
            offset: None,
            direct: trusted,
            bits: None,
            member: None,
        },
        Start::CurrentTask => Walk {
            ty: btf.find(Kind::Struct, "task_struct").ok_or_else(nowhere)?,
            base: Base::CurrentTask,
            hops: Vec::new(),
            offset: Some(0),
            direct: true,
            bits: None,
            member: None,
        },
    };
    for (index, step) in steps.iter().enumerate() {
        let taken = match step {
            PathStep::Name(name) => walk.name(btf, name),
            PathStep::Index(number) => walk.index(*number),
        };
        taken.map_err(|(message, known)| PathError {
            step: first + index,
            message,
            known,
        })?;
    }
    let last = first + steps.len().saturating_sub(1);
    walk.value().map_err(|(message, known)| PathError {
        step: last,
        message,
        known,
    })
}

/// The members that `.name` could be behind a value of this type, through one pointer and anonymous members: their
/// names and their types in C.
#[must_use]
pub fn members(btf: &Btf, ty: Id) -> Vec<(String, String)> {
    let stripped = btf.ty(ty).and_then(CType::strip);
    let target = match stripped {
        Some(t) if t.kind == Kind::Ptr => t.target().and_then(CType::strip),
        other => other,
    };
    let named = target.map(|t| named_members(btf, t)).unwrap_or_default();
    let declared = |id| btf.ty(id).map_or_else(|| "?".to_owned(), CType::declared);
    named
        .into_iter()
        .map(|member| (member.name.to_owned(), declared(member.ty)))
        .collect()
}

fn names_of(btf: &Btf, ty: CType<'_>) -> Vec<String> {
    named_members(btf, ty)
        .into_iter()
        .map(|member| member.name.to_owned())
        .collect()
}

/// The named members of a structure and of its anonymous members, in the order in which they are written.
fn named_members<'b>(btf: &'b Btf, ty: CType<'b>) -> Vec<Member<'b>> {
    fn go<'b>(btf: &'b Btf, ty: CType<'b>, depth: usize, found: &mut Vec<Member<'b>>, budget: &mut usize) {
        for member in ty.members() {
            let Some(left) = budget.checked_sub(1) else { return };
            *budget = left;
            if !member.name.is_empty() {
                found.push(member);
            } else if let Some(nested) = btf
                .ty(member.ty)
                .and_then(CType::strip)
                .filter(|_| depth < MAX_CHAIN)
            {
                go(btf, nested, depth + 1, found, budget);
            }
        }
    }
    let mut found = Vec::new();
    go(btf, ty, 0, &mut found, &mut MAX_MEMBERS.to_owned());
    found
}

/// The member of that name, by way of anonymous members; its offset counts from the start of `ty`. With it, whether
/// the verifier finds the same one there: of a union it only ever looks at the first member.
fn find_member<'b>(btf: &'b Btf, ty: CType<'b>, name: &str) -> Option<(Member<'b>, bool)> {
    fn go<'b>(
        btf: &'b Btf,
        ty: CType<'b>,
        name: &str,
        depth: usize,
        budget: &mut usize,
    ) -> Option<(Member<'b>, bool)> {
        let plain = |index: usize| ty.kind == Kind::Struct || index == 0;
        let mut anonymous = Vec::new();
        for (index, member) in ty.members().enumerate() {
            *budget = budget.checked_sub(1)?;
            if member.name == name {
                return Some((member, plain(index)));
            }
            if member.name.is_empty() {
                anonymous.push((index, member));
            }
        }
        if depth == MAX_CHAIN {
            return None;
        }
        anonymous.into_iter().find_map(|(index, member)| {
            let inner = btf.ty(member.ty)?.strip()?;
            let (found, found_plain) = go(btf, inner, name, depth + 1, budget)?;
            let offset_bits = found.offset_bits.checked_add(member.offset_bits)?;
            Some((Member { offset_bits, ..found }, found_plain && plain(index)))
        })
    }
    go(btf, ty, name, 0, &mut MAX_MEMBERS.to_owned())
}

/// The kind of address space of a member that is a pointer: `percpu` or `user`.
fn special(structure: &str, member: &str) -> Option<&'static str> {
    SPECIAL_POINTERS.lines().find_map(|line| {
        let (kind, place) = line.split_once(' ')?;
        let (of, name) = place.trim().split_once('.')?;
        (of == structure && name == member).then_some(kind)
    })
}

type Refusal = (String, Vec<String>);

fn refuse<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((message.into(), Vec::new()))
}

fn is_record(ty: CType<'_>) -> bool {
    matches!(ty.kind, Kind::Struct | Kind::Union)
}

impl<'b> Walk<'b> {
    /// What was reached, without typedefs and qualifiers.
    fn stripped(&self) -> Result<CType<'b>, Refusal> {
        match self.ty.strip() {
            Some(ty) => Ok(ty),
            None => refuse("its type is defined by itself"),
        }
    }

    /// Loads the pointer that was reached; what it points to is reached then.
    fn follow(&mut self, pointer: CType<'b>) -> Result<(), Refusal> {
        let Some(target) = pointer.target() else {
            return refuse("it points to nothing known");
        };
        let tagged = ["percpu", "user"].into_iter().find(|tag| target.has_tag(tag));
        match tagged.or_else(|| {
            self.member
                .and_then(|(structure, member)| special(structure, member))
        }) {
            Some("percpu") => {
                return refuse("it points into each CPU's own area, where a rule cannot follow");
            }
            Some(_) => return refuse("it points into user memory, where a path cannot follow"),
            None => {}
        }
        if let Some(offset) = self.offset {
            self.hops.push(Hop {
                offset,
                direct: self.direct,
            });
        }
        let Some(stripped) = target.strip() else {
            return refuse("its type is defined by itself");
        };
        self.direct &= is_record(stripped);
        self.ty = target;
        self.offset = Some(0);
        self.member = None;
        Ok(())
    }

    fn name(&mut self, btf: &'b Btf, name: &str) -> Result<(), Refusal> {
        let mut ty = self.stripped()?;
        if ty.kind == Kind::Ptr {
            let behind = ty.target().and_then(CType::strip);
            match behind {
                Some(target) if is_record(target) => {
                    self.follow(ty)?;
                    ty = target;
                }
                Some(target) if target.kind == Kind::Fwd => {
                    return refuse(format!(
                        "the kernel's type information does not say what `{}` holds",
                        target.declared()
                    ));
                }
                _ => {
                    return refuse(format!(
                        "what is before it is `{}`, which has no members",
                        ty.declared()
                    ));
                }
            }
        } else if !is_record(ty) {
            return refuse(format!(
                "what is before it is `{}`, which has no members",
                self.ty.declared()
            ));
        } else if self.offset.is_none() {
            return refuse(format!(
                "the argument is a `{}` by value; lkst reads structures behind pointers only",
                ty.declared()
            ));
        }
        let Some((member, plain)) = find_member(btf, ty, name) else {
            return Err((
                format!("`{}` has no member of that name", ty.declared()),
                names_of(btf, ty),
            ));
        };
        let Some(reached) = btf.ty(member.ty) else {
            return refuse("its type is missing");
        };
        let offset = self.offset.unwrap_or(0).checked_add(member.offset_bits / 8);
        let Some(offset) = offset else {
            return refuse("it lies too far within the structure");
        };
        self.offset = Some(offset);
        self.direct &= plain;
        // Bit fields count from the last whole byte, which the walk has reached.
        self.bits = member.bits.map(|width| (member.offset_bits % 8, width));
        self.ty = reached;
        self.member = Some((ty.name, member.name));
        Ok(())
    }

    fn index(&mut self, number: u64) -> Result<(), Refusal> {
        let ty = self.stripped()?;
        let element = match ty.kind {
            Kind::Array if self.offset.is_none() => return refuse("an array cannot be an argument"),
            Kind::Array => {
                let length = ty.array_length().unwrap_or(0);
                if length != 0 && number >= u64::from(length) {
                    return refuse(format!("it has {length} elements, counted from 0"));
                }
                if length == 0 {
                    self.direct = false;
                }
                ty.target()
            }
            Kind::Ptr => {
                self.follow(ty)?;
                self.direct &= number == 0;
                Some(self.ty)
            }
            _ => return refuse(format!("`{}` has no elements", self.ty.declared())),
        };
        let Some(element) = element else {
            return refuse("its elements are of an unknown type");
        };
        let Some(size) = element.size().filter(|&size| size != 0) else {
            return refuse(format!(
                "its elements, `{}`, have no known size",
                element.declared()
            ));
        };
        let distance = number
            .checked_mul(u64::from(size))
            .and_then(|d| u32::try_from(d).ok());
        let at = distance
            .zip(self.offset)
            .and_then(|(distance, offset)| offset.checked_add(distance));
        // Instructions hold an offset of 15 bits; probe reads could go on, but nothing in the kernel is that large.
        let Some(at) = at.filter(|&at| at < 1 << 24) else {
            return refuse("the element lies too far away");
        };
        self.offset = Some(at);
        self.ty = element;
        self.member = None;
        Ok(())
    }

    /// The value that was reached.
    fn value(mut self) -> Result<Resolved, Refusal> {
        let ty = self.stripped()?;
        let declared = self.ty.declared();
        let mut path_bits = None;
        let mut text_behind = false;
        let mut enumerators = Symbols::from([]);
        let mut hex = false;
        let value = if let Some((shift, width)) = self.bits {
            let (bits, shift) = self.narrow(shift, width)?;
            path_bits = Some(BitField { shift, width });
            enumerators = enumerators_of(ty);
            if ty.is_bool() {
                Type::Bool
            } else {
                Type::Int {
                    bits,
                    signed: ty.is_signed(),
                }
            }
        } else {
            match ty.kind {
                Kind::Ptr if ty.target().and_then(CType::strip).is_some_and(|t| t.is_char()) => {
                    let special = self
                        .member
                        .and_then(|(structure, member)| special(structure, member));
                    text_behind = special.is_none();
                    hex = !text_behind;
                    if text_behind { Type::TEXT } else { Type::U64 }
                }
                Kind::Ptr => {
                    hex = true;
                    Type::U64
                }
                Kind::Array => array(ty)?,
                Kind::Struct | Kind::Union => {
                    return Err((
                        format!("`{declared}` is not one value: name a member"),
                        names_of(ty.btf(), ty),
                    ));
                }
                _ => {
                    enumerators = enumerators_of(ty);
                    scalar(ty)?
                }
            }
        };
        if let Some(offset) = self.offset {
            self.hops.push(Hop {
                offset,
                direct: self.direct,
            });
        }
        let path = Path {
            base: self.base,
            hops: self.hops,
            bits: path_bits,
            text_behind,
        };
        Ok(Resolved {
            ty: value,
            declared,
            hex,
            recipe: Recipe::Path(path),
            enumerators,
        })
    }

    /// The smallest integer that holds a bit field: (its bits, the field's shift in it); moves to where it lies.
    /// It begins at the field's own first byte where it can: the verifier refuses a plain load that begins in the
    /// member before.
    fn narrow(&mut self, shift: u32, width: u8) -> Result<(u8, u8), Refusal> {
        let offset = self.offset.unwrap_or(0);
        for bits in [8u32, 16, 32, 64] {
            let unit = offset & !(bits / 8 - 1);
            let shift = (offset - unit) * 8 + shift;
            if shift + u32::from(width) <= bits {
                self.direct &= unit == offset;
                self.offset = Some(unit);
                return Ok((bits as u8, shift as u8));
            }
        }
        refuse("it is a bit field that no aligned integer holds")
    }
}

fn scalar(ty: CType<'_>) -> Result<Type, Refusal> {
    match (ty.kind, ty.size()) {
        (Kind::Int, Some(1)) if ty.is_bool() => Ok(Type::Bool),
        (Kind::Int | Kind::Enum | Kind::Enum64, Some(size @ (1 | 2 | 4 | 8))) => Ok(Type::Int {
            bits: (size * 8) as u8,
            signed: ty.is_signed(),
        }),
        (Kind::Int, Some(16)) => Ok(Type::Array {
            bits: 8,
            signed: false,
            count: 16,
        }),
        (Kind::Void, _) => refuse("nothing is known of what lies there (void)"),
        _ => refuse(format!("`{}` is no value that a rule can use", ty.declared())),
    }
}

fn array(ty: CType<'_>) -> Result<Type, Refusal> {
    let length = ty.array_length().unwrap_or(0);
    let Ok(count @ 1..) = u16::try_from(length) else {
        return refuse("an array of unknown or enormous length: name an element, such as `[0]`");
    };
    let Some(element) = ty.target().and_then(CType::strip) else {
        return refuse("its elements are of an unknown type");
    };
    if element.is_char() {
        return Ok(Type::Text {
            capacity: count.min(256),
        });
    }
    match element.kind {
        Kind::Ptr => Ok(Type::Array {
            bits: 64,
            signed: false,
            count,
        }),
        Kind::Int | Kind::Enum | Kind::Enum64 => match scalar(element)? {
            Type::Int { bits, signed } => Ok(Type::Array { bits, signed, count }),
            _ => Ok(Type::Array {
                bits: 8,
                signed: false,
                count,
            }),
        },
        _ => refuse(format!(
            "an array of `{}`: name an element, such as `[0]`",
            element.declared()
        )),
    }
}

/// The enumerators of an enum, none for other types.
#[must_use]
pub fn enumerators_of(ty: CType<'_>) -> Symbols {
    ty.enumerators()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
#[path = "btf_path_tests.rs"]
mod tests;
