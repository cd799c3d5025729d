//! Tables as kernels print them.

use proptest::prelude::*;

use super::*;

fn none(_: &str) -> Option<i64> {
    None
}

fn found(print: &str, field: &str) -> Vec<(String, i64)> {
    symbols(print, field, &none).to_vec()
}

fn pairs(expected: &[(&str, i64)]) -> Vec<(String, i64)> {
    expected
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect()
}

#[test]
fn symbolic_values_are_read() {
    let print = r#""vec=%u [action=%s]", REC->vec, __print_symbolic(REC->vec, { 0, "HI" }, { 0x1, "TIMER" }, { (1 << 4) | 1, "X" }, { -1, "ALL" })"#;
    assert_eq!(
        found(print, "vec"),
        pairs(&[("HI", 0), ("TIMER", 1), ("X", 17), ("ALL", -1)])
    );
    assert_eq!(found(print, "other"), []);
}

/// sched:sched_switch of Linux 6.18.
#[test]
fn a_mask_around_the_field_changes_nothing() {
    let print = r#""%s%s", (REC->prev_state & ((((0x00000000 | 0x00000001 | 0x00000040) + 1) << 1) - 1)) ? __print_flags(REC->prev_state & ((((0x00000000 | 0x00000001 | 0x00000040) + 1) << 1) - 1), "|", { 0x00000001, "S" }, { 0x00000002, "D" }, { 0x00000100, "beyond the mask" }) : "R", REC->prev_state & 0x80 ? "+" : """#;
    assert_eq!(found(print, "prev_state"), pairs(&[("R", 0), ("S", 1), ("D", 2)]));
}

#[test]
fn what_the_field_never_holds_is_left_out() {
    let print = r#""%s", __print_symbolic(REC->flags >> 3, { 1, "A" }, { 0, "ZERO" })"#;
    assert_eq!(found(print, "flags"), pairs(&[("ZERO", 0)]));
    let print = r#""%s", __print_symbolic(REC->a | REC->b, { 1, "A" })"#;
    assert_eq!(found(print, "a"), []);
}

#[test]
fn casts_are_stepped_over() {
    let print = r#""%s", __print_flags((unsigned long)REC->f & ~((__u32)3), "|", {(unsigned long)(1UL << 2), "FOUR" }, {8ULL, "EIGHT"})"#;
    assert_eq!(found(print, "f"), pairs(&[("FOUR", 4), ("EIGHT", 8)]));
}

#[test]
fn enumerators_are_looked_up_and_others_skipped() {
    let lookup = |name: &str| (name == "MODE_B").then_some(7);
    let print = r#""%s", __print_symbolic(REC->m, { MODE_A, "A" }, { MODE_B, "B" }, { 1, "C" "D" })"#;
    assert_eq!(
        symbols(print, "m", &lookup).to_vec(),
        pairs(&[("B", 7), ("CD", 1)])
    );
}

#[test]
fn functions_around_the_field_are_not_understood() {
    let print = r#""%s", __print_symbolic(f(REC->m), { 1, "A" })"#;
    assert_eq!(found(print, "m"), []);
}

#[test]
fn expressions_are_those_of_c() {
    let value = |text: &str| Evaluator::run(&tokens(text), None, &none);
    for (text, expected) in [
        ("1 | 2 & 3 << 1", Some(3)),
        ("((1) + 2) * 3 - 4 / 2 % 5", Some(7)),
        ("-(1)", Some(-1)),
        ("~0", Some(-1)),
        ("010", Some(8)),
        ("1 << 64", None),
        ("1 / 0", None),
        ("1 +", None),
        ("", None),
        ("1 2", None),
        ("x", None),
        ("99999999999999999999", None),
        ("0xffffffffffffffffULL", Some(-1)),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
    assert_eq!(value(&"(".repeat(10_000)), None);
    assert_eq!(value(&"-".repeat(10_000)), None);
    assert_eq!(value(&"(int)".repeat(10_000)), None);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in r#"(__print_symbolic\(|__print_flags\(|REC->f|\{|\}|,|"|\\|\(|\)|<<|>>|[0-9]{1,20}|[ -~é]{0,3}){0,30}"#) {
        let _ = symbols(&text, "f", &none);
    }
}
