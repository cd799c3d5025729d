//! The words and signs of a text, with every complaint that needs no grammar: characters, strings, numbers.
//!
//! In: an [`Input`]. Out: its [`Token`]s, and a copy of the text, byte for byte as long, in which all that was
//! complained about is replaced by something harmless. So the grammar can be asked about the rest, places stay true, and
//! one wrong character does not hide the other mistakes of its item.
//!
//! The grammar knows the same literals. It must, to tell a rule's parts apart, but what it can say of `1.5s` is only that
//! it expected something else.

use super::literal;
use super::sink::Sink;
use crate::source::Span;

/// A text to be read, and where it came from.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) text: &'a str,
    pub(super) file: u32,
    pub(super) places: Places<'a>,
}

/// How an offset in the text becomes an offset in the file.
#[derive(Clone, Copy)]
pub(super) enum Places<'a> {
    /// The text is the file.
    Same,
    /// One offset a byte and one for the end: the text was unescaped from a string.
    Map(&'a [u32]),
}

impl Input<'_> {
    /// The place in the file of byte `at` of the text.
    pub(super) fn offset(&self, at: usize) -> u32 {
        match self.places {
            Places::Same => u32::try_from(at.min(self.text.len())).unwrap_or(u32::MAX),
            Places::Map(map) => map.get(at).or(map.last()).copied().unwrap_or(0),
        }
    }

    /// The place in the file of bytes `start..end`.
    pub(super) fn span(&self, start: usize, end: usize) -> Span {
        Span {
            file: self.file,
            start: self.offset(start),
            end: self.offset(end),
        }
    }
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or keyword.
    Word,
    /// An integer, duration or size.
    Number,
    /// `system:event`
    Event,
    /// A string, with its quotes.
    Text,
    /// Punctuation or an operator.
    Sign,
}

/// A token: bytes `start..end` of the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Token {
    /// The token as it is written.
    pub(super) fn text<'t>(&self, text: &'t str) -> &'t str {
        text.get(self.start..self.end).unwrap_or("")
    }
}

/// What [`lex`] gives.
pub(super) struct Lexed {
    pub(super) tokens: Vec<Token>,
    /// The text with what was complained about made harmless, of the same length.
    pub(super) clean: String,
}

const LONG_SIGNS: [&str; 9] = ["==", "!=", "<=", ">=", "<<", ">>", "&&", "||", ".."];
const SIGNS: &str = "{}()[],=<>+-*/%^&|~!?.:";

/// Splits a text into tokens.
pub(super) fn lex(input: Input<'_>, sink: &mut Sink<'_>) -> Lexed {
    let mut lexer = Lexer {
        input,
        sink,
        tokens: Vec::new(),
        clean: input.text.as_bytes().to_vec(),
        at: 0,
    };
    if input.text.starts_with('\u{feff}') && matches!(input.places, Places::Same) {
        lexer.blank(0, 3);
        lexer.at = 3;
    }
    while lexer.step() {}
    let Lexer { tokens, clean, .. } = lexer;
    Lexed {
        tokens,
        // Replacements are ASCII and replace whole characters, so this never fails; if it did, all would be blank.
        clean: String::from_utf8(clean).unwrap_or_default(),
    }
}

struct Lexer<'a, 's, 'd> {
    input: Input<'a>,
    sink: &'s mut Sink<'d>,
    tokens: Vec<Token>,
    clean: Vec<u8>,
    at: usize,
}

