//! What the grammar expected, in words that a user knows.
//!
//! In: the parser generator's error and the tokens of the item. Out: one diagnostic. First the slips that are common are
//! looked for, each with its own code and its remedy; what is none of them is told as what was expected and what was
//! found.
//!
//! INVARIANT: no message holds the name of a grammar rule that is not also a word of the language.

use pest::error::{Error, ErrorVariant, InputLocation};

use super::grammar::Rule;
use super::lexer::{Input, Kind, Token};
use super::sink::quote;
use super::split::RESERVED;
use crate::diagnostic::Diagnostic;
use crate::nearest::nearest;
use crate::source::Span;

const ACTIONS: [&str; 9] = [
    "enable", "disable", "switch", "save", "notify", "count", "measure", "stack", "stop",
];
const COMPARISONS: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];
/// The clauses of a member in their order.
const MEMBER_CLAUSES: [&str; 4] = ["except", "with", "sample", "record"];
/// The clauses of a rule in their order; those in one group exclude each other.
const RULE_CLAUSES: [&[&str]; 5] = [
    &["when"],
    &["repeated", "total"],
    &["while"],
    &["then"],
    &["limit", "once"],
];

/// The byte of the text at which the grammar gave up.
pub(super) fn place(error: &Error<Rule>) -> usize {
    match error.location {
        InputLocation::Pos(at) | InputLocation::Span((at, _)) => at,
    }
}

/// One diagnostic for one item, which is bytes `start..end` of the input.
pub(super) fn explain(
    error: &Error<Rule>,
    input: Input<'_>,
    tokens: &[Token],
    start: usize,
    end: usize,
) -> Diagnostic {
    let place = start + place(error);
    let at = tokens.partition_point(|token| token.end <= place);
    let mut expected = match &error.variant {
        ErrorVariant::ParsingError { positives, .. } => positives.clone(),
        ErrorVariant::CustomError { .. } => Vec::new(),
    };
    expected.sort_unstable();
    expected.dedup();
    let scene = Scene {
        input,
        tokens,
        at,
        end,
        expected,
    };
    scene
        .separator()
        .or_else(|| scene.assignment())
        .or_else(|| scene.no_then())
        .or_else(|| scene.no_buffer())
        .or_else(|| scene.clause())
        .or_else(|| scene.chain())
        .or_else(|| scene.misspelt())
        .or_else(|| scene.reserved())
        .unwrap_or_else(|| scene.plain())
}

/// The place where the grammar gave up.
struct Scene<'a> {
    input: Input<'a>,
    /// The tokens of the item.
    tokens: &'a [Token],
    /// The one that was not expected; past the last where the item ended too soon.
    at: usize,
    /// Where the item ends in the text.
    end: usize,
    expected: Vec<Rule>,
}

