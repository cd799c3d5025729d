//! The text of a `metadata` file in, [`TraceInfo`] out: the reverse of [`super::metadata::text`].
//!
//! This is no parser of TSDL but of the part of it that lkst writes. What is fixed there must be there word for word,
//! blanks and comments aside, so a trace of another tracer gets an error that says on which line it differs. Total on
//! any input: no recursion, one pass, and memory in proportion to the text, whose size is limited.

use std::collections::HashMap;

use lkst_probes::layout::{Encoding, RecordLayout};

use super::metadata::{NAME_PREFIX, OWN_ENV, STREAM, TRACE, TYPES, TraceInfo};

/// The largest `metadata` that is read. One with every event of a kernel is about one MiB.
pub const MAX_BYTES: u64 = 16 << 20;

/// What a `metadata` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What its packets carry.
    pub uuid: [u8; 16],
    /// The rest; [`TraceInfo::uuid`] is the session's.
    pub info: TraceInfo,
}

/// The text is none that lkst writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// What lkst writes there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// Reads the text of a `metadata` file.
///
/// # Errors
/// A [`ParseError`] at the first word that lkst would not have written.
pub fn parse(text: &str) -> Result<Metadata, ParseError> {
    let mut parser = Parser {
        lexer: Lexer { text, at: 0 },
        token: Token::End,
        token_at: 0,
    };
    parser.next();
    parser.file()
}

/// A word of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Number(u64),
    String(String),
    /// Any other character.
    Sign(char),
    End,
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Name(name) => write!(f, "`{}`", name.chars().take(60).collect::<String>()),
            Token::Number(number) => write!(f, "`{number}`"),
            Token::String(text) => write!(f, "{:?}", text.chars().take(60).collect::<String>()),
            Token::Sign(sign) => write!(f, "`{}`", sign.escape_default()),
            Token::End => f.write_str("the end"),
        }
    }
}

/// Cuts the text into words.
#[derive(Debug, Clone)]
struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    /// Skips blanks and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            let Some(comment) = trimmed.strip_prefix("/*") else {
                return;
            };
            self.at += 2 + comment.find("*/").map_or(comment.len(), |end| end + 2);
        }
    }

    fn next(&mut self) -> Token<'a> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Token::End;
        };
        let word = |ok: fn(char) -> bool| {
            let end = rest.find(|c| !ok(c)).unwrap_or(rest.len());
            rest.get(..end).unwrap_or("")
        };
        if first == '"' {
            return self.string();
        }
        if first.is_ascii_digit() {
            let digits = word(|c| c.is_ascii_alphanumeric());
            if let Ok(number) = digits.parse() {
                self.at += digits.len();
                return Token::Number(number);
            }
        } else if first.is_ascii_alphabetic() || first == '_' {
            let name = word(|c| c.is_ascii_alphanumeric() || c == '_');
            self.at += name.len();
            return Token::Name(name);
        }
        self.at += first.len_utf8();
        Token::Sign(first)
    }

    /// A string; lkst escapes the quote and the backslash alone. One without an end is a lone quote.
    fn string(&mut self) -> Token<'a> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Token::String(out);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => out.push(escaped),
                    _ => break,
                },
                _ => out.push(c),
            }
        }
        self.at += 1;
        Token::Sign('"')
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    token_at: usize,
}

type Parsed<T> = Result<T, ParseError>;

