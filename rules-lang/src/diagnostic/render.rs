//! Diagnostics → text for people and JSON for machines.
//!
//! In: what was found, and the sources it speaks of. Out: for [`render()`], each with its lines and the exact part
//! underlined; for [`to_json`], one array.
//!
//! INVARIANT: no character of a source, of a name of a file or of a message that a terminal would act on or hide comes
//! out of [`render()`]; and however long a line is, little of it comes out.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use super::{Diagnostic, Diagnostics, Label, Severity};
use crate::source::{Source, Span};

/// The most characters of one line that are shown.
const WIDEST: usize = 160;
/// How many of them may stand before the part that is underlined.
const BEFORE: usize = 60;
/// Lines between two places that are shown as one piece.
const NEAR: usize = 3;

/// The diagnostics as text for people, each with its lines and underlined parts. Control characters of the source are
/// shown, never sent to the terminal. Ends with a line break, unless there is nothing to say.
#[must_use]
pub fn render(diagnostics: &Diagnostics, sources: &[Source], colour: bool) -> String {
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let renderer = renderer.term_width(WIDEST + 40);
    let files = Lines::all(sources);
    let mut out = String::new();
    for diagnostic in &diagnostics.list {
        let report = [group(diagnostic, &files)];
        out.push_str(&renderer.render(&report));
        out.push_str("\n\n");
    }
    out.truncate(out.trim_end_matches('\n').len());
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

/// The diagnostics as one JSON array. Each has `code`, `severity`, `message`, `help` (an array of texts) and `labels`; a
/// label has `file`, `line`, `column`, `end_line`, `end_column` (from 1, columns in characters, the end not included),
/// `start` and `end` (bytes) and `text`. The first label is the place; `file`, `line` and `column` are also beside
/// `code`, `null` where there is no place.
#[must_use]
pub fn to_json(diagnostics: &Diagnostics, sources: &[Source]) -> String {
    let files = Lines::all(sources);
    let place = |label: &Label| {
        let source = Lines::of(&files, label.span)?;
        let (line, column) = source.line_column(label.span.start);
        let (end_line, end_column) = source.line_column(label.span.end);
        Some(json!({
            "file": source.source.name,
            "line": line,
            "column": column,
            "end_line": end_line,
            "end_column": end_column,
            "start": label.span.start,
            "end": label.span.end,
            "text": label.text,
        }))
    };
    let list = diagnostics.list.iter().map(|diagnostic| {
        let labels: Vec<Value> = diagnostic.labels.iter().filter_map(place).collect();
        let first = |key: &str| {
            labels
                .first()
                .and_then(|label| label.get(key))
                .cloned()
                .unwrap_or(Value::Null)
        };
        json!({
            "code": diagnostic.code,
            "severity": match diagnostic.severity {
                Severity::Warning => "warning",
                Severity::Error => "error",
            },
            "message": diagnostic.message,
            "file": first("file"),
            "line": first("line"),
            "column": first("column"),
            "labels": labels,
            "help": diagnostic.help,
        })
    });
    Value::Array(list.collect()).to_string()
}

fn group<'a>(diagnostic: &'a Diagnostic, files: &'a [Lines<'a>]) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Warning => Level::WARNING,
        Severity::Error => Level::ERROR,
    };
    let title = level
        .primary_title(visible(&diagnostic.message))
        .id(diagnostic.code);
    let mut group = Group::with_title(title);
    let places = diagnostic.labels.iter().enumerate();
    let mut shown: Vec<Shown<'a>> = places
        .filter_map(|(at, label)| Lines::of(files, label.span).map(|file| Shown::new(file, label, at == 0)))
        .collect();
    // The place first, then its file, then the other files.
    let first_file = shown.first().map(|shown| shown.file.number);
    shown.sort_by_key(|s| (Some(s.file.number) != first_file, s.file.number, s.line, s.start));
    // Where a context stands before the place in one piece of text, the head still names the place.
    let mut rest = shown.as_slice();
    while let Some(first) = rest.first() {
        let same = |pair: &[Shown<'_>]| matches!(pair, [a, b] if a.file.number == b.file.number && b.line <= a.line + NEAR);
        let more = rest.windows(2).take_while(|pair| same(pair)).count();
        let (piece, others) = rest.split_at_checked(more + 1).unwrap_or((rest, &[]));
        rest = others;
        let head = piece.iter().find(|shown| shown.is_place).unwrap_or(first);
        let path = visible(&head.file.source.name);
        group = match snippet(piece) {
            (snippet, false) => group.element(snippet.path(path)),
            // The column in a line that was cut is not the column in the file.
            (snippet, true) => group
                .element(Origin::path(path).line(head.line).char_column(head.column))
                .element(snippet),
        };
    }
    for help in &diagnostic.help {
        group = group.element(Level::HELP.message(visible(help)));
    }
    group
}

