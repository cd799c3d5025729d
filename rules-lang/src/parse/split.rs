//! Where items begin and end, and whether their brackets match, before the grammar is asked.
//!
//! In: the tokens of a file. Out: [`Chunk`]s, one an item as it seems, each of which the grammar then reads alone.
//!
//! INVARIANT: no chunk that is given to the grammar is nested more than [`DEEPEST`] levels deep, so neither it nor any
//! later stage that walks the tree runs out of stack, whatever the file holds.

use super::lexer::{Input, Kind, Token};
use super::sink::{Sink, quote};
use crate::diagnostic::{Diagnostic, Label};
use crate::nearest::nearest;
use crate::source::Span;

/// Levels of brackets and of prefix operators in an expression.
pub(super) const DEEPEST: usize = 64;

/// The most words and signs in one item. Ten times what the largest sensible list needs; the grammar takes about a
/// kilobyte of memory for each while it reads.
const LONGEST_ITEM: usize = 100_000;

/// The words that begin an item.
pub(super) const ITEMS: [&str; 9] = [
    "language", "param", "set", "span", "buffer", "budget", "start", "rule", "test",
];

/// The words that no item can be named by: an expression needs them.
pub(super) const RESERVED: [&str; 9] = ["and", "or", "not", "in", "like", "as", "true", "false", "nothing"];

/// What seems to be one item: tokens `first..last`.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) first: usize,
    pub(super) last: usize,
    /// What must be added for its brackets to match; it was complained about.
    pub(super) missing: String,
    /// The grammar need not be asked: what is wrong was said.
    pub(super) hopeless: bool,
}

/// An open bracket.
struct Open {
    token: usize,
    sign: char,
    /// A `{` that belongs to `in { … }`.
    is_list: bool,
    /// Levels of expression outside of it.
    outside: usize,
}

/// Splits a file into items.
pub(super) fn split(input: Input<'_>, tokens: &[Token], sink: &mut Sink<'_>) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut brackets = Brackets::new(input, tokens);
    let mut first = 0;
    let mut hopeless = false;
    for (at, token) in tokens.iter().enumerate() {
        let words = Words {
            text: input.text,
            tokens,
            at,
        };
        let begins = if brackets.open.is_empty() {
            at > first && words.begin_item(first)
        } else {
            words.begin_item_surely(first)
        };
        if begins {
            let missing = brackets.close_all(Some(at), sink);
            chunks.push(Chunk {
                first,
                last: at,
                missing,
                hopeless,
            });
            (first, hopeless) = (at, false);
        }
        hopeless |= !brackets.take(at, sink);
        // The brace of `param p = x in { 1, 2 } or y` ends no item.
        let closes = brackets.open.is_empty() && token.text(input.text) == "}" && !brackets.left_list;
        if closes {
            chunks.push(Chunk {
                first,
                last: at + 1,
                missing: String::new(),
                hopeless,
            });
            (first, hopeless) = (at + 1, false);
        }
    }
    let missing = brackets.close_all(None, sink);
    if first < tokens.len() {
        chunks.push(Chunk {
            first,
            last: tokens.len(),
            missing,
            hopeless,
        });
    }
    for chunk in &mut chunks {
        judge_first_word(input, tokens, chunk, sink);
    }
    chunks
}

/// Looks at the brackets of an expression that stands alone. `None` where what is wrong was said.
pub(super) fn single(input: Input<'_>, tokens: &[Token], sink: &mut Sink<'_>) -> Option<Chunk> {
    let mut brackets = Brackets::new(input, tokens);
    if tokens.len() > LONGEST_ITEM {
        sink.push(too_long(input, tokens.first(), "expression"));
        return None;
    }
    let mut sound = true;
    for at in 0..tokens.len() {
        sound &= brackets.take(at, sink);
    }
    let missing = brackets.close_all(None, sink);
    sound.then_some(Chunk {
        first: 0,
        last: tokens.len(),
        missing,
        hopeless: false,
    })
}

fn too_long(input: Input<'_>, first: Option<&Token>, what: &str) -> Diagnostic {
    let span = first.map_or(input.span(0, 0), |token| input.span(token.start, token.end));
    Diagnostic::error(
        "E031",
        span,
        format!("this {what} has more than {LONGEST_ITEM} words and signs"),
    )
    .help("divide it into several")
}

/// An item must begin with one of [`ITEMS`].
fn judge_first_word(input: Input<'_>, tokens: &[Token], chunk: &mut Chunk, sink: &mut Sink<'_>) {
    let Some(token) = tokens.get(chunk.first) else {
        return;
    };
    let written = token.text(input.text);
    if chunk.last - chunk.first > LONGEST_ITEM {
        chunk.hopeless = true;
        sink.push(too_long(input, Some(token), "item"));
    }
    if ITEMS.contains(&written) || (chunk.hopeless && token.kind == Kind::Sign) {
        return;
    }
    chunk.hopeless = true;
    sink.error("E002", input.span(token.start, token.end), |d| {
        d.message = format!("expected an item, found {}", quote(written));
        let near = if token.kind == Kind::Word {
            nearest(written, ITEMS)
        } else {
            None
        };
        d.help.push(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None if written == "/" => "a comment begins with `#` and ends with the line".to_owned(),
            None => {
                "an item begins with `param`, `set`, `span`, `buffer`, `budget`, `start`, `rule` or `test`"
                    .to_owned()
            }
        });
    });
}

