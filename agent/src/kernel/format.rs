//! The format files of tracefs: an event's name, number and fields.
//!
//! In: the text of `events/SYSTEM/NAME/format`. Out: a [`Format`], whose print format `print_format.rs` reads further.
//! What a field's declared type means is for `field.rs`.
//!
//! INVARIANT: total on any text. A line that is not understood is an error that shows it; the kernel writes these
//! files by macros (`TRACE_EVENT`), so their form is narrow.

/// Why a text is no format file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A field's line is not understood.
    #[error("line {line} of the format is not understood: `{text}`")]
    Field {
        /// Which line, from 1.
        line: usize,
        /// The line itself.
        text: String,
    },
    /// Something is not there at all.
    #[error("the format has no {0}")]
    Missing(&'static str),
}

/// What a format file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// The event's name.
    pub name: String,
    /// Its number in this boot.
    pub id: u32,
    /// Its fields in order, without the `common_` ones.
    pub fields: Vec<FormatField>,
    /// What is behind `print fmt:`.
    pub print: String,
}

/// A field as a format file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatField {
    /// Its name.
    pub name: String,
    /// Its type in C: for arrays the element's.
    pub declared: String,
    /// How many of them, and where.
    pub shape: Shape,
    /// Bytes from the start of the record.
    pub offset: u16,
    /// Bytes that it takes there.
    pub size: u16,
    /// What the kernel's compiler says of its sign. Always false for the arguments of system calls.
    pub signed: bool,
}

/// Whether a field is one value, or several, or lies elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    Scalar,
    /// `T name[N]`, here.
    Array,
    /// `__data_loc T[] name`: a word here that says where.
    DataLoc,
    /// `__rel_loc T[] name`: a word here that says how far behind itself.
    RelLoc,
}

impl FormatField {
    /// The declaration as people read it, without the name: `char[16]`, `__data_loc char[]`.
    #[must_use]
    pub fn full_type(&self) -> String {
        match self.shape {
            Shape::Scalar => self.declared.clone(),
            Shape::Array => format!("{}[]", self.declared),
            Shape::DataLoc => format!("__data_loc {}[]", self.declared),
            Shape::RelLoc => format!("__rel_loc {}[]", self.declared),
        }
    }
}

/// Reads a format file.
///
/// # Errors
/// [`FormatError`].
pub fn parse(text: &str) -> Result<Format, FormatError> {
    let mut name = None;
    let mut id = None;
    let mut fields = Vec::new();
    let mut print = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("name:") {
            name = Some(rest.trim().to_owned());
        } else if let Some(rest) = line.strip_prefix("ID:") {
            id = rest.trim().parse().ok();
        } else if let Some(rest) = line.strip_prefix("print fmt:") {
            print = rest.trim().to_owned();
        } else if let Some(rest) = line.trim_start().strip_prefix("field:") {
            let field = parse_field(rest).ok_or_else(|| FormatError::Field {
                line: index + 1,
                text: line.trim().to_owned(),
            })?;
            if !field.name.starts_with("common_") {
                fields.push(field);
            }
        } else if !print.is_empty() && !line.trim().is_empty() {
            // A few print formats hold a line feed of their own.
            print.push(' ');
            print.push_str(line);
        }
    }
    Ok(Format {
        name: name.ok_or(FormatError::Missing("name"))?,
        id: id.ok_or(FormatError::Missing("ID"))?,
        fields,
        print,
    })
}

/// `DECLARATION;\toffset:8;\tsize:4;\tsigned:1;`
fn parse_field(text: &str) -> Option<FormatField> {
    // From the right: a declaration may hold anything.
    let mut declaration = text.trim_end().trim_end_matches(';');
    let mut numbers = [None::<u32>; 3];
    for (key, number) in ["signed:", "size:", "offset:"].into_iter().zip(&mut numbers) {
        let at = declaration.rfind(key)?;
        let (before, found) = declaration.split_at_checked(at)?;
        *number = found.strip_prefix(key)?.trim().trim_end_matches(';').parse().ok();
        declaration = before.trim_end().trim_end_matches(';');
    }
    let [signed, size, offset] = numbers;
    let (name, declared, shape) = parse_declaration(declaration)?;
    Some(FormatField {
        name,
        declared,
        shape,
        offset: u16::try_from(offset?).ok()?,
        size: u16::try_from(size?).ok()?,
        signed: signed? != 0,
    })
}

/// Splits a declaration in (name, element's type, shape).
fn parse_declaration(declaration: &str) -> Option<(String, String, Shape)> {
    let declaration = declaration.trim();
    for (word, shape) in [("__data_loc ", Shape::DataLoc), ("__rel_loc ", Shape::RelLoc)] {
        if let Some(rest) = declaration.strip_prefix(word) {
            // `char[] name`, and for bit maps `cpumask_t name`.
            let (ty, name) = split_name(rest)?;
            let element = ty.strip_suffix("[]").unwrap_or(ty).trim();
            return Some((name.to_owned(), words(element), shape));
        }
    }
    if let Some(rest) = declaration.strip_suffix(']') {
        let (before, _length) = rest.rsplit_once('[')?;
        let (ty, name) = split_name(before)?;
        return Some((name.to_owned(), words(ty), Shape::Array));
    }
    let (ty, name) = split_name(declaration)?;
    Some((name.to_owned(), words(ty), Shape::Scalar))
}

/// The last identifier and what is before it.
fn split_name(declaration: &str) -> Option<(&str, &str)> {
    let declaration = declaration.trim();
    let at = declaration
        .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .map_or(0, |at| at + 1);
    // `at` is behind an ASCII or multi-byte character; only the first is a boundary for certain.
    let (ty, name) = declaration.split_at_checked(at)?;
    let ty = ty.trim();
    (!name.is_empty() && !ty.is_empty()).then_some((ty, name))
}

/// One blank between words, none before `*`'s followers: `const void*` and `const void *` are the same.
fn words(ty: &str) -> String {
    let spread = ty.replace('*', " * ");
    let mut out = String::with_capacity(ty.len());
    for word in spread.split_whitespace() {
        let joined = out.is_empty() || (word == "*" && out.ends_with('*'));
        if !joined {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
