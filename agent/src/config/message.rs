//! What is wrong with the configuration: an error of the TOML reader in, a message for people out.
//!
//! ```text
//! /etc/lkst/lkst.toml:3:1: unknown key `rule_dir`
//!   |
//! 3 | rule_dir = "/etc/rules"
//!   | ^^^^^^^^
//!   = help: did you mean `rules_dir`?
//! ```
//!
//! INVARIANT: no character of the file that a terminal would act on comes out.

use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::path::Path;

use lkst_rules::nearest::nearest;

use crate::trace::escape::visible;
use crate::trust::Mistrust;

/// The most characters of a line that are shown.
const WIDEST: usize = 160;

/// Why there is no configuration, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigError {
    /// The whole message; several lines where a place can be shown.
    pub text: String,
    /// Line and column, from 1, columns in characters.
    pub place: Option<(usize, usize)>,
}

impl ConfigError {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
        ConfigError {
            text: format!("cannot read {path:?}: {error}"),
            place: None,
        }
    }

    pub(super) fn mistrusted(mistrust: &Mistrust) -> ConfigError {
        ConfigError {
            text: mistrust.to_string(),
            place: None,
        }
    }

    pub(super) fn wrong(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
        let (message, help) = worded(error.message());
        let Some(place) = error.span().and_then(|span| Place::of(text, &span)) else {
            return ConfigError {
                text: visible_lines(&format!("{}: {message}{}", path.display(), helped(&help, "  "))),
                place: None,
            };
        };
        let Place { line, column, .. } = place;
        let margin = " ".repeat(line.to_string().len());
        let mut out = format!("{}:{line}:{column}: {message}\n", path.display());
        // Writing to a text cannot fail.
        let _ = writeln!(out, "{margin} |\n{line} | {}", place.shown);
        let _ = write!(
            out,
            "{margin} | {}{}",
            " ".repeat(place.before),
            "^".repeat(place.marked)
        );
        out.push_str(&helped(&help, &margin));
        ConfigError {
            text: visible_lines(&out),
            place: Some((line, column)),
        }
    }
}

fn helped(help: &[String], margin: &str) -> String {
    help.iter()
        .map(|help| format!("\n{margin} = help: {help}"))
        .collect()
}

fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

/// A line and the part of it that is meant.
struct Place {
    line: usize,
    column: usize,
    shown: String,
    before: usize,
    marked: usize,
}

impl Place {
    fn of(text: &str, span: &Range<usize>) -> Option<Place> {
        let before = text.get(..span.start)?;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let whole = text.get(start..)?.lines().next().unwrap_or_default();
        // What is shown is as wide as what was written: one character for each.
        let shown: String = whole
            .chars()
            .take(WIDEST)
            .map(|c| {
                if visible(c.encode_utf8(&mut [0; 4])).chars().count() == 1 {
                    c
                } else {
                    ' '
                }
            })
            .collect();
        let width = shown.chars().count();
        let column = text.get(start..span.start)?.chars().count();
        let marked = text
            .get(span.clone())
            .map_or(1, |part| part.lines().next().unwrap_or_default().chars().count());
        let before = column.min(width);
        Some(Place {
            line: before_lines(text, start) + 1,
            column: column + 1,
            shown,
            before,
            marked: marked.min(width - before).max(1),
        })
    }
}

fn before_lines(text: &str, start: usize) -> usize {
    text.bytes().take(start).filter(|byte| *byte == b'\n').count()
}

/// The reader's words in ours, and help.
fn worded(message: &str) -> (String, Vec<String>) {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    let mut help: Vec<String> = lines.map(str::to_owned).collect();
    // "unknown field `x`, expected one of `a`, `b`": the reader's list of names is its own.
    let said = ["unknown field ", "unknown variant "];
    let Some(rest) = said.iter().find_map(|start| first.strip_prefix(start)) else {
        return (first.to_owned(), help);
    };
    let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let Some((wanted, known)) = names.split_first() else {
        return (first.to_owned(), help);
    };
    help.extend(nearest(wanted, known.iter().copied()).map(|name| format!("did you mean `{name}`?")));
    let listed = known
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    match first.starts_with("unknown field") {
        true => {
            help.push(format!("known here: {listed}"));
            (format!("unknown key `{wanted}`"), help)
        }
        false => {
            help.push(format!("write one of {listed}"));
            (format!("`{wanted}` is not known here"), help)
        }
    }
}
