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

/// E1xx: a name that nothing has, or that says two things.
pub const NAMES: &[Code] = &[
    code("E101", "an event that this kernel does not have"),
    code("E102", "a field that the event does not have"),
    code("E103", "a name that is neither a field nor a param nor a symbol"),
    code("E104", "a set that the pack does not have"),
    code("E105", "a buffer that the pack does not have"),
    code("E106", "a function that the language does not have"),
    code("E107", "a name that is defined twice"),
    code("E108", "a symbol that has two values"),
    code("E109", "a param that the pack does not have"),
    code("E110", "a span that the pack does not have"),
    code("E111", "a path from an argument that leads nowhere"),
    code("E112", "a value of `task` or `hit` that there is not"),
    code("E113", "a system call that this kernel does not have"),
    code("E114", "a value that cannot be read on this kernel"),
    code("E115", "a param that is used before it is defined"),
    code("E116", "a part of something that has no parts"),
    code("E117", "an event that the kernel lets no program attach to"),
    code("E118", "something that this host never lets be captured"),
];

/// E2xx: values that do not fit what is done with them.
pub const TYPES: &[Code] = &[
    code("E201", "values of different types are compared"),
    code("E202", "something else where a condition is needed"),
    code("E203", "an operator does not take values of this type"),
    code(
        "E204",
        "a signed value is compared with an unsigned one of 64 bits",
    ),
    code("E205", "a number that the field can never hold"),
    code("E206", "a text that the field can never hold"),
    code("E207", "a `*` inside the pattern of `like`"),
    code("E208", "something else where a constant is needed"),
    code("E209", "a range in which nothing lies"),
    code("E210", "an element that there is not"),
    code("E211", "a function is given what it does not take"),
    code("E213", "the host's value for a param does not fit it"),
    code("E214", "a value that can only be used in another place"),
];

/// E3xx: too much or too little of something.
pub const LIMITS: &[Code] = &[
    code("E301", "more than 40 sets"),
    code("E302", "more than 8 buffers"),
    code("E303", "more than 1,024 rules"),
    code("E304", "more than 4,096 literals in one list"),
    code("E305", "a record of more than 4,000 bytes"),
    code("E306", "a `limit` of none or of more than 65,535"),
    code("E307", "a duration of zero"),
    code("E308", "a buffer of less than 8KiB or more than 1GiB"),
    code("E309", "a `max` or `sample` of none or of too many"),
    code("E310", "a text of more than 255 bytes"),
    code("E311", "a pack that names events more than 65,536 times"),
    code(
        "E312",
        "sets that record one event with too many different lists of columns",
    ),
    code("E313", "an expression that is nested too deep for a program"),
];

/// E4xx: things that do not go together, or not yet.
pub const STRUCTURE: &[Code] = &[
    code("E401", "a part of the language that this lkst does not run yet"),
    code("E402", "values of one event that no one program can have"),
    code("E403", "two columns of one name in a record"),
    code(
        "E404",
        "columns of one name and event that differ between members",
    ),
    code("E405", "a property of a buffer that is given twice"),
    code("E406", "more mistakes than are shown"),
];

/// W5xx: what compiles, and perhaps not as its author meant.
pub const WARNINGS: &[Code] = &[
    code("W501", "a glob that matches no event of this kernel"),
    code("W502", "a name that no event of a glob has"),
    code("W503", "a rule of whose events this kernel has none"),
    code("W504", "a set that nothing names"),
    code("W505", "a buffer that no rule switches to"),
    code("W506", "a param that nothing uses"),
    code("W507", "a condition that is never true"),
    code("W508", "`task` in an event that happens in interrupts"),
    code("W509", "an `except` that takes nothing away"),
    code("W510", "events so frequent that the pack will be felt"),
];

/// Every code there is.
pub fn all() -> impl Iterator<Item = &'static Code> {
    [SYNTAX, NAMES, TYPES, LIMITS, STRUCTURE, WARNINGS]
        .into_iter()
        .flatten()
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
