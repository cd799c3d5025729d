//! The tables of a print format: which names the kernel itself prints for a field's values.
//!
//! In: what is behind `print fmt:`, a field's name, and who knows the values of enumerators. Out: names and values from
//! every `__print_symbolic` and `__print_flags` whose first argument is an expression around that field alone.
//!
//! `__print_symbolic(REC->flags >> 3, {1, "A"})` names a value that the field never has. So the expression is computed
//! for each value of its table, and an entry counts only where a field that holds the value shows it.
//!
//! INVARIANT: total on any text: what is not understood is left out.

use lkst_rules::schema::Symbols;

/// How deep expressions may nest; the kernel's have up to about ten.
const MAX_DEPTH: usize = 64;

/// The names that the print format has for this field's values, in its order, without doubles.
#[must_use]
pub fn symbols(print: &str, field: &str, enumerator: &dyn Fn(&str) -> Option<i64>) -> Symbols {
    let tokens = tokens(print);
    let mut found: Vec<(String, i64)> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let flags = match token {
            Token::Name("__print_symbolic" | "__print_symbolic_u64") => false,
            Token::Name("__print_flags" | "__print_flags_u64") => true,
            _ => continue,
        };
        let Some(inner) = inside(&tokens, at + 1) else {
            continue;
        };
        let arguments = split(inner);
        let Some((&shown, table)) = arguments.split_first() else {
            continue;
        };
        if only_field(shown) != Some(field) {
            continue;
        }
        // Behind the flags' expression stands what is printed between them.
        let table = if flags {
            table.get(1..).unwrap_or(&[])
        } else {
            table
        };
        let mut add = |name: String, value: i64| {
            if !found.iter().any(|(n, v)| *n == name && *v == value) {
                found.push((name, value));
            }
        };
        // `x & mask ? __print_flags(x & mask, …) : "R"`: the name of no flag at all.
        let behind = at + 2 + inner.len() + 1;
        if flags
            && let Some([Token::Mark(':'), Token::Text(name)]) = tokens.get(behind..behind + 2)
            && !name.is_empty()
        {
            add((*name).to_owned(), 0);
        }
        for entry in table {
            let Some((name, value)) = entry_of(entry, enumerator) else {
                continue;
            };
            let shows_itself = Evaluator::run(shown, Some(value), enumerator) == Some(value);
            if shows_itself {
                add(name, value);
            }
        }
    }
    found.into()
}

/// `{ value, "name" }`
fn entry_of(tokens: &[Token<'_>], enumerator: &dyn Fn(&str) -> Option<i64>) -> Option<(String, i64)> {
    let [Token::Mark('{'), inner @ .., Token::Mark('}')] = tokens else {
        return None;
    };
    let parts = split(inner);
    let [value, name] = parts.as_slice() else {
        return None;
    };
    let mut text = String::new();
    for token in *name {
        // "a" "b" is one text in C.
        let Token::Text(part) = token else { return None };
        text.push_str(part);
    }
    (!text.is_empty()).then_some((text, Evaluator::run(value, None, enumerator)?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'t> {
    Name(&'t str),
    Number(i64),
    Text(&'t str),
    Mark(char),
    /// `<<`, `>>`, `&&`, `||`, `==`, `!=`, `<=`, `>=`, `->`, by their first character and second.
    Pair(char, char),
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = if first == '"' {
            let end = text_end(rest);
            out.push(Token::Text(rest.get(1..end).unwrap_or("")));
            end + 1
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            out.push(Token::Name(rest.get(..end).unwrap_or("")));
            end
        } else if first.is_ascii_digit() {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric())
                .unwrap_or(rest.len());
            // A number that is none in C becomes a mark that no expression holds.
            out.push(number(rest.get(..end).unwrap_or("")).map_or(Token::Mark('#'), Token::Number));
            end
        } else {
            let second = rest.chars().nth(1).unwrap_or(' ');
            match (first, second) {
                ('<', '<' | '=')
                | ('>', '>' | '=')
                | ('&', '&')
                | ('|', '|')
                | ('=' | '!', '=')
                | ('-', '>') => {
                    out.push(Token::Pair(first, second));
                    2
                }
                _ => {
                    out.push(Token::Mark(first));
                    first.len_utf8()
                }
            }
        };
        rest = rest.get(taken..).unwrap_or("").trim_start();
    }
    out
}

/// Where a text that begins at 0 ends: the index of its closing quotation mark.
fn text_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    text.len()
}

fn number(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(['u', 'U', 'l', 'L']);
    let value = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if let Some(octal) = digits.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        u64::from_str_radix(octal, 8)
    } else {
        digits.parse()
    };
    value.ok().map(|value| value as i64)
}

/// What is between the parenthesis at `open` and its partner.
fn inside<'a, 't>(tokens: &'a [Token<'t>], open: usize) -> Option<&'a [Token<'t>]> {
    if tokens.get(open) != Some(&Token::Mark('(')) {
        return None;
    }
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(') => depth += 1,
            Token::Mark(')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return tokens.get(open + 1..at);
        }
    }
    None
}

/// Splits at commas outside of parentheses and braces.
fn split<'a, 't>(tokens: &'a [Token<'t>]) -> Vec<&'a [Token<'t>]> {
    let mut depth = 0i32;
    tokens
        .split(|token| {
            match token {
                Token::Mark('(' | '{' | '[') => depth += 1,
                Token::Mark(')' | '}' | ']') => depth -= 1,
                _ => {}
            }
            depth == 0 && *token == Token::Mark(',')
        })
        .collect()
}