/// The brackets that are open, and how deep an expression is nested.
struct Brackets<'t> {
    input: Input<'t>,
    tokens: &'t [Token],
    open: Vec<Open>,
    /// How many of them are `{`.
    braces: usize,
    /// Levels of expression so far: brackets, and prefix operators before an operand.
    depth: usize,
    /// The same at the innermost bracket, which each operand returns to.
    base: usize,
    /// It was said that this item is nested too deep.
    too_deep: bool,
    /// The bracket that was closed last belonged to `in { … }`.
    left_list: bool,
}

impl<'t> Brackets<'t> {
    fn new(input: Input<'t>, tokens: &'t [Token]) -> Self {
        Brackets {
            input,
            tokens,
            open: Vec::new(),
            braces: 0,
            depth: 0,
            base: 0,
            too_deep: false,
            left_list: false,
        }
    }

    fn text(&self, at: usize) -> &'t str {
        self.tokens
            .get(at)
            .map_or("", |token| token.text(self.input.text))
    }

    /// Takes the next token into account. False where the grammar need not be asked about its item any more.
    fn take(&mut self, at: usize, sink: &mut Sink<'_>) -> bool {
        if self.open.is_empty() {
            self.too_deep = false;
        }
        let written = self.text(at);
        match written {
            "(" | "[" | "{" => self.push(at, written),
            ")" | "]" | "}" => return self.pop(at, written, sink),
            "not" | "!" | "~" => self.depth += 1,
            "-" if self.is_prefix(at) => self.depth += 1,
            _ if self.tokens.get(at).is_some_and(|t| t.kind != Kind::Sign) => self.depth = self.base,
            _ => {}
        }
        if self.depth > DEEPEST && !self.too_deep {
            self.too_deep = true;
            let span = self.span(at);
            sink.error("E013", span, |d| {
                d.message = format!("nested more than {DEEPEST} levels deep");
                d.help.push(
                    "give a part of it a name with `param`, or spread it over several rules".to_owned(),
                );
            });
        }
        !self.too_deep
    }

    /// A `-` after an operand subtracts; any other is a sign.
    fn is_prefix(&self, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.tokens.get(before));
        before.is_none_or(|t| t.kind == Kind::Sign && !matches!(t.text(self.input.text), ")" | "]" | "}"))
    }

    fn push(&mut self, at: usize, written: &str) {
        let sign = written.chars().next().unwrap_or('(');
        // The braces of items are not levels of an expression; those of `in { … }` are.
        let is_list = sign == '{' && at.checked_sub(1).is_some_and(|before| self.text(before) == "in");
        self.open.push(Open {
            token: at,
            sign,
            is_list,
            outside: self.base,
        });
        if sign == '{' {
            self.braces += 1;
        }
        // Nor may braces be nested without end where no expression is: three levels are all that the grammar has.
        if sign != '{' || is_list || self.braces > 3 {
            self.depth += 1;
        }
        self.base = self.depth;
    }

    fn pop(&mut self, at: usize, written: &str, sink: &mut Sink<'_>) -> bool {
        let opens = match written {
            ")" => '(',
            "]" => '[',
            _ => '{',
        };
        let mut sound = true;
        // A brace ends the brackets inside it, so that one forgotten `)` does not swallow the file.
        while opens == '{' && self.braces > 0 && self.open.last().is_some_and(|top| top.sign != '{') {
            self.not_closed(Some(at), sink);
            sound = false;
        }
        if self.open.last().is_some_and(|top| top.sign == opens) {
            self.leave();
            return sound && !self.too_deep;
        }
        let span = self.span(at);
        let top = self.open.last().map(|top| (top.sign, self.span(top.token)));
        sink.error("E005", span, |d| {
            d.message = format!("this `{written}` closes nothing");
            if let Some((sign, place)) = top {
                let text = format!("this `{sign}` is open here");
                d.labels.push(Label { span: place, text });
            }
        });
        // `(]`: one slip, not two. A brace stays open: it is an item's.
        if top.is_some_and(|(sign, _)| sign != '{') {
            self.leave();
        }
        false
    }

    fn leave(&mut self) -> Option<Open> {
        let left = self.open.pop()?;
        self.left_list = left.is_list;
        if left.sign == '{' {
            self.braces -= 1;
        }
        (self.base, self.depth) = (left.outside, left.outside);
        Some(left)
    }

    /// Says that the innermost bracket is not closed, and leaves it. Gives what would close it.
    fn not_closed(&mut self, noticed: Option<usize>, sink: &mut Sink<'_>) -> Option<char> {
        let left = self.leave()?;
        let closing = match left.sign {
            '(' => ')',
            '[' => ']',
            _ => '}',
        };
        let span = self.span(left.token);
        let end = self.tokens.last().map_or(0, |token| token.end);
        let noticed = noticed.map_or(self.input.span(end, end), |at| self.span(at));
        sink.error("E004", span, |d| {
            d.message = format!("this `{}` is not closed", left.sign);
            let text = format!("expected `{closing}` before this");
            d.labels.push(Label { span: noticed, text });
        });
        Some(closing)
    }

    /// Ends the item. What is still open is said, the innermost alone: the others follow from it.
    fn close_all(&mut self, noticed: Option<usize>, sink: &mut Sink<'_>) -> String {
        let mut missing = String::new();
        if !self.too_deep {
            missing.extend(self.not_closed(noticed, sink));
            while let Some(open) = self.leave() {
                missing.push(if open.sign == '(' {
                    ')'
                } else if open.sign == '[' {
                    ']'
                } else {
                    '}'
                });
            }
        }
        self.open.clear();
        (self.braces, self.depth, self.base, self.too_deep) = (0, 0, 0, false);
        missing
    }

    fn span(&self, at: usize) -> Span {
        self.tokens.get(at).map_or(self.input.span(0, 0), |token| {
            self.input.span(token.start, token.end)
        })
    }
}

