//! A reader of BTF, the kernel's own description of its types (Documentation/bpf/btf.rst).
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: [`Type`]s by number or by kind and name, their members,
//! enumerators and parameters. Walking paths through them is `btf_path.rs`.
//!
//! INVARIANT: total on any bytes. Every read is bounded by the input, every chain of types by [`MAX_CHAIN`].
//! INVARIANT: beside the bytes themselves an index costs eight bytes a type and four a bucket, and is made in one
//! pass (10 ms for the 127,000 types of Linux 6.18 with everything built in).

use std::fmt::Write as _;

/// A type's number; 0 is `void`.
pub type Id = u32;

/// The longest chain of typedefs, qualifiers, arrays and nested structures that is followed. C code has fewer than
/// ten; a chain that is longer is a loop.
pub const MAX_CHAIN: usize = 64;

const MAGIC: u16 = 0xEB9F;
const TYPE_BYTES: usize = 12;

/// Why bytes are not BTF that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Shorter than its own header says.
    #[error("the type information ends within {what}")]
    Truncated {
        /// Within what.
        what: &'static str,
    },
    /// Not BTF, or of the other byte order.
    #[error("this is not BTF of this machine's byte order (it begins with {magic:#06x})")]
    Magic {
        /// What was there instead.
        magic: u16,
    },
    /// A kind that this reader does not know, whose size is therefore unknown.
    #[error("type {id} is of kind {kind}, which is newer than this program")]
    Kind {
        /// The type.
        id: Id,
        /// The kind.
        kind: u8,
    },
}

/// The kinds of type, numbered as in include/uapi/linux/btf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the kernel's header")]
pub enum Kind {
    Void = 0,
    Int = 1,
    Ptr = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Fwd = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    Datasec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        use Kind::*;
        const KINDS: [Kind; 20] = [
            Void, Int, Ptr, Array, Struct, Union, Enum, Fwd, Typedef, Volatile, Const, Restrict, Func,
            FuncProto, Var, Datasec, Float, DeclTag, TypeTag, Enum64,
        ];
        KINDS.get(usize::from(number)).copied()
    }

    /// Bytes that follow the fixed part: (once, for each of `vlen`).
    fn extra(self) -> (usize, usize) {
        match self {
            Kind::Int | Kind::Var | Kind::DeclTag => (4, 0),
            Kind::Array => (12, 0),
            Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => (0, 12),
            Kind::Enum | Kind::FuncProto => (0, 8),
            _ => (0, 0),
        }
    }

    /// Kinds that [`Btf::find`] finds.
    fn indexed(self) -> bool {
        matches!(
            self,
            Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Typedef | Kind::Func
        )
    }
}

/// All types of a kernel.
pub struct Btf {
    data: Box<[u8]>,
    /// Where the strings begin and end in `data`.
    strings: (usize, usize),
    /// Where each type begins in `data`; type 1 is at index 0.
    types: Vec<u32>,
    /// By hash of kind and name: the newest type of that hash, 0 for none. A power of two long.
    buckets: Vec<Id>,
    /// For each type the next older one of its bucket. As long as `types`.
    chain: Vec<Id>,
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Btf({} types)", self.types.len())
    }
}

/// One type.
#[derive(Clone, Copy)]
pub struct Type<'b> {
    btf: &'b Btf,
    /// Its number.
    pub id: Id,
    /// Its kind.
    pub kind: Kind,
    /// Its name, empty where it has none.
    pub name: &'b str,
    vlen: usize,
    flag: bool,
    size_or_type: u32,
    /// Where the part behind the fixed one begins.
    rest: usize,
}

/// A member of a structure or union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'b> {
    /// Its name, empty for an anonymous structure or union.
    pub name: &'b str,
    /// Its type.
    pub ty: Id,
    /// Bits from the start of the structure.
    pub offset_bits: u32,
    /// How many bits, for a bit field.
    pub bits: Option<u8>,
}

