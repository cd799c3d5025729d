//! Source texts and places in them.
//!
//! In: the files of a pack, as the caller read them. Out: [`Span`]s, which every later stage carries so that a
//! diagnostic can show the very characters it speaks of. A span never outlives the [`Source`]s it was made from in
//! meaning, only in memory: it is two offsets and a file number.

/// One file of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name shown in diagnostics, usually the path as the user gave it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// A part of one file: bytes `start..end` of file number `file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Span {
    /// Index into the pack's list of sources.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The smallest span that holds both, which must be of one file.
    #[must_use]
    pub fn to(self, other: Span) -> Span {
        Span {
            file: self.file,
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// One-based line and column (in characters) of the start.
    #[must_use]
    pub fn line_column(self, sources: &[Source]) -> (usize, usize) {
        let text = sources.get(self.file as usize).map_or("", |s| &s.text);
        let before = text.get(..self.start as usize).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

/// A name as written, with its place.
pub type Name = Spanned<String>;