impl<'a> Parser<'a> {
    /// Moves on, and returns the word that was left.
    fn next(&mut self) -> Token<'a> {
        self.lexer.skip();
        self.token_at = self.lexer.at;
        let next = self.lexer.next();
        std::mem::replace(&mut self.token, next)
    }

    fn error<T>(&self, expected: impl Into<String>) -> Parsed<T> {
        let before = self.lexer.text.as_bytes().get(..self.token_at).unwrap_or(&[]);
        Err(ParseError {
            line: 1 + memchr::memchr_iter(b'\n', before).count(),
            expected: expected.into(),
            found: self.token.to_string(),
        })
    }

    /// Takes the words of a text that lkst always writes so.
    fn exactly(&mut self, text: &str) -> Parsed<()> {
        let mut expected = Lexer { text, at: 0 };
        loop {
            expected.skip();
            match expected.next() {
                Token::End => return Ok(()),
                token if token == self.token => self.next(),
                token => return self.error(token.to_string()),
            };
        }
    }

    /// Takes that sign if it is next.
    fn take(&mut self, sign: char) -> bool {
        let taken = self.token == Token::Sign(sign);
        if taken {
            self.next();
        }
        taken
    }

    fn name(&mut self, what: &str) -> Parsed<&'a str> {
        match self.token {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            _ => self.error(what),
        }
    }

    fn string(&mut self, what: &str) -> Parsed<String> {
        match self.next_if_string() {
            Some(text) => Ok(text),
            None => self.error(what),
        }
    }

    fn next_if_string(&mut self) -> Option<String> {
        match &mut self.token {
            Token::String(text) => {
                let text = std::mem::take(text);
                self.next();
                Some(text)
            }
            _ => None,
        }
    }

    fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Parsed<T> {
        match self.token {
            Token::Number(number) => match T::try_from(number) {
                Ok(number) => {
                    self.next();
                    Ok(number)
                }
                Err(_) => self.error(what),
            },
            _ => self.error(what),
        }
    }

    fn file(&mut self) -> Parsed<Metadata> {
        self.exactly(TYPES)?;
        self.exactly("trace { major = 1; minor = 8; uuid =")?;
        let uuid = self.uuid()?;
        self.exactly(";")?;
        self.exactly(TRACE)?;
        let mut info = TraceInfo::default();
        let names = self.env(&mut info)?;
        info.boot_offset_ns = self.clock()?;
        self.exactly(STREAM)?;
        while self.token != Token::End {
            let layout = self.event(&names)?;
            info.layouts.push(layout);
        }
        Ok(Metadata { uuid, info })
    }

    fn uuid(&mut self) -> Parsed<[u8; 16]> {
        match &self.token {
            Token::String(text) => match uuid_of(text) {
                Some(uuid) => {
                    self.next();
                    Ok(uuid)
                }
                None => self.error("a UUID"),
            },
            _ => self.error("a UUID"),
        }
    }

    /// The `env` block. Returns the exact names of columns by `ID_COLUMN`.
    fn env(&mut self, info: &mut TraceInfo) -> Parsed<HashMap<String, String>> {
        let mut names = HashMap::new();
        self.exactly("env {")?;
        let [name, version, session, boot_id, hostname, kernel_release, pack] = OWN_ENV;
        self.exactly(name)?;
        self.exactly("= \"lkst\";")?;
        info.lkst_version = self.entry(version)?;
        self.exactly(session)?;
        self.exactly("=")?;
        info.uuid = self.uuid()?;
        self.exactly(";")?;
        info.boot_id = self.entry(boot_id)?;
        info.hostname = self.entry(hostname)?;
        info.kernel_release = self.entry(kernel_release)?;
        info.pack = self.entry(pack)?;
        while !self.take('}') {
            let name = self.name("the name of an entry, or `}`")?;
            self.exactly("=")?;
            let value = self.string("a string")?;
            self.exactly(";")?;
            match name.strip_prefix(NAME_PREFIX) {
                Some(column) => drop(names.insert(column.to_owned(), value)),
                None => info.env.push((name.to_owned(), value)),
            }
        }
        self.exactly(";")?;
        Ok(names)
    }

    fn entry(&mut self, name: &str) -> Parsed<String> {
        self.exactly(name)?;
        self.exactly("=")?;
        let value = self.string("a string")?;
        self.exactly(";")?;
        Ok(value)
    }

    /// The clock block; its offset in nanoseconds.
    fn clock(&mut self) -> Parsed<i64> {
        self.exactly("clock { name = boottime; freq = 1000000000; absolute = true; offset_s =")?;
        let negative = self.take('-');
        let seconds: i64 = self.number("seconds")?;
        self.exactly("; offset =")?;
        let nanos: u32 = self.number("nanoseconds")?;
        let seconds = if negative { -seconds } else { seconds };
        let offset = seconds
            .checked_mul(1_000_000_000)
            .and_then(|s| s.checked_add(i64::from(nanos)));
        let Some(offset) = offset else {
            return self.error("an offset of less than 292 years");
        };
        self.exactly("; };")?;
        Ok(offset)
    }

    fn event(&mut self, names: &HashMap<String, String>) -> Parsed<RecordLayout> {
        self.exactly("event { id =")?;
        let id: u16 = self.number("an id from 1 to 65535")?;
        self.exactly("; name =")?;
        let name = self.string("the event's name")?;
        self.exactly("; stream_id = 0; fields := struct {")?;
        let mut columns = Vec::new();
        let mut varying = false;
        while !self.take('}') {
            let (field, encoding, hex) = self.field()?;
            if encoding.fixed().is_some() && varying {
                return self.error("no field of fixed size behind one that varies");
            }
            varying |= encoding.fixed().is_none();
            let exact = names.get(&format!("{id}_{}", columns.len()));
            columns.push((exact.map_or(field, String::as_str).to_owned(), encoding, hex));
        }
        self.exactly("; };")?;
        match RecordLayout::new(id, &name, columns) {
            Ok(layout) => Ok(layout),
            Err(error) => self.error(format!("an event whose records fit a page ({error})")),
        }
    }

    /// A field, with its length before it where it is a sequence: its name, how it lies, and whether in hexadecimal.
    fn field(&mut self) -> Parsed<(&'a str, Encoding, bool)> {
        let ty = self.name("the type of a field, or `}`")?;
        match ty {
            "string" => {
                self.exactly("{ encoding = UTF8; }")?;
                let name = self.field_name()?;
                self.exactly(";")?;
                Ok((name, Encoding::String, false))
            }
            "enum" => {
                let labels = self.enumerators()?;
                let name = self.field_name()?;
                self.exactly(";")?;
                Ok((name, Encoding::Enum(labels), false))
            }
            "text" => {
                let name = self.field_name()?;
                self.exactly("[")?;
                let bytes = self.number("how many bytes")?;
                self.exactly("];")?;
                Ok((name, Encoding::Text { bytes }, false))
            }
            "length" => self.sequence(),
            _ => {
                let Integer { bits, signed, hex } = self.integer(ty, None)?;
                let name = self.field_name()?;
                let encoding = if self.take('[') {
                    let count = self.number("how many")?;
                    self.exactly("]")?;
                    Encoding::Array { bits, signed, count }
                } else {
                    Encoding::Int { bits, signed }
                };
                self.exactly(";")?;
                Ok((name, encoding, hex))
            }
        }
    }

    fn enumerators(&mut self) -> Parsed<Vec<(String, u32)>> {
        self.exactly(": u32 {")?;
        let mut labels = Vec::new();
        loop {
            let label = self.string("a name")?;
            self.exactly("=")?;
            labels.push((label, self.number("a number of 32 bits")?));
            if !self.take(',') {
                self.exactly("}")?;
                return Ok(labels);
            }
        }
    }

    fn sequence(&mut self) -> Parsed<(&'a str, Encoding, bool)> {
        let length = self.name("the name of the length")?;
        self.exactly(";")?;
        let ty = self.name("the type of an element")?;
        let Integer { bits, signed, hex } = self.integer(ty, Some(8))?;
        let name = self.field_name()?;
        self.exactly("[")?;
        self.exactly(length)?;
        self.exactly("];")?;
        Ok((name, Encoding::Sequence { bits, signed }, hex))
    }

    /// An integer type whose first word was taken; at natural alignment or at `align` bits.
    fn integer(&mut self, first: &str, align: Option<u8>) -> Parsed<Integer> {
        let ty = if first == "integer" {
            self.exactly("{ size =")?;
            let bits: u8 = self.number("8, 16, 32 or 64")?;
            self.exactly("; align =")?;
            if self.token != Token::Number(align.unwrap_or(bits).into()) {
                return self.error(format!("`{}`", align.unwrap_or(bits)));
            }
            self.next();
            self.exactly("; signed =")?;
            let signed = match self.name("`true` or `false`")? {
                "true" => true,
                "false" => false,
                _ => return self.error("`true` or `false` before this"),
            };
            self.exactly("; base =")?;
            let hex = match self.number("10 or 16")? {
                10_u8 => false,
                16 => true,
                _ => return self.error("10 or 16 before this"),
            };
            self.exactly("; }")?;
            Integer { bits, signed, hex }
        } else {
            let (kind, bits) = first.split_at_checked(1).unwrap_or((first, ""));
            let (signed, hex) = match kind {
                "u" => (false, false),
                "s" => (true, false),
                "x" => (false, true),
                _ => return self.error("a type that lkst writes before this"),
            };
            let bits = bits.parse().unwrap_or(0);
            if align.is_some_and(|align| align != bits) {
                return self.error("an element that is byte-aligned before this");
            }
            Integer { bits, signed, hex }
        };
        match ty.bits {
            8 | 16 | 32 | 64 => Ok(ty),
            _ => self.error("an integer of 8, 16, 32 or 64 bits before this"),
        }
    }

    /// A field's name without the underscore that TSDL needs.
    fn field_name(&mut self) -> Parsed<&'a str> {
        match self.token {
            Token::Name(name) => match name.strip_prefix('_') {
                Some(plain) => {
                    self.next();
                    Ok(plain)
                }
                None => self.error("a field's name with an underscore before it"),
            },
            _ => self.error("a field's name"),
        }
    }
}

