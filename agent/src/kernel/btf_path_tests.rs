//! Paths through a structure that has one of everything.

use lkst_rules::schema::{Base, BitField, Hop, Path, PathError, PathStep, Recipe, Resolved, Type};

use super::super::arguments::of_tracepoint;
use super::super::btf::tests::Builder;
use super::*;

fn kernel() -> Result<Btf, crate::kernel::btf::BtfError> {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let u8_ = b.int("unsigned char", 1, 0);
    let u32_ = b.int("unsigned int", 4, 0);
    let char = b.int("char", 1, 0);
    let bool_ = b.int("_Bool", 1, 4);
    let comm = b.array(char, 16);
    let numbers = b.array(int, 4);
    let text = b.pointer(char);
    let to_int = b.pointer(int);
    let inner = b.record(Kind::Struct, "inner", 8, &[("x", int, 0, 0), ("y", u32_, 32, 0)]);
    let to_inner = b.pointer(inner);
    let inners = b.array(inner, 2);
    let choice = b.record(
        Kind::Union,
        "",
        8,
        &[("first", to_inner, 0, 0), ("second", int, 0, 0)],
    );
    let user = b.add(Kind::TypeTag, "user", 0, false, inner, &[]);
    let to_user = b.pointer(user);
    let function = b.add(Kind::FuncProto, "", 0, false, 0, &[]);
    let to_function = b.pointer(function);
    let outer = b.record(
        Kind::Struct,
        "outer",
        200,
        &[
            ("comm", comm, 0, 0),
            ("inner", inner, 128, 0),
            ("next", to_inner, 192, 0),
            ("", choice, 256, 0),
            ("numbers", numbers, 320, 0),
            ("inners", inners, 448, 0),
            ("text", text, 576, 0),
            ("flag", u32_, 640, 3),
            ("wide", u32_, 643, 9),
            ("truth", bool_, 672, 1),
            ("theirs", to_user, 704, 0),
            ("call", to_function, 768, 0),
            ("byte", u8_, 832, 0),
        ],
    );
    // A member of the list of special pointers, which gcc does not tag.
    let task = b.record(
        Kind::Struct,
        "task_struct",
        16,
        &[("pid", int, 0, 0), ("robust_list", to_inner, 64, 0)],
    );
    let to_outer = b.pointer(outer);
    let to_task = b.pointer(task);
    b.tracepoint(
        "event",
        &[
            ("o", to_outer),
            ("t", to_task),
            ("n", int),
            ("now", to_int),
            ("name", text),
            ("maybe__nullable", to_outer),
        ],
    );
    Btf::parse(b.bytes())
}

fn follow(path: &str) -> Result<Resolved, PathError> {
    let nowhere = |message: &str| PathError {
        step: 0,
        message: message.to_owned(),
        known: Vec::new(),
    };
    let btf = kernel().map_err(|e| nowhere(&e.to_string()))?;
    let arguments = of_tracepoint(&btf, "event").unwrap_or_default();
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, index) = part.split_once('[').map_or((part, None), |(n, i)| (n, Some(i)));
        steps.push(PathStep::Name(name.to_owned()));
        steps.extend(
            index
                .and_then(|i| i.trim_end_matches(']').parse().ok())
                .map(PathStep::Index),
        );
    }
    let Some((PathStep::Name(first), rest)) = steps.split_first() else {
        return Err(nowhere("empty"));
    };
    let number = arguments
        .iter()
        .position(|a| a.name == *first)
        .ok_or_else(|| nowhere("no such argument"))?;
    let argument = arguments.get(number).ok_or_else(|| nowhere("no such argument"))?;
    resolve(
        &btf,
        Start::Argument {
            number: number as u8,
            ty: argument.ty,
            trusted: argument.trusted,
        },
        rest,
        1,
    )
}

/// The type, the hops and whether they are direct, the bit field, text behind.
type Summary = (Type, Vec<(u32, bool)>, Option<(u8, u8)>, bool);

fn summary(path: &str) -> Result<Summary, String> {
    let found = follow(path).map_err(|error| format!("{}: {}", error.step, error.message))?;
    let Recipe::Path(Path {
        hops,
        bits,
        text_behind,
        ..
    }) = found.recipe
    else {
        return Err("no path".to_owned());
    };
    let hops = hops
        .into_iter()
        .map(|Hop { offset, direct }| (offset, direct))
        .collect();
    Ok((
        found.ty,
        hops,
        bits.map(|BitField { shift, width }| (shift, width)),
        text_behind,
    ))
}