impl<'a> Scene<'a> {
    fn word(&self, at: usize) -> &'a str {
        self.tokens
            .get(at)
            .map_or("", |token| token.text(self.input.text))
    }

    fn found(&self) -> &'a str {
        self.word(self.at)
    }

    fn found_kind(&self) -> Option<Kind> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    /// The token `back` before the one that was not expected.
    fn before(&self, back: usize) -> &'a str {
        self.at.checked_sub(back).map_or("", |at| self.word(at))
    }

    fn span_of(&self, at: usize) -> Span {
        match self.tokens.get(at) {
            Some(token) => self.input.span(token.start, token.end),
            None => self.input.span(self.end, self.end),
        }
    }

    fn expects(&self, rule: Rule) -> bool {
        self.expected.contains(&rule)
    }

    fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, self.span_of(self.at), message)
    }

    /// A comma between members, actions or clauses.
    fn separator(&self) -> Option<Diagnostic> {
        let comma = if self.found() == "," && !self.expects(Rule::comma) {
            self.at
        } else if self.before(1) == "," && self.found_kind() == Some(Kind::Event) {
            self.at - 1
        } else if self.before(2) == "," && ACTIONS.contains(&self.before(1)) {
            self.at - 2
        } else {
            return None;
        };
        let between = match self.word(comma + 1) {
            next if ACTIONS.contains(&next) => "actions",
            _ if self
                .tokens
                .get(comma + 1)
                .is_some_and(|next| next.kind == Kind::Event) =>
            {
                "members"
            }
            _ => {
                let error = Diagnostic::error("E021", self.span_of(comma), "there is no `,` at this place");
                return Some(error.help("commas stand between columns, names and values alone"));
            }
        };
        let message = format!("{between} are not separated by `,`");
        Some(Diagnostic::error("E021", self.span_of(comma), message).help("leave the `,` out"))
    }

    /// `x = 3` for `x == 3`.
    fn assignment(&self) -> Option<Diagnostic> {
        (self.found() == "=" && self.expects(Rule::compare)).then(|| {
            self.error("E018", "`=` compares nothing")
                .help("a condition compares with `==`")
        })
    }

    fn no_then(&self) -> Option<Diagnostic> {
        let acts = ACTIONS.contains(&self.found());
        let ends = self.found() == "}";
        (self.expects(Rule::kw_then) && (acts || ends)).then(|| {
            let error = self.error("E019", format!("expected `then`, found {}", quote(self.found())));
            if acts {
                error.help(format!(
                    "write `then {}`: what a rule does follows `then`",
                    self.found()
                ))
            } else {
                error.help("a rule says what it does: `then`, and one or more actions")
            }
        })
    }

    fn no_buffer(&self) -> Option<Diagnostic> {
        (self.before(1) == "switch" && self.expects(Rule::kw_buffer)).then(|| {
            let error = self.error("E023", format!("expected `buffer`, found {}", self.found_text()));
            match self.found_kind() {
                Some(Kind::Word) if !ACTIONS.contains(&self.found()) => {
                    let near = nearest(self.found(), ["buffer"]).is_some();
                    let name = if near {
                        self.word(self.at + 1)
                    } else {
                        self.found()
                    };
                    error.help(format!("write `switch buffer {name}`"))
                }
                _ => error.help("write `switch buffer` and the buffer's name"),
            }
        })
    }

    /// A clause that is there already, or that had to come earlier.
    fn clause(&self) -> Option<Diagnostic> {
        let found = self.found();
        match self.word(0) {
            "set" => {
                let rank = MEMBER_CLAUSES.iter().position(|clause| *clause == found)?;
                let seen = self.clauses_before(|scene, at| {
                    let kind = scene.tokens.get(at).map(|token| token.kind);
                    let is_except = at
                        .checked_sub(1)
                        .is_some_and(|before| scene.word(before) == "except");
                    kind == Some(Kind::Event) && !is_except || scene.word(at) == "span"
                });
                if let Some(first) = seen
                    .iter()
                    .copied()
                    .find(|at| self.word(*at) == found && found != "except")
                {
                    return Some(self.twice(first, "a member"));
                }
                let later = MEMBER_CLAUSES.get(rank + 1..).unwrap_or_default();
                let after = seen.iter().copied().find(|at| later.contains(&self.word(*at)))?;
                Some(
                    self.out_of_order(after)
                        .help("the order is `except`, `with`, `sample`, `record`"),
                )
            }
            "rule" => self.rule_clause(),
            _ => None,
        }
    }

    fn rule_clause(&self) -> Option<Diagnostic> {
        let found = self.found();
        let seen = self.clauses_before(|_, _| false);
        let seen_one_of = |words: &[&str]| seen.iter().copied().find(|at| words.contains(&self.word(*at)));
        if found == "with" {
            let then = seen_one_of(&["then"]).map(|then| {
                self.out_of_order(then)
                    .help("the condition belongs to the event: `when … with … then …`")
            });
            return then.or_else(|| {
                let trigger = seen.iter().take_while(|at| self.word(**at) != "when");
                let first = trigger.copied().find(|at| self.word(*at) == "with")?;
                Some(
                    self.twice(first, "a trigger")
                        .help("join two conditions with `and`"),
                )
            });
        }
        if ACTIONS.contains(&found) {
            let limit = seen_one_of(&["limit", "once"])?;
            return Some(self.out_of_order(limit).help("`limit` or `once` ends the rule"));
        }
        let rank = RULE_CLAUSES.iter().position(|group| group.contains(&found))?;
        let group = RULE_CLAUSES.get(rank).copied().unwrap_or_default();
        if let Some(first) = seen_one_of(group)
            && found != "when"
        {
            return Some(self.twice(first, "a rule"));
        }
        let later = RULE_CLAUSES.get(rank + 1..).unwrap_or_default().concat();
        let after = seen_one_of(&later)?;
        let order = "the order is `when`, `repeated` or `total`, `while`, `then`, actions, `limit` or `once`";
        Some(self.out_of_order(after).help(order))
    }

    fn twice(&self, first: usize, of: &str) -> Diagnostic {
        let (found, before) = (self.found(), self.word(first));
        let message = if found == before {
            format!("{of} has one `{found}`")
        } else {
            format!("{of} has one of `{before}` and `{found}`")
        };
        self.error("E022", message)
            .also(self.span_of(first), "it is here already")
    }

    fn out_of_order(&self, after: usize) -> Diagnostic {
        let message = format!("`{}` must stand before `{}`", self.found(), self.word(after));
        self.error("E026", message)
            .also(self.span_of(after), "this comes later")
    }

    /// The tokens before the one found, nearest first, that stand in the same bracket, up to where it opens or `stop`.
    fn clauses_before(&self, stop: impl Fn(&Self, usize) -> bool) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut inner = 0usize;
        for at in (0..self.at.min(self.tokens.len())).rev() {
            match self.word(at) {
                "}" | ")" | "]" => inner += 1,
                "{" | "(" | "[" if inner == 0 => break,
                "{" | "(" | "[" => inner -= 1,
                _ if inner > 0 => {}
                _ if stop(self, at) => break,
                _ if self.tokens.get(at).is_some_and(|token| token.kind == Kind::Word) => seen.push(at),
                _ => {}
            }
        }
        seen
    }

    /// `1 < x < 3`.
    fn chain(&self) -> Option<Diagnostic> {
        let compares = COMPARISONS.contains(&self.found()) || matches!(self.found(), "in" | "like");
        (compares && self.expects(Rule::bit_op) && !self.expects(Rule::compare)).then(|| {
            self.error("E025", "comparisons do not follow one another")
                .help("join two with `and`, as in `1 < x and x < 3`, or write `x in 1 .. 3`")
        })
    }

    fn misspelt(&self) -> Option<Diagnostic> {
        if self.found_kind() != Some(Kind::Word) || RESERVED.contains(&self.found()) {
            return None;
        }
        let keywords: Vec<String> = self.expected.iter().flat_map(|rule| keywords(*rule)).collect();
        let near = nearest(self.found(), keywords.iter().map(String::as_str))?;
        (near != self.found()).then(|| {
            self.error(
                "E020",
                format!("expected {}, found {}", self.expected_text(), self.found_text()),
            )
            .help(format!("did you mean `{near}`?"))
        })
    }

    fn reserved(&self) -> Option<Diagnostic> {
        let wants_name =
            self.expects(Rule::name) || self.expects(Rule::guard_not) || self.expects(Rule::names);
        (wants_name && RESERVED.contains(&self.found())).then(|| {
            self.error("E028", format!("{} cannot be a name", quote(self.found())))
                .help("`and`, `or`, `not`, `in`, `like`, `as`, `true`, `false` and `nothing` are words of expressions")
        })
    }

    fn plain(&self) -> Diagnostic {
        if self.expected.is_empty() {
            return self.error("E001", "this cannot be read");
        }
        let mut error = self.error(
            "E001",
            format!("expected {}, found {}", self.expected_text(), self.found_text()),
        );
        let (one, two) = (self.before(1), self.before(2));
        let next = self.word(self.at + 1);
        let after_number = self
            .at
            .checked_sub(1)
            .and_then(|at| self.tokens.get(at))
            .map(|token| token.kind);
        if is_unit(self.found()) && after_number == Some(Kind::Number) {
            error = error.help(format!("write `{one}{}`, without a blank", self.found()));
        } else if is_unit(next) && self.found_kind() == Some(Kind::Number) {
            error = error.help(format!("write `{}{next}`, without a blank", self.found()));
        } else if self.found() == "/" && (self.word(self.at + 1) == "/" || self.word(self.at + 1) == "*") {
            error = error.help("a comment begins with `#` and ends with the line");
        } else if one == "," && matches!(self.found(), "}" | ")") {
            error = error.help("leave out the `,` after the last one");
        } else if self.found() == ":" || next == ":" {
            error = error.help("an event is written without blanks: `system:name`");
        } else if self.found_kind() == Some(Kind::Word) && self.expected.iter().any(|rule| is_event(*rule)) {
            error = error.help("an event is written `system:name`, as `lkst events` shows them");
        }
        // `enable switch …`: the name was forgotten, and the next word taken for it.
        let takes_name = matches!(
            two,
            "set" | "rule" | "enable" | "disable" | "count" | "measure" | "while" | ","
        );
        if takes_name
            && (ACTIONS.contains(&one) || matches!(one, "then" | "for" | "by" | "limit" | "once" | "max"))
        {
            error = error.help(format!(
                "`{one}` was read as a name: is a name missing before it?"
            ));
        }
        error
    }

    fn found_text(&self) -> String {
        match self.found() {
            "" => "the end".to_owned(),
            found => quote(found),
        }
    }

    /// `a, b or c`, without the operators that could go on an expression, unless nothing else could stand here.
    fn expected_text(&self) -> String {
        // Where `like` cannot stand, `in` is that of a window: `repeated 5 in 10s`.
        let in_expression = self.expects(Rule::kw_like);
        let mut phrases: Vec<String> = Vec::new();
        let mut goes_on = false;
        for rule in &self.expected {
            if continues_expression(*rule, in_expression) {
                goes_on = true;
                continue;
            }
            for phrase in phrase(*rule).split('|') {
                if !phrases.iter().any(|known| known == phrase) {
                    phrases.push(phrase.to_owned());
                }
            }
        }
        if phrases.is_empty() && goes_on {
            phrases.push("an operator".to_owned());
        }
        if phrases.len() > 1 {
            phrases.retain(|phrase| phrase != "`?`");
        } else if self.expects(Rule::action) {
            let actions = ACTIONS.map(|action| format!("`{action}`")).join(", ");
            return format!("an action ({actions})");
        }
        phrases.sort_by_key(|phrase| phrase == "`}`");
        match phrases.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => "something else".to_owned(),
        }
    }
}