impl Btf {
    /// Reads the header and indexes the types.
    ///
    /// # Errors
    /// [`BtfError`] where the bytes are not BTF, or cut short.
    pub fn parse(data: impl Into<Box<[u8]>>) -> Result<Btf, BtfError> {
        let data = data.into();
        let magic = u16_at(&data, 0).ok_or(BtfError::Truncated { what: "its header" })?;
        if magic != MAGIC {
            return Err(BtfError::Magic { magic });
        }
        // struct btf_header: u16 magic, u8 version, u8 flags, u32 hdr_len, type_off, type_len, str_off, str_len;
        // offsets count from the header's end.
        let header = |at: usize| {
            u32_at(&data, at)
                .map(|v| v as usize)
                .ok_or(BtfError::Truncated { what: "its header" })
        };
        let end_of_header = header(4)?;
        let section = |offset: usize, length: usize, what| {
            let start = end_of_header.checked_add(offset);
            let end = start.and_then(|s| s.checked_add(length));
            match (start, end) {
                (Some(start), Some(end)) if end <= data.len() => Ok((start, end)),
                _ => Err(BtfError::Truncated { what }),
            }
        };
        let (mut at, types_end) = section(header(8)?, header(12)?, "its types")?;
        let strings = section(header(16)?, header(20)?, "its names")?;

        let mut types = Vec::with_capacity((types_end - at) / 40);
        while at < types_end {
            let truncated = BtfError::Truncated { what: "its types" };
            let Some(info) = u32_at(&data, at + 4) else {
                return Err(truncated);
            };
            let number = ((info >> 24) & 0x1f) as u8;
            let Some(kind) = Kind::of(number).filter(|&k| k != Kind::Void) else {
                return Err(BtfError::Kind {
                    id: types.len() as Id + 1,
                    kind: number,
                });
            };
            let (once, each) = kind.extra();
            let bytes = TYPE_BYTES + once + each * (info & 0xffff) as usize;
            if bytes > types_end - at {
                return Err(truncated);
            }
            types.push(at as u32);
            at += bytes;
        }
        let count = types.len();
        let mut btf = Btf {
            data,
            strings,
            types,
            buckets: vec![0; count.next_power_of_two()],
            chain: vec![0; count],
        };
        btf.index();
        Ok(btf)
    }

    fn index(&mut self) {
        let mask = self.buckets.len() - 1;
        for index in 0..self.types.len() {
            let id = index as Id + 1;
            let Some(bucket) = self
                .ty(id)
                .filter(|ty| ty.kind.indexed() && !ty.name.is_empty())
                .map(|ty| hash(ty.kind, ty.name) as usize & mask)
            else {
                continue;
            };
            if let (Some(head), Some(next)) = (self.buckets.get_mut(bucket), self.chain.get_mut(index)) {
                *next = std::mem::replace(head, id);
            }
        }
    }

    /// How many types there are, `void` not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// All types in order.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        (1..=self.types.len() as Id).filter_map(|id| self.ty(id))
    }

    /// The type of that number. `None` where there is no such type; 0 is `void`.
    #[must_use]
    pub fn ty(&self, id: Id) -> Option<Type<'_>> {
        if id == 0 {
            return Some(Type {
                btf: self,
                id,
                kind: Kind::Void,
                name: "void",
                vlen: 0,
                flag: false,
                size_or_type: 0,
                rest: 0,
            });
        }
        let at = *self.types.get(id as usize - 1)? as usize;
        let info = u32_at(&self.data, at + 4)?;
        Some(Type {
            btf: self,
            id,
            kind: Kind::of(((info >> 24) & 0x1f) as u8)?,
            name: self.string(u32_at(&self.data, at)?),
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 != 0,
            size_or_type: u32_at(&self.data, at + 8)?,
            rest: at + TYPE_BYTES,
        })
    }

    /// The first type of that kind and name: where several structures share a name, the one that was written first.
    #[must_use]
    pub fn find(&self, kind: Kind, name: &str) -> Option<Type<'_>> {
        let mut found = None;
        let mut next = *self
            .buckets
            .get(hash(kind, name) as usize & (self.buckets.len() - 1))?;
        // INVARIANT: a chain leads to ever smaller numbers, so it ends.
        while next != 0 {
            let ty = self.ty(next)?;
            if ty.kind == kind && ty.name == name {
                found = Some(ty);
            }
            next = *self.chain.get(next as usize - 1)?;
        }
        found
    }

    /// The type that a name means in C: `struct x`, `union x`, `enum x`, a typedef or a basic type.
    #[must_use]
    pub fn find_declared(&self, declared: &str) -> Option<Type<'_>> {
        let tagged = |tag| declared.strip_prefix(tag).map(str::trim);
        if let Some(name) = tagged("struct ") {
            self.find(Kind::Struct, name)
        } else if let Some(name) = tagged("union ") {
            self.find(Kind::Union, name)
        } else if let Some(name) = tagged("enum ") {
            self.find(Kind::Enum, name)
                .or_else(|| self.find(Kind::Enum64, name))
        } else {
            self.find(Kind::Typedef, declared)
                .or_else(|| self.find(Kind::Int, declared))
        }
    }

    fn string(&self, offset: u32) -> &str {
        let (start, end) = self.strings;
        let bytes = start
            .checked_add(offset as usize)
            .and_then(|s| self.data.get(s..end))
            .unwrap_or(&[]);
        let length = bytes.iter().position(|&b| b == 0).unwrap_or(0);
        bytes
            .get(..length)
            .and_then(|b| std::str::from_utf8(b).ok())
            .unwrap_or("")
    }
}

