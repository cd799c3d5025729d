//! The nearest known name to one that is not known, for "did you mean".
//!
//! In: what was written and what would have been right. Out: at most one of the latter, and only where it is near
//! enough that a slip of the fingers explains the difference.

/// The one of `among` that was most likely meant by `wanted`: the fewest edits, the first of equals. `None` where even
/// the best differs in more than a third of its characters (a swap of neighbours counts as one edit).
#[must_use]
pub fn nearest<'a>(wanted: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any name that can be meant, and edit distance takes time with the product of the lengths.
    if wanted.len() > 256 {
        return None;
    }
    let wanted_folded = wanted.to_ascii_lowercase();
    among
        .into_iter()
        .filter_map(|candidate| {
            let longer = wanted.chars().count().max(candidate.chars().count());
            let allowed = (longer / 3).max(1);
            if candidate.len().abs_diff(wanted.len()) > allowed * 4 {
                return None;
            }
            let edits = strsim::osa_distance(&wanted_folded, &candidate.to_ascii_lowercase());
            // One letter differing in a word of one or two says nothing: `x` is not a slip for `s`.
            (edits <= allowed && edits < longer && !(longer < 3 && edits > 0)).then_some((edits, candidate))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_not_strangers() {
        let words = ["enable", "disable", "switch", "save", "with"];
        assert_eq!(nearest("enalbe", words), Some("enable"));
        assert_eq!(nearest("Switch", words), Some("switch"));
        assert_eq!(nearest("wiht", words), Some("with"));
        assert_eq!(nearest("banana", words), None);
        assert_eq!(nearest("x", ["s"]), None);
        assert_eq!(nearest("", words), None);
    }
}
