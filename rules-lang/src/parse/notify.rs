//! The text of `notify`: pieces of text and the expressions between them.
//!
//! In: the string, as the grammar accepted it. Out: its pieces, with the expressions parsed. They are read from the
//! unescaped text, and the place of every byte of that in the file is kept, so that a mistake in `"{x = 1}"` is
//! underlined inside the string.

use pest::iterators::Pair;

use super::build::Build;
use super::grammar::Rule;
use super::lexer::{Input, Places};
use crate::ast;
use crate::diagnostic::Diagnostic;
use crate::source::Span;

impl Build<'_, '_, '_> {
    /// The text of `notify`: `{expr}` is a value, `{{` and `}}` are braces.
    pub(super) fn notify(&mut self, pair: &Pair<'_, Rule>) -> Option<Vec<ast::NotifyPiece>> {
        let (text, places) = self.unescape(pair);
        let whole = Input {
            text: &text,
            file: self.input.file,
            places: Places::Map(&places),
        };
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut sound = true;
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let next = rest.find(['{', '}']).unwrap_or(rest.len());
            plain.push_str(rest.get(..next).unwrap_or(""));
            let rest = rest.get(next..).unwrap_or("");
            at += next;
            if rest.starts_with("{{") || rest.starts_with("}}") {
                plain.extend(rest.chars().next());
                at += 2;
            } else if rest.starts_with('{') {
                let Some(length) = value_length(rest) else {
                    self.lone_brace(whole.span(at, at + 1), "{");
                    return None;
                };
                let inner = rest.get(1..length - 1).unwrap_or("");
                if inner.trim().is_empty() {
                    let span = whole.span(at, at + length);
                    self.sink.push(
                        Diagnostic::error("E024", span, "there is nothing to fill in between these braces")
                            .help("write a value, as in `{dev}`; a brace itself is written `{{` or `}}`"),
                    );
                    return None;
                }
                let places = places.get(at + 1..at + length).unwrap_or_default();
                let input = Input {
                    text: inner,
                    file: self.input.file,
                    places: Places::Map(places),
                };
                if !plain.is_empty() {
                    pieces.push(ast::NotifyPiece::Text(std::mem::take(&mut plain)));
                }
                match super::expression(input, self.sink) {
                    Some(value) => pieces.push(ast::NotifyPiece::Value(value)),
                    None => sound = false,
                }
                at += length;
            } else if rest.starts_with('}') {
                self.lone_brace(whole.span(at, at + 1), "}");
                return None;
            }
        }
        if !plain.is_empty() {
            pieces.push(ast::NotifyPiece::Text(plain));
        }
        sound.then_some(pieces)
    }

    fn lone_brace(&mut self, span: Span, brace: &str) {
        let message = format!("this `{brace}` has no partner in the text");
        self.sink
            .push(Diagnostic::error("E024", span, message).help(format!(
                "`{{dev}}` fills in a value; a brace itself is written `{brace}{brace}`"
            )));
    }
}

/// The length of `{…}` at the beginning of `text`, with the braces of `in { … }` and the strings inside. `None` where it
/// does not end.
fn value_length(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for (at, ch) in text.char_indices() {
        match ch {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '{' if !in_string => depth += 1,
            '}' if !in_string => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}
