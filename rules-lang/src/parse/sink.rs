//! Where the syntax errors of one file go.
//!
//! In: what the stages of the parser have to say, in any order. Out: diagnostics by place, no more than [`MOST`] of
//! them, so that a hostile file cannot make a report that is larger than itself by far.

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::source::Span;

/// Syntax errors shown of one file.
pub(super) const MOST: usize = 100;

/// Collects the syntax errors of one file.
pub(super) struct Sink<'d> {
    into: &'d mut Diagnostics,
    found: Vec<Diagnostic>,
    places: Vec<u32>,
}

impl<'d> Sink<'d> {
    pub(super) fn new(into: &'d mut Diagnostics) -> Self {
        Sink {
            into,
            found: Vec::new(),
            places: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        if let Some(first) = diagnostic.labels.first() {
            self.places.push(first.span.start);
        }
        if self.found.len() < MOST {
            self.found.push(diagnostic);
        } else if self.found.len() == MOST {
            let span = diagnostic.labels.first().map(|l| l.span).unwrap_or_default();
            let message = format!("more than {MOST} syntax errors in this file: the rest is not shown");
            self.found.push(Diagnostic::error("E030", span, message));
        }
    }

    /// An error whose text is made only if it is shown.
    pub(super) fn error(&mut self, code: &'static str, span: Span, fill: impl FnOnce(&mut Diagnostic)) {
        if self.is_full() {
            self.places.push(span.start);
            return;
        }
        let mut diagnostic = Diagnostic::error(code, span, String::new());
        fill(&mut diagnostic);
        self.push(diagnostic);
    }

    /// How many errors there are, shown or not.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// True where what is pushed now is not shown any more.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() > MOST
    }

    /// Puts the places in order, for [`Settled::any_within`]. What is pushed later is not looked at.
    pub(super) fn settled_places(&self) -> Settled {
        let mut places = self.places.clone();
        places.sort_unstable();
        Settled(places)
    }

    /// Hands everything over, by place.
    pub(super) fn finish(mut self) {
        // Stable: what was said first of a place stays first. The remark about the rest stays last.
        let shown = self.found.len().min(MOST);
        if let Some(found) = self.found.get_mut(..shown) {
            found.sort_by_key(|d| d.labels.first().map(|l| l.span.start));
        }
        self.into.list.append(&mut self.found);
    }
}

/// The places of the errors that were found at one moment, in order.
pub(super) struct Settled(Vec<u32>);

impl Settled {
    /// True where an error begins in `start..end`.
    pub(super) fn any_within(&self, start: u32, end: u32) -> bool {
        let first = self.0.partition_point(|&place| place < start);
        self.0.get(first).is_some_and(|&place| place < end)
    }
}

/// What the user wrote, cut where it is long.
pub(super) fn cut(written: &str) -> String {
    const LONGEST: usize = 48;
    if written.chars().count() <= LONGEST {
        return written.to_owned();
    }
    written
        .chars()
        .take(LONGEST - 1)
        .chain(std::iter::once('…'))
        .collect()
}

/// What the user wrote, in backticks.
pub(super) fn quote(written: &str) -> String {
    if written == "`" {
        return "a backtick".to_owned();
    }
    format!("`{}`", cut(written))
}