impl<'b> Type<'b> {
    /// The types that it belongs to.
    #[must_use]
    pub fn btf(&self) -> &'b Btf {
        self.btf
    }

    /// The type that this one points to, qualifies, names or consists of. `None` for the others.
    #[must_use]
    pub fn target(&self) -> Option<Type<'b>> {
        match self.kind {
            Kind::Ptr
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::TypeTag
            | Kind::Func => self.btf.ty(self.size_or_type),
            Kind::Array => self.btf.ty(u32_at(&self.btf.data, self.rest)?),
            _ => None,
        }
    }

    /// The type itself, without typedefs and qualifiers. `None` where they form a loop.
    #[must_use]
    pub fn strip(self) -> Option<Type<'b>> {
        let mut ty = self;
        for _ in 0..MAX_CHAIN {
            match ty.kind {
                Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {
                    ty = ty.target()?
                }
                _ => return Some(ty),
            }
        }
        None
    }

    /// True where a qualifier of this type, which is a pointer's target, is the type tag `tag` (`user`, `percpu`).
    #[must_use]
    pub fn has_tag(self, tag: &str) -> bool {
        let mut ty = self;
        for _ in 0..MAX_CHAIN {
            match ty.kind {
                Kind::TypeTag if ty.name == tag => return true,
                Kind::TypeTag | Kind::Volatile | Kind::Const | Kind::Restrict => match ty.target() {
                    Some(target) => ty = target,
                    None => return false,
                },
                _ => return false,
            }
        }
        false
    }

    /// How many bytes a value of it takes. `None` where it has no size.
    #[must_use]
    pub fn size(self) -> Option<u32> {
        let mut ty = self;
        let mut count = 1u32;
        for _ in 0..MAX_CHAIN {
            match ty.kind {
                Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                    return ty.size_or_type.checked_mul(count);
                }
                Kind::Ptr => return count.checked_mul(8),
                Kind::Array => {
                    count = count.checked_mul(ty.array_length()?)?;
                    ty = ty.target()?;
                }
                _ => ty = ty.strip().filter(|s| s.id != ty.id)?,
            }
        }
        None
    }

    /// The number of an array's elements; 0 where it is open.
    #[must_use]
    pub fn array_length(&self) -> Option<u32> {
        (self.kind == Kind::Array)
            .then(|| u32_at(&self.btf.data, self.rest + 8))
            .flatten()
    }

    /// Sign of an integer or an enum.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        match self.kind {
            Kind::Int => self.int_encoding() & 1 != 0,
            Kind::Enum | Kind::Enum64 => self.flag,
            _ => false,
        }
    }

    /// True for `bool`.
    #[must_use]
    pub fn is_bool(&self) -> bool {
        self.kind == Kind::Int && self.int_encoding() & 4 != 0
    }

    /// True for `char` (not `unsigned char`, which holds numbers).
    #[must_use]
    pub fn is_char(&self) -> bool {
        self.kind == Kind::Int && self.name == "char"
    }

    fn int_encoding(&self) -> u32 {
        u32_at(&self.btf.data, self.rest).map_or(0, |word| (word >> 24) & 0xf)
    }

    /// The members of a structure or union.
    pub fn members(&self) -> impl Iterator<Item = Member<'b>> + use<'b> {
        let ty = *self;
        let count = if matches!(ty.kind, Kind::Struct | Kind::Union) {
            ty.vlen
        } else {
            0
        };
        (0..count).map_while(move |index| {
            let at = ty.rest + index * 12;
            let offset = u32_at(&ty.btf.data, at + 8)?;
            // With the flag the upper eight bits are a bit field's width, 0 for an ordinary member.
            let width = if ty.flag { (offset >> 24) as u8 } else { 0 };
            Some(Member {
                name: ty.btf.string(u32_at(&ty.btf.data, at)?),
                ty: u32_at(&ty.btf.data, at + 4)?,
                offset_bits: if ty.flag { offset & 0x00ff_ffff } else { offset },
                bits: (width != 0).then_some(width),
            })
        })
    }

    /// The enumerators of an enum.
    pub fn enumerators(&self) -> impl Iterator<Item = (&'b str, i64)> + use<'b> {
        let ty = *self;
        let count = if matches!(ty.kind, Kind::Enum | Kind::Enum64) {
            ty.vlen
        } else {
            0
        };
        (0..count).map_while(move |index| {
            let data = &ty.btf.data;
            if ty.kind == Kind::Enum64 {
                let at = ty.rest + index * 12;
                let low = u64::from(u32_at(data, at + 4)?);
                let high = u64::from(u32_at(data, at + 8)?);
                return Some((ty.btf.string(u32_at(data, at)?), (high << 32 | low) as i64));
            }
            let at = ty.rest + index * 8;
            let value = u32_at(data, at + 4)?;
            let value = if ty.flag {
                i64::from(value as i32)
            } else {
                i64::from(value)
            };
            Some((ty.btf.string(u32_at(data, at)?), value))
        })
    }

    /// The parameters of a function's prototype: (name, type).
    pub fn parameters(&self) -> impl Iterator<Item = (&'b str, Id)> + use<'b> {
        let ty = *self;
        let count = if ty.kind == Kind::FuncProto { ty.vlen } else { 0 };
        (0..count).map_while(move |index| {
            let at = ty.rest + index * 8;
            Some((
                ty.btf.string(u32_at(&ty.btf.data, at)?),
                u32_at(&ty.btf.data, at + 4)?,
            ))
        })
    }

    /// The type as it is written in C, without the name of what has it.
    #[must_use]
    pub fn declared(self) -> String {
        let mut behind = String::new();
        let mut constant = "";
        let mut ty = self;
        for _ in 0..MAX_CHAIN {
            let next = match ty.kind {
                Kind::Ptr => {
                    // A pointer to an array or function would need the name within; no tracepoint has one by name.
                    behind.insert(0, '*');
                    ty.target()
                }
                Kind::Array => {
                    match ty.array_length() {
                        Some(length) if length > 0 => _ = write!(behind, "[{length}]"),
                        _ => behind.push_str("[]"),
                    }
                    ty.target()
                }
                Kind::Const if ty.target().is_some_and(|t| t.kind == Kind::Ptr) => {
                    behind.insert_str(0, " const");
                    ty.target()
                }
                Kind::Const => {
                    constant = "const ";
                    ty.target()
                }
                Kind::Volatile | Kind::Restrict | Kind::TypeTag => ty.target(),
                _ => {
                    let anonymous = if ty.name.is_empty() { "{…}" } else { ty.name };
                    let name = match ty.kind {
                        Kind::Struct => format!("struct {anonymous}"),
                        Kind::Union => format!("union {anonymous}"),
                        Kind::Fwd => format!("{} {anonymous}", if ty.flag { "union" } else { "struct" }),
                        Kind::Enum | Kind::Enum64 => format!("enum {anonymous}"),
                        Kind::FuncProto => "function".to_owned(),
                        _ => ty.name.to_owned(),
                    };
                    return format!("{constant}{name}{}", spaced(&behind));
                }
            };
            match next {
                Some(target) => ty = target,
                None => break,
            }
        }
        "?".to_owned()
    }
}

fn spaced(behind: &str) -> String {
    if behind.starts_with('*') {
        format!(" {behind}")
    } else {
        behind.to_owned()
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

/// FNV-1a, which is short and good enough for names.
fn hash(kind: Kind, name: &str) -> u32 {
    name.bytes().chain([kind as u8]).fold(0x811C_9DC5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
#[path = "btf_tests.rs"]
pub(crate) mod tests;