/// Can this go on an expression that is complete?
fn continues_expression(rule: Rule, in_expression: bool) -> bool {
    match rule {
        Rule::or_op | Rule::and_op | Rule::kw_or | Rule::kw_and | Rule::compare | Rule::bit_op => true,
        Rule::dot | Rule::access | Rule::index | Rule::arguments | Rule::dotdot => true,
        Rule::lbracket | Rule::lparen | Rule::kw_like => true,
        Rule::kw_in | Rule::kw_not => in_expression,
        _ => false,
    }
}

fn is_unit(word: &str) -> bool {
    matches!(word, "ns" | "us" | "ms" | "s" | "m" | "h" | "KiB" | "MiB" | "GiB")
}

fn is_event(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::pattern
            | Rule::events
            | Rule::source
            | Rule::member
            | Rule::trigger_event
            | Rule::hit
            | Rule::span_end
    )
}

/// The keywords by which a rule of the grammar can begin.
fn keywords(rule: Rule) -> Vec<String> {
    match rule {
        Rule::action => ACTIONS.map(str::to_owned).to_vec(),
        Rule::source | Rule::member | Rule::trigger_event => vec!["span".to_owned()],
        Rule::and_op => vec!["and".to_owned()],
        Rule::or_op => vec!["or".to_owned()],
        Rule::nothing => vec!["nothing".to_owned()],
        // The `s` of `max 3/s` is no word that one misspells.
        Rule::kw_s => Vec::new(),
        keyword => format!("{keyword:?}")
            .strip_prefix("kw_")
            .map(str::to_owned)
            .into_iter()
            .collect(),
    }
}