impl<'a> Lexer<'a, '_, '_> {
    fn rest(&self) -> &'a str {
        self.input.text.get(self.at..).unwrap_or("")
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        self.input.text.get(start..end).unwrap_or("")
    }

    fn push(&mut self, kind: Kind, end: usize) {
        self.tokens.push(Token {
            kind,
            start: self.at,
            end,
        });
        self.at = end;
    }

    fn blank(&mut self, start: usize, end: usize) {
        if let Some(bytes) = self.clean.get_mut(start..end) {
            bytes.fill(b' ');
        }
    }

    fn replace(&mut self, at: usize, with: u8) {
        if let Some(byte) = self.clean.get_mut(at) {
            *byte = with;
        }
    }

    fn step(&mut self) -> bool {
        let Some(first) = self.rest().chars().next() else {
            return false;
        };
        match first {
            ' ' | '\t' | '\n' | '\r' => self.at += 1,
            '#' => self.comment(),
            '"' => self.string(),
            '\'' => self.single_quoted(),
            ';' => self.semicolon(),
            _ if self.event() => {}
            '0'..='9' => self.number(),
            'A'..='Z' | 'a'..='z' | '_' => {
                let end = self.at + run(self.rest(), is_word);
                self.push(Kind::Word, end);
            }
            _ => self.sign(first),
        }
        true
    }

    fn comment(&mut self) {
        let end = self.at + self.rest().find('\n').unwrap_or(self.rest().len());
        let (start, comment) = (self.at, self.rest());
        for (offset, ch) in comment.get(..end - start).unwrap_or("").char_indices() {
            if is_forbidden(ch) && !(ch == '\r' && start + offset + 1 == end) {
                self.forbidden(start + offset, ch);
            }
        }
        self.at = end;
    }

    /// `system:event`. Tried only where such a run of characters begins, so that a long run is looked at once.
    fn event(&mut self) -> bool {
        let before = self.slice(0, self.at).chars().next_back();
        if before.is_some_and(is_pattern) && self.tokens.last().is_some_and(|t| t.end == self.at) {
            return false;
        }
        let system = run(self.rest(), is_pattern);
        let after = self.rest().get(system..).unwrap_or("");
        let Some(event) = after.strip_prefix(':').map(|event| run(event, is_pattern)) else {
            return false;
        };
        if system == 0 || event == 0 {
            return false;
        }
        self.push(Kind::Event, self.at + system + 1 + event);
        true
    }

    fn number(&mut self) {
        let mut length = 0;
        let bytes = self.rest().as_bytes();
        for (offset, ch) in self.rest().char_indices() {
            let is_point = ch == '.' && bytes.get(offset + 1).is_some_and(u8::is_ascii_digit);
            if !(is_word(ch) || is_point || ch == 'µ' || ch == 'μ') {
                break;
            }
            length = offset + ch.len_utf8();
        }
        let (start, end) = (self.at, self.at + length);
        let written = self.slice(start, end);
        let after_budget = self
            .tokens
            .last()
            .is_some_and(|t| t.text(self.input.text) == "budget");
        if let Err(complaint) = literal::check(written, after_budget) {
            self.sink.push(complaint.at(self.input.span(start, end), written));
            // A literal of the same kind, so that the grammar has nothing to add.
            self.blank(start, end);
            for (at, byte) in (start..end).zip(complaint.stand_in(written).bytes()) {
                self.replace(at, byte);
            }
        }
        self.push(Kind::Number, end);
    }

    fn string(&mut self) {
        let start = self.at;
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((offset, ch)) = chars.next() {
            let here = start + offset;
            match ch {
                '"' => return self.push(Kind::Text, here + 1),
                '\\' => match chars.next() {
                    Some((_, '"' | '\\' | 'n' | 't')) => {}
                    Some((_, '\n' | '\r')) | None => return self.unclosed(start, here + 1),
                    Some((next, other)) => {
                        let end = start + next + other.len_utf8();
                        let span = self.input.span(here, end);
                        let written = self.slice(here, end);
                        self.sink.error("E012", span, |d| {
                            d.message = format!("unknown escape {}", super::sink::quote(written));
                            d.help
                                .push("a string has the escapes `\\\"`, `\\\\`, `\\n` and `\\t`".to_owned());
                        });
                        self.blank(here, end);
                    }
                },
                '\n' => return self.unclosed(start, here),
                '\r' if self.slice(here, here + 2) == "\r\n" => return self.unclosed(start, here),
                _ if is_forbidden(ch) => self.forbidden(here, ch),
                _ => {}
            }
        }
        let end = self.input.text.len();
        self.unclosed(start, end);
    }

    fn unclosed(&mut self, start: usize, end: usize) {
        let span = self.input.span(start, end);
        self.sink.error("E003", span, |d| {
            "this string is not closed".clone_into(&mut d.message);
            d.help
                .push("end it with `\"` on the same line; a line break in a string is `\\n`".to_owned());
        });
        // The line's end, or blank where the text ends here.
        if end < self.input.text.len() {
            self.replace(end, b'"');
            self.push(Kind::Text, end + 1);
        } else {
            self.blank(start, end);
            self.at = end;
        }
    }

    fn single_quoted(&mut self) {
        // Up to the next of either, so that a line of a thousand quotes is not searched a thousand times.
        let after = self.rest().get(1..).unwrap_or("");
        let Some(length) = after
            .find(['\'', '\n'])
            .filter(|at| after.as_bytes().get(*at) == Some(&b'\''))
        else {
            return self.stray('\'');
        };
        let (start, end) = (self.at, self.at + length + 2);
        let content = self.slice(start + 1, end - 1);
        let span = self.input.span(start, end);
        self.sink.error("E007", span, |d| {
            "a string is written in double quotes".clone_into(&mut d.message);
            d.help.push(format!("write `\"{}\"`", super::sink::cut(content)));
        });
        self.blank(start, end);
        self.replace(start, b'"');
        self.replace(end - 1, b'"');
        self.push(Kind::Text, end);
    }

    fn semicolon(&mut self) {
        let span = self.input.span(self.at, self.at + 1);
        self.sink.error("E021", span, |d| {
            "there is no `;` in the rule language".clone_into(&mut d.message);
            d.help.push(
                "items, members and actions follow each other with a blank or a line break; leave the `;` out"
                    .to_owned(),
            );
        });
        self.blank(self.at, self.at + 1);
        self.at += 1;
    }

    fn sign(&mut self, first: char) {
        if LONG_SIGNS.iter().any(|sign| self.rest().starts_with(sign)) {
            self.push(Kind::Sign, self.at + 2);
        } else if SIGNS.contains(first) {
            self.push(Kind::Sign, self.at + 1);
        } else {
            self.stray(first);
        }
    }

    /// A character that means nothing here.
    fn stray(&mut self, ch: char) {
        if is_forbidden(ch) {
            self.forbidden(self.at, ch);
        } else {
            let end = self.at + ch.len_utf8();
            let span = self.input.span(self.at, end);
            self.sink.error("E006", span, |d| {
                d.message = format!(
                    "{} is not used in the rule language",
                    super::sink::quote(&ch.to_string())
                );
                if let Some(instead) = instead_of(ch) {
                    d.help.push(format!("write {instead}"));
                }
            });
            self.blank(self.at, end);
        }
        self.at += ch.len_utf8();
    }

    /// A character that is allowed nowhere, because it shows as nothing or changes how the rest shows.
    fn forbidden(&mut self, at: usize, ch: char) {
        let span = self.input.span(at, at + ch.len_utf8());
        self.sink.error("E006", span, |d| {
            d.message = format!("invisible character U+{:04X} in a rule file", u32::from(ch));
            d.help
                .push("remove it: it can hide what the rule says".to_owned());
        });
        self.blank(at, at + ch.len_utf8());
    }
}

/// The length of the longest beginning all of whose characters are `of`.
fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|ch| !of(ch)).unwrap_or(text.len())
}

fn is_word(ch: char) -> bool {
    ch.is_ascii_alphanumeric() || ch == '_'
}

fn is_pattern(ch: char) -> bool {
    is_word(ch) || ch == '-' || ch == '*'
}

/// Control characters, and those that reorder what is shown ("Trojan Source", CVE-2021-42574).
fn is_forbidden(ch: char) -> bool {
    (ch.is_control() && !matches!(ch, '\t' | '\n'))
        || matches!(ch, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// What was meant by a character that editors and keyboards put in the place of another.
fn instead_of(ch: char) -> Option<&'static str> {
    Some(match ch {
        '\u{201c}' | '\u{201d}' | '\u{201e}' | '\u{2018}' | '\u{2019}' | '\'' | '`' => "`\"` around a string",
        '\u{2013}' | '\u{2014}' | '\u{2212}' => "`-`",
        '\u{2264}' => "`<=`",
        '\u{2265}' => "`>=`",
        '\u{2260}' => "`!=`",
        '\u{d7}' => "`*`",
        '$' | '@' => "the name alone",
        '\u{a0}' => "an ordinary blank",
        _ => return None,
    })
}