/// Token `at` and those around it.
struct Words<'t> {
    text: &'t str,
    tokens: &'t [Token],
    at: usize,
}

impl<'t> Words<'t> {
    fn get(&self, ahead: usize) -> &'t str {
        self.tokens
            .get(self.at + ahead)
            .map_or("", |token| token.text(self.text))
    }

    fn kind(&self, ahead: usize) -> Option<Kind> {
        self.tokens.get(self.at + ahead).map(|token| token.kind)
    }

    /// Does an item begin here, where no bracket is open? `first`: where the one before began.
    fn begin_item(&self, first: usize) -> bool {
        if !ITEMS.contains(&self.get(0)) {
            return false;
        }
        // The name of an item may be such a word: `param limit = 3`, `set start { … }`.
        let names_item = self.at == first + 1
            && self.tokens.get(first).is_some_and(|token| {
                matches!(
                    token.text(self.text),
                    "param" | "set" | "span" | "buffer" | "rule"
                )
            });
        !names_item && (self.looks_like_item() || self.is_first_on_line() && self.is_after_operand())
    }

    /// Does an item begin here, though a bracket is open? Only what cannot stand inside any item counts.
    fn begin_item_surely(&self, first: usize) -> bool {
        let opens = match self.get(0) {
            "set" | "span" | "buffer" | "rule" => self.is_named() && self.get(2) == "{",
            "test" => self.kind(1) == Some(Kind::Text) && self.get(2) == "{",
            _ => false,
        };
        let in_test = self
            .tokens
            .get(first)
            .is_some_and(|token| token.text(self.text) == "test");
        let at_margin = self.tokens.get(self.at).is_some_and(|token| {
            token.start == 0 || self.text.as_bytes().get(token.start - 1) == Some(&b'\n')
        });
        opens || at_margin && !in_test && ITEMS.contains(&self.get(0)) && self.looks_like_item()
    }

    /// `set x`, not the field in `set in { 1, 2 }`.
    fn is_named(&self) -> bool {
        self.kind(1) == Some(Kind::Word) && !RESERVED.contains(&self.get(1))
    }

    fn looks_like_item(&self) -> bool {
        let named = self.is_named();
        match self.get(0) {
            "param" => named && self.get(2) == "=",
            "set" => named && matches!(self.get(2), "{" | "max"),
            "span" | "buffer" | "rule" => named && self.get(2) == "{",
            "start" => self.get(1) == "with",
            "test" => self.kind(1) == Some(Kind::Text),
            "budget" | "language" => self.kind(1) == Some(Kind::Number),
            _ => false,
        }
    }

    fn before(&self) -> Option<&'t Token> {
        self.at.checked_sub(1).and_then(|before| self.tokens.get(before))
    }

    fn is_first_on_line(&self) -> bool {
        match (self.before(), self.tokens.get(self.at)) {
            (Some(before), Some(token)) => self
                .text
                .get(before.end..token.start)
                .is_some_and(|between| between.contains('\n')),
            _ => true,
        }
    }

    /// False after a comma, an operator or an opening bracket: the item before goes on.
    fn is_after_operand(&self) -> bool {
        self.before()
            .is_none_or(|t| t.kind != Kind::Sign || matches!(t.text(self.text), ")" | "]" | "}" | "%" | "?"))
    }
}
