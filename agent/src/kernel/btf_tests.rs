//! BTF as small as can be, made here by hand, and bytes that are no BTF at all.

use proptest::prelude::*;

use super::*;

pub(crate) use super::super::btf_write::Writer as Builder;

impl Builder {
    pub(crate) fn array(&mut self, of: Id, count: u32) -> Id {
        self.add(Kind::Array, "", 0, false, 0, &[of, 0, count])
    }

    /// Members as (name, type, bits from the start, width of a bit field or 0).
    pub(crate) fn record(
        &mut self,
        kind: Kind,
        name: &str,
        bytes: u32,
        members: &[(&str, Id, u32, u32)],
    ) -> Id {
        let mut rest = Vec::new();
        for (name, ty, bits, width) in members {
            rest.extend([self.name(name), *ty, *bits | (width << 24)]);
        }
        self.add(kind, name, members.len(), true, bytes, &rest)
    }

    /// A tracepoint's stub with these parameters behind the first.
    pub(crate) fn tracepoint(&mut self, name: &str, parameters: &[(&str, Id)]) {
        let mut rest = vec![0, 0];
        for (name, ty) in parameters {
            rest.extend([self.name(name), *ty]);
        }
        let prototype = self.add(Kind::FuncProto, "", parameters.len() + 1, false, 0, &rest);
        self.add(
            Kind::Func,
            &format!("__probestub_{name}"),
            0,
            false,
            prototype,
            &[],
        );
    }
}

#[test]
fn types_are_found_by_kind_and_name() -> Result<(), BtfError> {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let record = b.record(Kind::Struct, "x", 8, &[("a", int, 0, 0), ("b", int, 32, 0)]);
    b.record(Kind::Struct, "x", 4, &[("other", int, 0, 0)]);
    let alias = b.add(Kind::Typedef, "x", 0, false, record, &[]);
    let btf = Btf::parse(b.bytes())?;
    assert_eq!(btf.len(), 4);
    assert_eq!(btf.find(Kind::Struct, "x").map(|t| t.id), Some(record));
    assert_eq!(btf.find(Kind::Typedef, "x").map(|t| t.id), Some(alias));
    assert_eq!(btf.find(Kind::Union, "x").map(|t| t.id), None);
    assert_eq!(btf.find_declared("struct x").map(|t| t.id), Some(record));
    assert_eq!(
        btf.find_declared("x").and_then(Type::strip).map(|t| t.id),
        Some(record)
    );
    let names: Vec<_> = btf
        .ty(record)
        .into_iter()
        .flat_map(|t| t.members().collect::<Vec<_>>())
        .collect();
    assert_eq!(
        names.iter().map(|m| (m.name, m.offset_bits)).collect::<Vec<_>>(),
        [("a", 0), ("b", 32)]
    );
    Ok(())
}

#[test]
fn enumerators_keep_their_sign_and_width() -> Result<(), BtfError> {
    let mut b = Builder::new();
    let (minus, big) = (b.name("MINUS"), b.name("BIG"));
    let signed = b.add(Kind::Enum, "s", 1, true, 4, &[minus, u32::MAX]);
    let unsigned = b.add(Kind::Enum, "u", 1, false, 4, &[minus, u32::MAX]);
    let wide = b.add(Kind::Enum64, "w", 1, false, 8, &[big, 1, 2]);
    let btf = Btf::parse(b.bytes())?;
    let of = |id| btf.ty(id).map(|t| t.enumerators().collect::<Vec<_>>());
    assert_eq!(of(signed), Some(vec![("MINUS", -1)]));
    assert_eq!(of(unsigned), Some(vec![("MINUS", 0xffff_ffff)]));
    assert_eq!(of(wide), Some(vec![("BIG", 0x2_0000_0001)]));
    Ok(())
}

