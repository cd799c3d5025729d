//! The parser and the renderer against input that nobody meant: no panic, no overflow of the stack, no time or output out
//! of proportion.

use std::time::{Duration, Instant};

use lkst_rules::diagnostic::{Diagnostics, render, to_json};
use lkst_rules::parse::{parse, parse_expression, source_from_bytes};
use lkst_rules::print::print;
use lkst_rules::source::Source;
use proptest::prelude::*;

const EXAMPLES: [&str; 5] = [
    include_str!("../../tests/corpus/parse/pass/language_example.lkst"),
    include_str!("../../tests/corpus/parse/pass/expressions.lkst"),
    include_str!("../../tests/corpus/parse/pass/keywords_are_names.lkst"),
    include_str!("../../tests/corpus/parse/pass/members.lkst"),
    include_str!("../../tests/corpus/parse/pass/spans_and_windows.lkst"),
];

/// Words and signs that mean something somewhere.
const PIECES: [&str; 48] = [
    "set",
    "rule",
    "span",
    "param",
    "test",
    "buffer",
    "start",
    "with",
    "when",
    "then",
    "a",
    "b:c",
    "x:*",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    "==",
    "=",
    "!",
    "not",
    "and",
    "or",
    "in",
    "like",
    "..",
    ".",
    "-",
    "~",
    "<<",
    "1",
    "10s",
    "4MiB",
    "1.5s",
    "\"x\"",
    "\"{a",
    "'",
    "\"",
    "#",
    "\n",
    "\0",
    "\u{202e}",
    "é",
    "notify \"{x} {{ {1..}\"",
];

/// Everything that a file goes through before its meaning is looked at.
fn digest(text: &str) -> (Diagnostics, String) {
    let mut diagnostics = Diagnostics::default();
    let tree = parse(0, text, &mut diagnostics);
    let printed = print(&tree);
    let _ = parse_expression(0, text, &mut diagnostics);
    let sources = [Source {
        name: "x.lkst".to_owned(),
        text: text.to_owned(),
    }];
    let shown = render(&diagnostics, &sources, true);
    let _ = to_json(&diagnostics, &sources);
    for diagnostic in &diagnostics.list {
        assert!(
            lkst_rules::codes::all().any(|code| code.code == diagnostic.code),
            "{}",
            diagnostic.code
        );
        for label in &diagnostic.labels {
            let range = label.span.start as usize..label.span.end as usize;
            assert!(text.get(range).is_some(), "{label:?} is no part of the text");
        }
    }
    // What was understood is sound.
    let mut again = Diagnostics::default();
    let _ = parse(0, &printed, &mut again);
    assert_eq!(again.list, [], "{printed}");
    (diagnostics, shown)
}

fn within_seconds(what: &str, text: &str) {
    let began = Instant::now();
    let (diagnostics, shown) = digest(text);
    let took = began.elapsed();
    assert!(diagnostics.has_errors(), "{what}: nothing to say");
    // Generous: two seconds are usual in a debug build on a busy machine; what is quadratic takes minutes.
    assert!(took < Duration::from_secs(30), "{what}: {took:?}");
    assert!(shown.len() < 1 << 20, "{what}: {} bytes of output", shown.len());
}

#[test]
fn much_of_anything_ends_soon() {
    let most = 1 << 16;
    for piece in PIECES.iter().chain(&[
        "set a { b:c with ",
        "param a = (",
        "\"{",
        "a and ",
        "a.",
        "- ",
        "x:y ",
        "} ",
        "](",
    ]) {
        let text = format!("{piece} ").repeat(most / (piece.len() + 1));
        within_seconds(piece, &text);
        let text = piece.repeat(most / piece.len());
        within_seconds(piece, &text);
    }
}

#[test]
fn much_inside_an_item_ends_soon() {
    let most = 1 << 16;
    for piece in [
        "(", "!", "not ", "-", "~ ", "{", "[0]", ".a", " and a", " + a", " in { a", ", a", " x:y", "\"{",
        "*", "'",
    ] {
        for before in [
            "set a { b:c with a",
            "set a { b:c with ",
            "rule r { when a:b while ",
            "param x = ",
            "rule r { when a:b then notify \"",
        ] {
            let text = format!("{before}{}", piece.repeat(most / piece.len()));
            within_seconds(&format!("{before}{piece}"), &text);
        }
    }
}

#[test]
fn the_largest_file_ends_soon() {
    for piece in ["(", ")", "'", "; ", "set a { b:c with x "] {
        within_seconds(piece, &piece.repeat((1 << 20) / piece.len()));
    }
}

#[test]
fn chains_are_bounded() {
    for chain in [" and a", " + a", ".a", "[1]", " or a == 1", " or a and b"] {
        let mut diagnostics = Diagnostics::default();
        let text = format!("a{}", chain.repeat(100_000));
        assert!(parse_expression(0, &text, &mut diagnostics).is_none(), "{chain}");
        assert!(!diagnostics.list.is_empty());
    }
}

#[test]
fn files_that_are_no_text_are_refused() {
    let mut diagnostics = Diagnostics::default();
    assert_eq!(
        source_from_bytes("a", vec![b'x', b'\n', 0xff], 0, &mut diagnostics),
        None
    );
    assert_eq!(
        source_from_bytes("a", vec![b'x'; (1 << 20) + 1], 0, &mut diagnostics),
        None
    );
    let codes: Vec<_> = diagnostics.list.iter().map(|d| d.code).collect();
    assert_eq!(codes, ["E016", "E015"]);
    assert!(diagnostics.list[0].message.contains("line 2, column 1"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        digest(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        digest(&text);
    }

    #[test]
    fn any_pieces(pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..60), joint in "[ \n]?") {
        digest(&pieces.join(&joint));
    }

    #[test]
    fn mutated_files(
        example in proptest::sample::select(&EXAMPLES[..]),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0..8usize, proptest::sample::select(&PIECES[..])), 1..4),
    ) {
        let mut text: Vec<char> = example.chars().collect();
        for (at, cut, piece) in changes {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.chars());
        }
        digest(&text.into_iter().collect::<String>());
    }
}