/// A few lines of one file with what is underlined in them, and whether one of them was cut at its beginning.
fn snippet<'a>(piece: &[Shown<'a>]) -> (Snippet<'a, annotate_snippets::Annotation<'a>>, bool) {
    let first = piece.iter().map(|shown| shown.line).min().unwrap_or(1);
    let last = piece.iter().map(|shown| shown.line).max().unwrap_or(first);
    let mut text = String::new();
    let mut annotations = Vec::new();
    let mut is_cut = false;
    for line in first..=last {
        let here: Vec<&Shown<'a>> = piece.iter().filter(|shown| shown.line == line).collect();
        let Some(file) = piece.first().map(|shown| shown.file) else {
            break;
        };
        let wanted = here.iter().map(|shown| shown.start).min().unwrap_or(0);
        let base = text.len();
        let cut = CutLine::new(file.line(line), wanted);
        is_cut |= cut.steps.first().is_some_and(|(from, _)| *from > 0);
        text.push_str(&cut.text);
        text.push('\n');
        for shown in here {
            let range = cut.range(shown.start..shown.end);
            let kind = if shown.is_place {
                AnnotationKind::Primary
            } else {
                AnnotationKind::Context
            };
            let annotation = kind.span(base + range.start..base + range.end);
            annotations.push(match shown.label.text.as_str() {
                "" => annotation,
                label => annotation.label(visible(label)),
            });
        }
    }
    let snippet = Snippet::source(text)
        .line_start(first)
        .fold(false)
        .annotations(annotations);
    (snippet, is_cut)
}

/// A label, and where it stands in its file. A place of several lines is shown by its first.
struct Shown<'a> {
    file: &'a Lines<'a>,
    label: &'a Label,
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    /// Bytes in the line.
    start: usize,
    end: usize,
    /// True for the place itself, false for context.
    is_place: bool,
}

impl<'a> Shown<'a> {
    fn new(file: &'a Lines<'a>, label: &'a Label, is_place: bool) -> Self {
        let (line, column) = file.line_column(label.span.start);
        let (text, begins) = (file.line(line), file.start(line));
        let start = (label.span.start as usize).saturating_sub(begins).min(text.len());
        let end = (label.span.end as usize)
            .saturating_sub(begins)
            .clamp(start, text.len());
        Shown {
            file,
            label,
            line,
            column,
            start,
            end,
            is_place,
        }
    }
}

/// A source and where its lines begin, so that many places cost one look at the text.
struct Lines<'a> {
    number: u32,
    source: &'a Source,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn all(sources: &'a [Source]) -> Vec<Self> {
        let index = |(number, source): (u32, &'a Source)| {
            let after_breaks = source.text.match_indices('\n').map(|(at, _)| at + 1);
            Lines {
                number,
                source,
                starts: std::iter::once(0).chain(after_breaks).collect(),
            }
        };
        (0..).zip(sources).map(index).collect()
    }

    /// The file of a place. `None` where the place is in no source, as when a file could not be read as text.
    fn of(files: &'a [Self], span: Span) -> Option<&'a Self> {
        files.get(span.file as usize)
    }

    /// Where line `line`, from 1, begins.
    fn start(&self, line: usize) -> usize {
        self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0)
    }

    /// Line `line`, from 1, without its end.
    fn line(&self, line: usize) -> &'a str {
        let end = self.starts.get(line).copied().unwrap_or(self.source.text.len());
        let line = self.source.text.get(self.start(line)..end).unwrap_or("");
        let line = line.strip_suffix('\n').unwrap_or(line);
        line.strip_suffix('\r').unwrap_or(line)
    }

    /// The line and column, from 1, of byte `at`.
    fn line_column(&self, at: u32) -> (usize, usize) {
        let at = (at as usize).min(self.source.text.len());
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let before = self.source.text.get(self.start(line)..at).unwrap_or("");
        (line, before.chars().count() + 1)
    }
}

/// A line as it is shown: visible characters alone, and not too many.
struct CutLine {
    text: String,
    /// Where each shown byte offset came from: (byte in the line, byte in `text`), in order.
    steps: Vec<(usize, usize)>,
}

impl CutLine {
    /// `wanted`: the byte of the line that must be seen.
    fn new(line: &str, wanted: usize) -> Self {
        let mut text = String::new();
        let mut steps = Vec::new();
        // No need to look at all of a line that may be a megabyte: step back from what is wanted, then forward.
        let wanted = (0..=wanted.min(line.len()))
            .rev()
            .find(|at| line.is_char_boundary(*at))
            .unwrap_or(0);
        let (before, after) = line.split_at_checked(wanted).unwrap_or(("", line));
        let is_long = line.chars().nth(WIDEST).is_some();
        let first = match before.char_indices().rev().nth(BEFORE) {
            Some((at, _)) if is_long => at,
            _ => 0,
        };
        if first > 0 {
            text.push('…');
        }
        let shown = line.get(first..).unwrap_or(after);
        for (at, ch) in shown.char_indices().take(WIDEST) {
            steps.push((first + at, text.len()));
            text.push(visible_char(ch));
        }
        let end = shown
            .char_indices()
            .nth(WIDEST)
            .map_or(line.len(), |(at, _)| first + at);
        steps.push((end, text.len()));
        if end < line.len() {
            text.push('…');
        }
        CutLine { text, steps }
    }