struct Integer {
    bits: u8,
    signed: bool,
    hex: bool,
}

/// A UUID as it is usually written.
fn uuid_of(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.split('-').collect();
    if text.len() != 36 || digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::metadata;

    fn sample() -> TraceInfo {
        let columns = [
            (
                "event",
                Encoding::Int {
                    bits: 32,
                    signed: true,
                },
                false,
            ),
            (
                "_x",
                Encoding::Int {
                    bits: 64,
                    signed: true,
                },
                true,
            ),
            (
                "args.prev.pid",
                Encoding::Int {
                    bits: 64,
                    signed: false,
                },
                true,
            ),
            (
                "args_prev_pid",
                Encoding::Array {
                    bits: 16,
                    signed: false,
                    count: 3,
                },
                true,
            ),
            ("_seq_length", Encoding::Text { bytes: 16 }, false),
            (
                "rule",
                Encoding::Enum(vec![("a \"b\"\\".into(), 0), ("B".into(), u32::MAX)]),
                false,
            ),
            (
                "seq",
                Encoding::Sequence {
                    bits: 64,
                    signed: false,
                },
                true,
            ),
            (
                "bytes",
                Encoding::Sequence {
                    bits: 8,
                    signed: true,
                },
                false,
            ),
            ("string", Encoding::String, false),
        ]
        .map(|(name, encoding, hex)| (name.to_owned(), encoding, hex));
        TraceInfo {
            uuid: std::array::from_fn(|i| i as u8),
            hostname: "bö\"x\\".into(),
            kernel_release: "6.18.0".into(),
            boot_id: "b".into(),
            lkst_version: "0.1.0".into(),
            pack: "io".into(),
            boot_offset_ns: -1,
            layouts: RecordLayout::new(7, "task:\"a\"", columns)
                .into_iter()
                .chain(RecordLayout::new(65_535, "empty:e", []))
                .collect(),
            env: vec![("captured".into(), "all".into())],
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let info = sample();
        assert_eq!(info.layouts.len(), 2);
        let text = metadata::text(&info, &[9; 16]);
        assert_eq!(parse(&text), Ok(Metadata { uuid: [9; 16], info }), "{text}");
    }

    #[test]
    fn control_characters_become_visible() {
        let info = TraceInfo {
            hostname: "a\x1b[31m\nb".into(),
            ..TraceInfo::default()
        };
        let text = metadata::text(&info, &[0; 16]);
        assert!(!text.contains('\x1b'));
        assert_eq!(parse(&text).map(|m| m.info.hostname), Ok(r"a\x1b[31m\nb".into()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_a_trace() {
        let text = metadata::text(&sample(), &[9; 16]);
        let end = text.trim_end().len();
        for (at, _) in text.char_indices().filter(|(at, _)| *at < end).step_by(7) {
            let cut = text.get(..at).unwrap_or("");
            // Between two events the text is whole.
            assert!(parse(cut).is_err() || cut.trim_end().ends_with("};"), "{cut}");
            for byte in ["", "\"", "}", "_", "9", "\\", "é", "/*"] {
                let rest = text.get(at..).unwrap_or("").chars().skip(1).collect::<String>();
                let _total = parse(&format!("{cut}{byte}{rest}"));
            }
        }
    }

    #[test]
    fn an_error_says_where() {
        let error = parse("/* CTF 1.8 */\n\ntypealias integer { size = 9;").map_err(|e| e.to_string());
        assert_eq!(error, Err("line 3: expected `8`, found `9`".into()));
    }
}
