//! Text → [`crate::ast`]: the whole grammar of the language, with every syntax error of a file.
//!
//! In: the text of one file, or one expression. Out: its tree, without the items that have a syntax error, and those
//! errors. Parsing never fails: it gives what it understood and says what it did not.
//!
//! ```text
//! text ─lexer→ tokens ─split→ chunks ─grammar.pest→ pairs ─build, expr→ ast
//!                                        └─explain→ diagnostics
//! ```
//!
//! INVARIANT: the parser generator's types do not leave this module. Time and memory are linear in the text, and the
//! depth of recursion is bounded (see `split`), whatever the text holds.

mod build;
mod explain;
mod expr;
mod lexer;
pub(crate) mod literal;
mod notify;
mod sink;
mod split;

use pest::Parser;
use pest::iterators::Pair;

use crate::ast;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::source::{Source, Span};
use build::Build;
use lexer::{Input, Lexed, Places};
use sink::Sink;
use split::Chunk;

/// The largest file that is read: 1 MiB.
pub const LARGEST_FILE: usize = 1 << 20;

/// The version of the language that this lkst understands.
pub const LANGUAGE: u64 = 1;

mod grammar {
    /// The generated parser.
    #[derive(pest_derive::Parser)]
    #[grammar = "grammar.pest"]
    pub(super) struct Grammar;
}
use grammar::{Grammar, Rule};

/// Parses one file of a pack. `file` is its index in the pack's list of sources.
#[must_use]
pub fn parse(file: u32, text: &str, diagnostics: &mut Diagnostics) -> ast::File {
    let input = Input {
        text,
        file,
        places: Places::Same,
    };
    let mut sink = Sink::new(diagnostics);
    let mut tree = ast::File::default();
    if text.len() > LARGEST_FILE {
        sink.push(too_large(file, text.len()));
        sink.finish();
        return tree;
    }
    let lexed = lexer::lex(input, &mut sink);
    let chunks = split::split(input, &lexed.tokens, &mut sink);
    let settled = sink.settled_places();
    for (at, chunk) in chunks.iter().enumerate() {
        // A hostile file is not worth the time: nobody will be told what is wrong with the rest of it.
        if sink.is_full() {
            tree.broken.extend(name_of(input, &lexed, chunk));
            continue;
        }
        let before = sink.count();
        let item = item(input, &lexed, chunk, &settled, &mut sink);
        let (start, end) = chunk_ends(&lexed, chunk);
        let is_sound = sink.count() == before && !settled.any_within(input.offset(start), input.offset(end));
        match item {
            Some(_) if !is_sound => tree.broken.extend(name_of(input, &lexed, chunk)),
            Some(build::Item::Language(version)) => language(at, version, &mut tree, &mut sink),
            Some(build::Item::Other(item)) => tree.items.push(item),
            None => tree.broken.extend(name_of(input, &lexed, chunk)),
        }
    }
    sink.finish();
    tree
}

/// Parses one expression, such as the condition of `lkst show --where`.
#[must_use]
pub fn parse_expression(file: u32, text: &str, diagnostics: &mut Diagnostics) -> Option<ast::Expr> {
    let mut sink = Sink::new(diagnostics);
    let expr = if text.len() > LARGEST_FILE {
        sink.push(too_large(file, text.len()));
        None
    } else {
        expression(
            Input {
                text,
                file,
                places: Places::Same,
            },
            &mut sink,
        )
    };
    sink.finish();
    expr
}

/// The bytes of a file as a source, or what is wrong with them. `file` is the index that the source will have.
#[must_use]
pub fn source_from_bytes(
    name: &str,
    bytes: Vec<u8>,
    file: u32,
    diagnostics: &mut Diagnostics,
) -> Option<Source> {
    let unread = |mut diagnostic: Diagnostic| {
        // There will be no source to point into.
        diagnostic.labels.clear();
        diagnostic.message = format!("`{name}`: {}", diagnostic.message);
        diagnostic
    };
    if bytes.len() > LARGEST_FILE {
        diagnostics.push(unread(too_large(file, bytes.len())));
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(Source {
            name: name.to_owned(),
            text,
        }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..at).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            let last_line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
            let column = String::from_utf8_lossy(last_line).chars().count() + 1;
            let byte = error.as_bytes().get(at).copied().unwrap_or_default();
            let message = format!("byte 0x{byte:02x} at line {line}, column {column} is not UTF-8");
            diagnostics.push(unread(
                Diagnostic::error(
                    "E016",
                    Span {
                        file,
                        start: 0,
                        end: 0,
                    },
                    message,
                )
                .help("rule files are UTF-8 text; convert it, for example with `iconv -f latin1 -t utf-8`"),
            ));
            None
        }
    }
}