#[test]
fn values_are_reached() {
    for (path, ty, hops) in [
        ("n", Type::I32, vec![]),
        ("o", Type::U64, vec![]),
        ("o.comm", Type::COMM, vec![(0, true)]),
        ("o.inner.y", Type::U32, vec![(20, true)]),
        ("o.next.y", Type::U32, vec![(24, true), (4, true)]),
        ("o.next", Type::U64, vec![(24, true)]),
        ("o.first.x", Type::I32, vec![(32, true), (0, true)]),
        // The verifier sees the first member of a union only.
        ("o.second", Type::I32, vec![(32, false)]),
        ("o.numbers[3]", Type::I32, vec![(52, true)]),
        (
            "o.numbers",
            Type::Array {
                bits: 32,
                signed: true,
                count: 4,
            },
            vec![(40, true)],
        ),
        ("o.inners[1].y", Type::U32, vec![(68, true)]),
        ("o.next[1].y", Type::U32, vec![(24, true), (12, false)]),
        ("now[0]", Type::I32, vec![(0, false)]),
        (
            "maybe.byte",
            Type::Int {
                bits: 8,
                signed: false,
            },
            vec![(104, false)],
        ),
        ("t.pid", Type::I32, vec![(0, true)]),
        ("o.call", Type::U64, vec![(96, true)]),
    ] {
        assert_eq!(summary(path), Ok((ty, hops, None, false)), "{path}");
    }
}

#[test]
fn text_is_reached_behind_its_pointer() {
    assert_eq!(summary("o.text"), Ok((Type::TEXT, vec![(72, true)], None, true)));
    assert_eq!(summary("name"), Ok((Type::TEXT, vec![], None, true)));
}

#[test]
fn bit_fields_are_loaded_by_the_smallest_integer() {
    let u8_ = Type::Int {
        bits: 8,
        signed: false,
    };
    let u16_ = Type::Int {
        bits: 16,
        signed: false,
    };
    assert_eq!(
        summary("o.flag"),
        Ok((u8_, vec![(80, true)], Some((0, 3)), false))
    );
    assert_eq!(
        summary("o.wide"),
        Ok((u16_, vec![(80, true)], Some((3, 9)), false))
    );
    assert_eq!(
        summary("o.truth"),
        Ok((Type::Bool, vec![(84, true)], Some((0, 1)), false))
    );
}

#[test]
fn a_path_that_ends_says_where_and_why() {
    for (path, expected) in [
        ("o.nothing", "1: `struct outer` has no member of that name"),
        ("o.inner", "1: `struct inner` is not one value: name a member"),
        (
            "o.inners",
            "1: an array of `struct inner`: name an element, such as `[0]`",
        ),
        ("o.numbers[4]", "2: it has 4 elements, counted from 0"),
        (
            "o.byte.x",
            "2: what is before it is `unsigned char`, which has no members",
        ),
        ("n.x", "1: what is before it is `int`, which has no members"),
        ("n[0]", "1: `int` has no elements"),
        (
            "o.theirs.x",
            "2: it points into user memory, where a path cannot follow",
        ),
        (
            "t.robust_list.x",
            "2: it points into user memory, where a path cannot follow",
        ),
        ("o.call[0]", "2: its elements, `function`, have no known size"),
    ] {
        assert_eq!(summary(path), Err(expected.to_owned()), "{path}");
    }
    let known = follow("o.nothing")
        .map_err(|error| error.known)
        .err()
        .unwrap_or_default();
    assert!(
        known.contains(&"second".to_owned()) && known.contains(&"comm".to_owned()),
        "{known:?}"
    );
}

#[test]
fn the_current_task_is_a_start_too() -> Result<(), crate::kernel::btf::BtfError> {
    let btf = kernel()?;
    let found = resolve(&btf, Start::CurrentTask, &[PathStep::Name("pid".to_owned())], 0);
    let path = Path {
        base: Base::CurrentTask,
        hops: vec![Hop {
            offset: 0,
            direct: true,
        }],
        bits: None,
        text_behind: false,
    };
    assert_eq!(found.map(|found| found.recipe), Ok(Recipe::Path(path)));
    Ok(())
}