    /// Bytes of the line → bytes of what is shown; what was cut is at the edge.
    fn range(&self, bytes: Range<usize>) -> Range<usize> {
        let shown = |at: usize| self.steps.get(at).or(self.steps.last()).map_or(0, |(_, to)| *to);
        // Outwards to whole characters.
        let start = shown(
            self.steps
                .partition_point(|(from, _)| *from <= bytes.start)
                .saturating_sub(1),
        );
        let end = shown(self.steps.partition_point(|(from, _)| *from < bytes.end));
        start..end.max(start)
    }
}

/// Text in which every character shows as itself and does nothing else.
fn visible(text: &str) -> String {
    text.chars()
        .map(|ch| if ch == '\n' { '␊' } else { visible_char(ch) })
        .collect()
}

/// What stands for a character on a terminal, in one column: the pictures of control characters, and a mark for what
/// reorders text or has no width.
fn visible_char(ch: char) -> char {
    match ch {
        // One column each, so that what is underlined below stays below.
        '\t' => ' ',
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + u32::from(ch)).unwrap_or('\u{fffd}'),
        '\u{7f}' => '␡',
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' => '\u{fffd}',
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => {
            '\u{fffd}'
        }
        '\u{e0000}'..='\u{e0fff}' => '\u{fffd}',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Vec<Source> {
        vec![Source {
            name: "a.lkst".to_owned(),
            text: text.to_owned(),
        }]
    }

    fn one(diagnostic: Diagnostic) -> Diagnostics {
        Diagnostics {
            list: vec![diagnostic],
        }
    }

    fn span(start: u32, end: u32) -> Span {
        Span { file: 0, start, end }
    }

    #[test]
    fn underlines_the_exact_part() {
        let text = "set a {\n  b:c\twith é == foo\n}\n";
        let start = u32::try_from(text.find("foo").unwrap_or(0)).unwrap_or(0);
        let error = Diagnostic::error("E101", span(start, start + 3), "no `foo`")
            .label("here")
            .help("write `bar`");
        let shown = render(&one(error), &source(text), false);
        let expected = [
            "error[E101]: no `foo`",
            " --> a.lkst:2:17",
            "  |",
            "2 |   b:c with é == foo",
            "  |                 ^^^ here",
            "  |",
            "  = help: write `bar`",
            "",
        ];
        assert_eq!(shown, expected.join("\n"));
    }

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        let hostile = "\u{1b}[31m\u{7}\u{9b}\u{202e}\u{2066}\r\u{200b}\u{e0041}x";
        let error = Diagnostic::error("E001", span(0, 3), hostile)
            .label(hostile)
            .help(hostile);
        let mut sources = source(hostile);
        if let Some(source) = sources.first_mut() {
            source.name = hostile.to_owned();
        }
        let shown = render(&one(error), &sources, false);
        assert!(
            shown.chars().all(|ch| ch == '\n' || visible_char(ch) == ch),
            "{shown:?}"
        );
    }

    #[test]
    fn long_lines_are_cut_and_columns_stay_true() {
        let text = format!("{}here{}", "x".repeat(500_000), "y".repeat(500_000));
        let error =
            Diagnostic::error("E001", span(500_000, 500_004), "m").also(span(900_000, 900_001), "far");
        let shown = render(&one(error), &source(&text), false);
        assert!(shown.len() < 2_000, "{}", shown.len());
        assert!(shown.contains("a.lkst:1:500001"), "{shown}");
        assert!(shown.contains("^^^^"), "{shown}");
    }

    #[test]
    fn places_outside_the_sources_do_no_harm() {
        let error = Diagnostic::error("E001", span(7, 900), "m").also(
            Span {
                file: 9,
                start: 1,
                end: 2,
            },
            "x",
        );
        let shown = render(&one(error), &source("é"), true);
        assert!(shown.contains("E001"), "{shown}");
        let inside_a_character = Diagnostic::error("E001", span(1, 1), "m");
        assert!(render(&one(inside_a_character), &source("é\n"), false).contains("a.lkst:1:1"));
        assert!(
            render(
                &one(Diagnostic {
                    labels: vec![],
                    ..Diagnostic::error("E016", span(0, 0), "m")
                }),
                &[],
                false
            )
            .starts_with("error[E016]: m")
        );
    }

    #[test]
    fn json_has_the_place() {
        let error = Diagnostic::error("E001", span(3, 5), "m").help("h");
        let text = to_json(&one(error), &source("é\nab"));
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(value[0]["line"], 2);
        assert_eq!(value[0]["column"], 1);
        assert_eq!(value[0]["labels"][0]["end_column"], 3);
        assert_eq!(value[0]["help"][0], "h");
    }
}
