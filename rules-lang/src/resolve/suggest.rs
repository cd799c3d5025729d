//! Help: the nearest name, and the names that would have been right.
//!
//! In: a diagnostic about a name, and what is known. Out: the diagnostic with help.

use std::collections::HashSet;

use crate::diagnostic::Diagnostic;
use crate::nearest::nearest;

/// How many names are listed.
const MOST_LISTED: usize = 24;

/// "did you mean", where a name is near.
pub(super) fn with_near<'n>(
    error: Diagnostic,
    name: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Diagnostic {
    match nearest(name, known) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error,
    }
}

/// "did you mean", and all names that would have been right, the nearest first.
pub(super) fn with_known<'n>(
    error: Diagnostic,
    name: &str,
    known: impl IntoIterator<Item = &'n str>,
    what: &str,
) -> Diagnostic {
    let known: Vec<&str> = known.into_iter().collect();
    let error = with_near(error, name, known.iter().copied());
    with_list(error, name, known, what)
}

/// All names that would have been right, the nearest first.
pub(super) fn with_list<'n>(
    error: Diagnostic,
    name: &str,
    known: impl IntoIterator<Item = &'n str>,
    what: &str,
) -> Diagnostic {
    let mut seen = HashSet::new();
    let mut known: Vec<&str> = known.into_iter().filter(|name| seen.insert(*name)).collect();
    if known.is_empty() {
        return error;
    }
    if let Some(near) = nearest(name, known.iter().copied()) {
        // Nearest first, the others as the kernel has them.
        known.sort_by_key(|candidate| *candidate != near);
    }
    let more = if known.len() > MOST_LISTED { ", …" } else { "" };
    let list: Vec<String> = known
        .iter()
        .take(MOST_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    error.help(format!("{what} {}{more}", list.join(", ")))
}