/// The field that an expression is about, if it is about exactly one.
fn only_field<'t>(tokens: &[Token<'t>]) -> Option<&'t str> {
    let mut only = None;
    for window in tokens.windows(3) {
        if let [Token::Name("REC"), Token::Pair('-', '>'), Token::Name(name)] = window {
            if only.is_some_and(|other| other != *name) {
                return None;
            }
            only = Some(*name);
        }
    }
    only
}

/// Computes a C expression of integers, 64 bits wide. `None` where it holds anything else.
struct Evaluator<'a, 't> {
    tokens: &'a [Token<'t>],
    at: usize,
    depth: usize,
    /// What `REC->field` is.
    field: Option<i64>,
    enumerator: &'a dyn Fn(&str) -> Option<i64>,
}

impl<'a, 't> Evaluator<'a, 't> {
    fn run(
        tokens: &'a [Token<'t>],
        field: Option<i64>,
        enumerator: &'a dyn Fn(&str) -> Option<i64>,
    ) -> Option<i64> {
        let mut evaluator = Evaluator {
            tokens,
            at: 0,
            depth: 0,
            field,
            enumerator,
        };
        let value = evaluator.binary(0)?;
        (evaluator.at == tokens.len()).then_some(value)
    }

    fn peek(&self) -> Option<Token<'t>> {
        self.tokens.get(self.at).copied()
    }

    fn take(&mut self, token: Token<'_>) -> Option<()> {
        (self.peek()? == token).then(|| self.at += 1)
    }

    /// Operators that bind at least as strongly as `least`, from the left.
    fn binary(&mut self, least: u8) -> Option<i64> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut left = self.unary()?;
        while let Some((strength, operator)) = self.peek().and_then(operator)
            && strength >= least
        {
            self.at += 1;
            let right = self.binary(strength + 1)?;
            left = operator(left, right)?;
        }
        self.depth -= 1;
        Some(left)
    }

    fn unary(&mut self) -> Option<i64> {
        let token = self.peek()?;
        self.at += 1;
        match token {
            Token::Number(value) => Some(value),
            Token::Mark(sign @ ('-' | '~' | '+')) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return None;
                }
                let value = self.unary()?;
                self.depth -= 1;
                Some(match sign {
                    '-' => value.wrapping_neg(),
                    '~' => !value,
                    _ => value,
                })
            }
            Token::Mark('(') if self.cast() => self.unary_nested(),
            Token::Mark('(') => {
                let value = self.binary(0)?;
                self.take(Token::Mark(')'))?;
                Some(value)
            }
            Token::Name("REC") => {
                self.take(Token::Pair('-', '>'))?;
                matches!(self.peek()?, Token::Name(_)).then(|| self.at += 1)?;
                self.field
            }
            Token::Name(name) => (self.enumerator)(name),
            _ => None,
        }
    }

    fn unary_nested(&mut self) -> Option<i64> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let value = self.unary();
        self.depth -= 1;
        value
    }

    /// Steps over `TYPE)` behind an opening parenthesis, if that is what stands there. The width of the type is
    /// ignored: the tables hold values that fit.
    fn cast(&mut self) -> bool {
        let rest = self.tokens.get(self.at..).unwrap_or(&[]);
        let length = rest
            .iter()
            .take_while(|token| match token {
                Token::Name(name) => is_type_word(name),
                Token::Mark('*') => true,
                _ => false,
            })
            .count();
        let is_cast = length > 0 && rest.get(length) == Some(&Token::Mark(')'));
        if is_cast {
            self.at += length + 1;
        }
        is_cast
    }
}

fn is_type_word(name: &str) -> bool {
    const WORDS: [&str; 22] = [
        "unsigned", "signed", "int", "long", "short", "char", "const", "bool", "u8", "u16", "u32", "u64",
        "s8", "s16", "s32", "s64", "__u8", "__u16", "__u32", "__u64", "__s32", "__force",
    ];
    WORDS.contains(&name) || name.ends_with("_t")
}

/// What an operator computes; `None` where C leaves it undefined.
type Compute = fn(i64, i64) -> Option<i64>;

/// An operator's strength, as in C, and what it computes.
fn operator(token: Token<'_>) -> Option<(u8, Compute)> {
    Some(match token {
        Token::Mark('|') => (1, |a, b| Some(a | b)),
        Token::Mark('^') => (2, |a, b| Some(a ^ b)),
        Token::Mark('&') => (3, |a, b| Some(a & b)),
        Token::Pair('<', '<') => (4, |a, b| a.checked_shl(u32::try_from(b).ok()?)),
        Token::Pair('>', '>') => (4, |a, b| a.checked_shr(u32::try_from(b).ok()?)),
        Token::Mark('+') => (5, |a, b| Some(a.wrapping_add(b))),
        Token::Mark('-') => (5, |a, b| Some(a.wrapping_sub(b))),
        Token::Mark('*') => (6, |a, b| Some(a.wrapping_mul(b))),
        Token::Mark('/') => (6, |a, b| a.checked_div(b)),
        Token::Mark('%') => (6, |a, b| a.checked_rem(b)),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "print_format_tests.rs"]
mod tests;
