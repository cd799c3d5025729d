//! Every code of a diagnostic, and in one line what it means.
//!
//! In: nothing. Out: [`all`], which the corpus of cases is held against: each code has a case that fails with it.
//!
//! INVARIANT: append-only. A code never gets a second meaning and is never given out again.

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// As shown: `E001`.
    pub code: &'static str,
    /// What it means, in one line.
    pub meaning: &'static str,
}

const fn code(code: &'static str, meaning: &'static str) -> Code {
    Code { code, meaning }
}

/// E0xx: what is written is not in the language.
pub const SYNTAX: &[Code] = &[
    code("E001", "something else was expected at this place"),
    code("E002", "an item begins with a word that begins no item"),
    code("E003", "a string is not closed on its line"),
    code("E004", "a bracket is not closed"),
    code("E005", "a bracket closes what was not opened"),
    code("E006", "a character that the language does not use"),
    code("E007", "a string in single quotes"),
    code("E008", "a number that does not fit in 64 bits"),
    code("E009", "something that begins like a number and is none"),
    code("E010", "a duration that is not one whole number and one unit"),
    code("E011", "a size in units other than KiB, MiB and GiB"),
    code("E012", "an unknown escape in a string"),
    code("E013", "nested more than 64 levels deep"),
    code("E014", "an expression with too many operators"),
    code("E015", "a file of more than 1 MiB"),
    code("E016", "a file that is not UTF-8"),
    code(
        "E017",
        "a version of the language that this lkst does not understand",
    ),
    code("E018", "`=` where a condition compares"),
    code("E019", "a rule without `then`"),
    code("E020", "a misspelt keyword"),
    code("E021", "a separator where the language has none"),
    code("E022", "a clause that is written twice"),
    code("E023", "`switch` without `buffer`"),
    code(
        "E024",
        "a `{` or `}` in the text of `notify` that has no partner or holds nothing",
    ),
    code("E025", "a chain of comparisons"),
    code("E026", "a clause that stands after one it must precede"),
    code("E027", "a `*` where one event is meant"),
    code("E028", "a word of expressions used as a name"),
    code("E029", "`language` that is not the first item"),
    code("E030", "more syntax errors than are shown"),
    code("E031", "an item or expression that is too long"),
];

/// Every code there is.
pub fn all() -> impl Iterator<Item = &'static Code> {
    [SYNTAX].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_in_order() {
        let codes: Vec<&str> = all().map(|c| c.code).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
    }
}