#[test]
fn declarations_are_written_as_in_c() -> Result<(), BtfError> {
    let mut b = Builder::new();
    let char = b.int("char", 1, 0);
    let constant = b.add(Kind::Const, "", 0, false, char, &[]);
    let pointer = b.pointer(constant);
    let array = b.array(char, 16);
    let record = b.record(Kind::Struct, "task_struct", 0, &[]);
    let to_record = b.pointer(record);
    let double = b.pointer(to_record);
    let void = b.pointer(0);
    let btf = Btf::parse(b.bytes())?;
    let declared = |id| btf.ty(id).map(Type::declared).unwrap_or_default();
    assert_eq!(declared(pointer), "const char *");
    assert_eq!(declared(array), "char[16]");
    assert_eq!(declared(to_record), "struct task_struct *");
    assert_eq!(declared(double), "struct task_struct **");
    assert_eq!(declared(void), "void *");
    assert_eq!(btf.ty(array).and_then(Type::size), Some(16));
    Ok(())
}

#[test]
fn loops_of_types_end() -> Result<(), BtfError> {
    let mut b = Builder::new();
    let mut own = 1;
    for kind in [Kind::Typedef, Kind::Const, Kind::Volatile, Kind::Ptr] {
        assert_eq!(b.add(kind, "loop", 0, false, own, &[]), own);
        own += 1;
    }
    assert_eq!(b.array(own, 2), own);
    let btf = Btf::parse(b.bytes())?;
    for ty in btf.types() {
        let _ = (
            ty.strip().map(|t| t.id),
            ty.size(),
            ty.declared(),
            ty.has_tag("user"),
        );
    }
    assert!(btf.ty(1).is_some_and(|t| t.strip().is_none()));
    Ok(())
}

#[test]
fn what_is_no_btf_is_refused() {
    assert_eq!(
        Btf::parse(Vec::new()).err(),
        Some(BtfError::Truncated { what: "its header" })
    );
    let bytes = Builder::new().bytes();
    assert!(Btf::parse(bytes.clone()).is_ok());
    let mut swapped = bytes.clone();
    swapped.swap(0, 1);
    assert_eq!(Btf::parse(swapped).err(), Some(BtfError::Magic { magic: 0x9FEB }));
    let mut b = Builder::new();
    b.int("int", 4, 1);
    let whole = b.bytes();
    for length in 0..whole.len() {
        assert!(
            Btf::parse(whole.get(..length).unwrap_or(&[])).is_err(),
            "{length}"
        );
    }
    let mut newer = whole;
    if let Some(kind) = newer.get_mut(24 + 7) {
        *kind = 31;
    }
    assert_eq!(Btf::parse(newer).err(), Some(BtfError::Kind { id: 1, kind: 31 }));
}

/// Looks at everything that can be looked at.
fn look(btf: &Btf) {
    for ty in btf.types() {
        let _ = (
            ty.declared(),
            ty.size(),
            ty.array_length(),
            ty.is_signed(),
            ty.is_bool(),
            ty.is_char(),
        );
        let _ = ty.members().count() + ty.enumerators().count() + ty.parameters().count();
        let _ = btf.find(ty.kind, ty.name).map(|t| t.id);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(btf) = Btf::parse(bytes) {
            look(&btf);
        }
    }

    /// Random words where types should be, behind a header that is right: deeper than random bytes ever get.
    #[test]
    fn any_types_are_survived(words in prop::collection::vec((0u32..20, 0u32..40, 0u32..4, any::<bool>()), 0..60)) {
        let mut b = Builder::new();
        for (kind, word, vlen, flag) in words {
            let kind = Kind::of(kind as u8).unwrap_or(Kind::Ptr);
            if kind == Kind::Void {
                continue;
            }
            let (once, each) = kind.extra();
            let rest = vec![word; once / 4 + each / 4 * vlen as usize];
            b.add(kind, ["", "x", "y"][word as usize % 3], vlen as usize, flag, word, &rest);
        }
        let bytes = b.bytes();
        if let Ok(btf) = Btf::parse(bytes) {
            look(&btf);
            for ty in btf.types() {
                let _ = crate::kernel::btf_path::members(&btf, ty.id);
                let start = crate::kernel::btf_path::Start::Argument { number: 0, ty: ty.id, trusted: true };
                for name in ["x", "y"] {
                    let step = lkst_rules::schema::PathStep::Name(name.to_owned());
                    let index = lkst_rules::schema::PathStep::Index(1);
                    let _ = crate::kernel::btf_path::resolve(&btf, start, &[step.clone(), index, step], 1);
                }
            }
            let _ = crate::kernel::arguments::of_tracepoint(&btf, "x");
        }
    }
}