fn too_large(file: u32, bytes: usize) -> Diagnostic {
    let message = format!("the file has {bytes} bytes, and 1 MiB ({LARGEST_FILE}) is the most");
    Diagnostic::error(
        "E015",
        Span {
            file,
            start: 0,
            end: 0,
        },
        message,
    )
    .help("a pack may be a folder of several files")
}

/// `language 1`, which comes first where it is written.
fn language(at: usize, version: crate::source::Name, tree: &mut ast::File, sink: &mut Sink<'_>) {
    let value = literal::integer(&version.value);
    if at > 0 {
        sink.push(
            Diagnostic::error(
                "E029",
                version.span,
                "`language` must be the first item of a file",
            )
            .help("it says how to read all that follows; move it to the top, once"),
        );
    } else if value == Some(LANGUAGE) {
        tree.language = Some(crate::source::Spanned {
            value: LANGUAGE,
            span: version.span,
        });
    } else {
        let message = format!("this lkst understands language {LANGUAGE}, not {}", version.value);
        sink.push(
            Diagnostic::error("E017", version.span, message).help("a newer lkst may understand this file"),
        );
    }
}

/// Asks the grammar about one item. `None`: it is broken, and that was said.
fn item(
    input: Input<'_>,
    lexed: &Lexed,
    chunk: &Chunk,
    settled: &sink::Settled,
    sink: &mut Sink<'_>,
) -> Option<build::Item> {
    read(
        input,
        lexed,
        chunk,
        Rule::entry_item,
        Some(settled),
        sink,
        |pair, build| build.item(&pair),
    )
}

/// Parses an expression that stands alone or inside a string.
fn expression(input: Input<'_>, sink: &mut Sink<'_>) -> Option<ast::Expr> {
    let before = sink.count();
    let lexed = lexer::lex(input, sink);
    let chunk = split::single(input, &lexed.tokens, sink)?;
    if sink.count() > before {
        return None;
    }
    read(
        input,
        &lexed,
        &chunk,
        Rule::entry_expr,
        None,
        sink,
        |pair, build| build.expr(&pair),
    )
}

fn read<T>(
    input: Input<'_>,
    lexed: &Lexed,
    chunk: &Chunk,
    entry: Rule,
    settled: Option<&sink::Settled>,
    sink: &mut Sink<'_>,
    make: impl FnOnce(Pair<'_, Rule>, &mut Build<'_, '_, '_>) -> Option<T>,
) -> Option<T> {
    if chunk.hopeless {
        return None;
    }
    let (start, end) = chunk_ends(lexed, chunk);
    let sound = lexed.clean.get(start..end).unwrap_or("");
    let completed;
    let text = if chunk.missing.is_empty() {
        sound
    } else {
        completed = format!("{sound}{}", chunk.missing);
        &completed
    };
    match Grammar::parse(entry, text) {
        Ok(mut pairs) => {
            let before = sink.count();
            let made = pairs
                .next()
                .and_then(|pair| make(pair, &mut Build::new(input, start, sink)));
            if made.is_none() && sink.count() == before {
                // Not reached while `build` covers the grammar; if it does not, the user must still hear of it.
                sink.push(Diagnostic::error(
                    "E001",
                    input.span(start, end),
                    "this cannot be read",
                ));
            }
            made
        }
        Err(error) => {
            let place = start + explain::place(&error);
            // What the lexer or the brackets already complained about on this line explains this too.
            let line = start
                + input
                    .text
                    .get(start..place.min(end))
                    .and_then(|t| t.rfind('\n'))
                    .unwrap_or(0);
            let is_explained = settled
                .is_some_and(|s| s.any_within(input.offset(line), input.offset(place) + 1))
                || (place >= end && !chunk.missing.is_empty());
            if !is_explained {
                let tokens = lexed.tokens.get(chunk.first..chunk.last).unwrap_or_default();
                sink.push(explain::explain(&error, input, tokens, start, end));
            }
            None
        }
    }
}

/// Where a chunk begins and ends in the text.
fn chunk_ends(lexed: &Lexed, chunk: &Chunk) -> (usize, usize) {
    let tokens = lexed.tokens.get(chunk.first..chunk.last).unwrap_or_default();
    match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => (first.start, last.end),
        _ => (0, lexed.clean.len()),
    }
}

/// The name that a broken item would have had.
fn name_of(input: Input<'_>, lexed: &Lexed, chunk: &Chunk) -> Option<String> {
    let name = lexed.tokens.get(chunk.first + 1)?;
    (chunk.last > chunk.first + 1 && name.kind == lexer::Kind::Word).then(|| name.text(input.text).to_owned())
}