/// A rule of the grammar in words of the language.
fn phrase(rule: Rule) -> String {
    let text = match rule {
        Rule::name | Rule::names | Rule::word | Rule::guard_not | Rule::guard_and | Rule::guard => "a name",
        Rule::dotted | Rule::hit_value => "the name of a field",
        Rule::pattern | Rule::events | Rule::hit | Rule::span_end => "an event",
        Rule::source | Rule::member | Rule::trigger_event => "an event|`span`",
        Rule::int | Rule::decimal => "a number",
        Rule::one => "`1`",
        Rule::duration => "a duration such as `10s`",
        Rule::size => "a size such as `4MiB`",
        Rule::string => "a string",
        Rule::column => "a column",
        Rule::action => "an action",
        Rule::EOI => "the end",
        Rule::lbrace => "`{`",
        Rule::rbrace => "`}`",
        Rule::lparen => "`(`",
        Rule::rparen => "`)`",
        Rule::lbracket => "`[`",
        Rule::rbracket => "`]`",
        Rule::comma => "`,`",
        Rule::slash => "`/`",
        Rule::percent => "`%`",
        Rule::assign => "`=`",
        Rule::optional => "`?`",
        Rule::bang => "`!`",
        Rule::nothing => "`nothing`",
        other => match format!("{other:?}").strip_prefix("kw_") {
            Some(keyword) => return format!("`{keyword}`"),
            None => "a value",
        },
    };
    text.to_owned()
}
