//! What fields of each form are to a rule, without BTF.

use super::*;

fn field(declared: &str, shape: Shape, size: u16, signed: bool) -> FormatField {
    FormatField {
        name: "x".to_owned(),
        declared: declared.to_owned(),
        shape,
        offset: 8,
        size,
        signed,
    }
}

fn int(bits: u8, signed: bool) -> Type {
    Type::Int { bits, signed }
}

#[test]
fn an_events_own_format_is_believed() {
    for (declared, shape, size, signed, ty) in [
        ("int", Shape::Scalar, 4, true, Some(int(32, true))),
        ("some_typedef", Shape::Scalar, 2, true, Some(int(16, true))),
        ("bool", Shape::Scalar, 1, false, Some(Type::Bool)),
        ("char", Shape::Scalar, 1, false, Some(int(8, false))),
        ("char", Shape::Array, 16, false, Some(Type::COMM)),
        (
            "unsigned char",
            Shape::Array,
            6,
            false,
            Some(Type::Array {
                bits: 8,
                signed: false,
                count: 6,
            }),
        ),
        (
            "unsigned long",
            Shape::Array,
            48,
            false,
            Some(Type::Array {
                bits: 64,
                signed: false,
                count: 6,
            }),
        ),
        (
            "some_typedef",
            Shape::Array,
            12,
            false,
            Some(Type::Array {
                bits: 8,
                signed: false,
                count: 12,
            }),
        ),
        (
            "struct x",
            Shape::Scalar,
            8,
            false,
            Some(Type::Array {
                bits: 8,
                signed: false,
                count: 8,
            }),
        ),
        (
            "odd",
            Shape::Scalar,
            3,
            false,
            Some(Type::Array {
                bits: 8,
                signed: false,
                count: 3,
            }),
        ),
        ("char", Shape::Array, 0, false, None),
        ("char", Shape::DataLoc, 4, false, Some(Type::TEXT)),
        ("char", Shape::RelLoc, 4, false, Some(Type::TEXT)),
        (
            "u8",
            Shape::DataLoc,
            4,
            false,
            Some(Type::Sequence {
                bits: 8,
                signed: false,
            }),
        ),
        (
            "u64",
            Shape::DataLoc,
            4,
            false,
            Some(Type::Sequence {
                bits: 64,
                signed: false,
            }),
        ),
        ("const char *", Shape::Scalar, 8, false, Some(Type::U64)),
    ] {
        let typed = of_event(&field(declared, shape, size, signed), None);
        assert_eq!(typed.as_ref().map(|t| t.ty), ty, "{declared}");
        assert_eq!(typed.is_some_and(|t| t.hex), declared.contains('*'), "{declared}");
    }
}

#[test]
fn a_system_calls_arguments_are_what_they_are_declared() {
    for (declared, ty) in [
        ("int", int(32, true)),
        ("unsigned int", int(32, false)),
        ("const int", int(32, true)),
        ("long", int(64, true)),
        ("unsigned long", int(64, false)),
        ("umode_t", int(16, false)),
        ("size_t", int(64, false)),
        ("loff_t", int(64, true)),
        ("pid_t", int(32, true)),
        ("unsigned", int(32, false)),
        ("short int", int(16, true)),
        ("char *", int(64, false)),
        ("never_heard_of", int(64, false)),
    ] {
        assert_eq!(
            of_syscall(&field(declared, Shape::Scalar, 8, false), None).ty,
            ty,
            "{declared}"
        );
    }
}

#[test]
fn declarations_show_the_length() {
    let declared = |shape| of_event(&field("char", shape, 16, false), None).map(|t| t.declared);
    assert_eq!(declared(Shape::Array).as_deref(), Some("char[16]"));
    assert_eq!(declared(Shape::DataLoc).as_deref(), Some("__data_loc char[]"));
}
