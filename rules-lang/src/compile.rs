//! The whole way in one call: the texts of a pack → a [`Plan`], or one condition → a typed expression.
//!
//! In: texts, what the host sets, and the kernel as a [`Schema`]. Out: a plan where nothing is wrong, and in any case
//! every diagnostic, sorted by place.

use std::collections::BTreeMap;

use crate::ast;
use crate::diagnostic::Diagnostics;
use crate::parse::{parse, parse_expression};
use crate::plan::{Expr, Plan};
use crate::resolve::{Params, Typer, resolve};
use crate::schema::{Event, Schema};
use crate::source::Source;

/// A pack: the unit of naming, of state and of reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pack {
    /// Its name, without `NN-` and `.lkst`.
    pub name: String,
    /// Its files. They are judged in the order of their names, in whatever order they lie here.
    pub sources: Vec<Source>,
}

/// What the host says about a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Values of params, as the rule language writes them: `250ms`, `"nginx"`.
    pub params: BTreeMap<String, String>,
    /// What a record takes on the host, in nanoseconds: for warnings.
    pub record_ns: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            params: BTreeMap::new(),
            // As on the machine that docs/performance.md was measured on.
            record_ns: 70,
        }
    }
}

/// Compiles a pack. There is a plan only where there is no error; warnings do not prevent it.
#[must_use]
pub fn compile(pack: &Pack, options: &Options, schema: &dyn Schema) -> (Option<Plan>, Diagnostics) {
    let mut diagnostics = Diagnostics::default();
    let mut order: Vec<(&Source, u32)> = pack.sources.iter().zip(0..).collect();
    order.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let files: Vec<ast::File> = order
        .into_iter()
        .map(|(source, number)| parse(number, &source.text, &mut diagnostics))
        .collect();
    let plan = resolve(&pack.name, &files, options, schema, &mut diagnostics);
    diagnostics.sort();
    let plan = (!diagnostics.has_errors()).then_some(plan);
    (plan, diagnostics)
}

/// Why a condition has no meaning for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionError {
    /// The event has no field, argument or symbol of a name in it: the event does not match.
    Missing(Diagnostics),
    /// It is wrong, for whatever event.
    Invalid(Diagnostics),
}

/// Compiles one condition for one event, such as that of `lkst show --where`. Places are in file 0.
///
/// # Errors
/// [`ConditionError::Missing`] where the event lacks something that the condition names; whoever filters many events
/// takes that for "does not match", and complains only where all of them say so.
pub fn compile_condition(text: &str, event: &Event, schema: &dyn Schema) -> Result<Expr, ConditionError> {
    let mut diagnostics = Diagnostics::default();
    let Some(tree) = parse_expression(0, text, &mut diagnostics) else {
        return Err(ConditionError::Invalid(diagnostics));
    };
    let params = Params::default();
    let mut typer = Typer::new(schema, &params, Some(event));
    let condition = typer.condition(&tree);
    if !typer.missing.is_empty() {
        diagnostics.list = typer.missing;
        return Err(ConditionError::Missing(diagnostics));
    }
    diagnostics.list.append(&mut typer.found);
    match condition {
        Some(condition) if !diagnostics.has_errors() => Ok(condition),
        _ => Err(ConditionError::Invalid(diagnostics)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Hit, Value, eval};
    use crate::plan::{Node, TaskValue};
    use crate::testing::Fixture;

    fn pack(sources: &[(&str, &str)]) -> Pack {
        let source = |(name, text): &(&str, &str)| Source {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        };
        Pack {
            name: "test".to_owned(),
            sources: sources.iter().map(source).collect(),
        }
    }

    fn codes(pack: &Pack) -> Vec<&'static str> {
        let (_, diagnostics) = compile(pack, &Options::default(), &Fixture::default());
        diagnostics
            .list
            .iter()
            .map(|diagnostic| diagnostic.code)
            .collect()
    }

    #[test]
    fn files_share_names_and_are_judged_in_order_of_their_names() {
        let second = "rule second { when sched:sched_switch with prev_pid == low then enable s }";
        let first =
            "param low = 1 set s { sched:sched_waking } rule first { when sched:sched_switch then enable s }";
        let pack = pack(&[("20-b.lkst", second), ("10-a.lkst", first)]);
        let (plan, diagnostics) = compile(&pack, &Options::default(), &Fixture::default());
        assert_eq!(diagnostics.list, []);
        let rules: Vec<String> = plan
            .into_iter()
            .flat_map(|plan| plan.rules)
            .map(|rule| rule.name)
            .collect();
        assert_eq!(rules, ["first", "second"]);
    }

    #[test]
    fn a_condition_tells_what_is_missing_from_what_is_wrong() {
        let schema = Fixture::default();
        let event = schema
            .event("sched", "sched_switch")
            .unwrap_or_else(|| panic!("it is in the fixture"));
        let compiled = |text: &str| compile_condition(text, &event, &schema);
        assert!(compiled("prev_pid == 1 and prev_state == S").is_ok());
        assert!(matches!(
            compiled("dev == dev(8, 0)"),
            Err(ConditionError::Missing(_))
        ));
        assert!(matches!(compiled("prev_pid"), Err(ConditionError::Invalid(_))));
        assert!(matches!(compiled("prev_pid =="), Err(ConditionError::Invalid(_))));
    }

    #[test]
    fn longest_expressions_fit_the_stack() {
        for (link, first, end) in [("or", "prev_pid == 1", ""), ("+", "prev_pid", " == 1")] {
            let chain = vec![first; 1024].join(&format!(" {link} "));
            let text = format!("set s {{ sched:sched_switch with {chain}{end} }} start with s");
            let said = codes(&pack(&[("a.lkst", &text)]));
            assert!(said.is_empty() || said == ["E014"], "{said:?}");
        }
        let deep = format!("{}prev_pid == 1{}", "not (".repeat(60), ")".repeat(60));
        let text = format!("set s {{ sched:sched_switch with {deep} }} start with s");
        let said = codes(&pack(&[("a.lkst", &text)]));
        assert!(said.is_empty() || said == ["E013"], "{said:?}");
    }

    /// Files of the largest size, full of what takes the most looking for, end soon and with few errors.
    #[test]
    fn many_mistakes_end_soon() {
        let fill = |start: &str, each: &str, end: &str| {
            let mut text = start.to_owned();
            let mut n = 0;
            while text.len() + each.len() + end.len() + 16 < crate::parse::LARGEST_FILE {
                text.push_str(&each.replace("{n}", &n.to_string()));
                n += 1;
            }
            text + end
        };
        let texts = [
            fill("set s {", " sched:unknown{n}", " }"),
            fill("set s {", " sched:* with unknown{n} == 1", " }"),
            fill("set s { sched:sched_switch record a0", ", b{n}", " }"),
            fill(
                "set s { sched:sched_switch record prev_pid",
                ", prev_pid as a{n}",
                " }",
            ),
            fill(
                "rule r { when sched:sched_switch then notify \"",
                "{prev_pid + {n}}",
                "\" }",
            ),
            fill("start with a", ", set{n}", ""),
            fill("", "param p{n} = q{n} ", ""),
            fill("", "param p{n} = p ", ""),
            fill("", "rule r { when sched:* then stop } ", ""),
            fill("", "rule r{n} { when sched:* then enable s{n} } ", ""),
        ];
        for text in texts {
            let start = std::time::Instant::now();
            let said = codes(&pack(&[("a.lkst", &text)]));
            let shown: String = text.chars().take(40).collect();
            assert!(said.len() <= 202, "{shown}: {}", said.len());
            assert!(start.elapsed().as_secs() < 120, "{shown}: {:?}", start.elapsed());
        }
    }

    /// A task switch from process 5, in state D.
    struct Switch;

    impl Hit for Switch {
        fn field(&self, name: &str) -> Option<Value> {
            match name {
                "prev_pid" => Some(Value::Int(5)),
                "prev_state" => Some(Value::Int(2)),
                "prev_comm" => Some(Value::Text(Some(b"cc1\0garbage".to_vec()))),
                _ => None,
            }
        }

        fn task(&self, _: &TaskValue) -> Option<Value> {
            None
        }

        fn cpu(&self) -> u32 {
            1
        }

        fn time(&self) -> u64 {
            3_000_000_000
        }

        fn text_at(&self, _: u64, _: bool) -> Option<Vec<u8>> {
            None
        }
    }

    #[test]
    fn conditions_mean_what_they_say() {
        let schema = Fixture::default();
        let event = schema
            .event("sched", "sched_switch")
            .unwrap_or_else(|| panic!("it is in the fixture"));
        for (text, expected) in [
            ("prev_state == D and prev_pid in 5 .. 5", true),
            ("prev_pid not in { 4, 6 } and prev_pid - 6 < 0", true),
            (
                "prev_comm == \"cc1\" and prev_comm like \"c*\" and prev_comm not like \"*x*\"",
                true,
            ),
            ("time > 2s and time / 1s == 3 and cpu == 1", true),
            (
                "prev_state & (S | T) != 0 or prev_pid / 0 != 0 or prev_pid % 0 != 5",
                false,
            ),
            (
                "-prev_pid == -5 and ~prev_pid == -6 and prev_pid << 1 >> 1 == 5",
                true,
            ),
            (
                "hit.event like \"sched:*\" and not (prev_comm in { \"a\", \"b\" })",
                true,
            ),
        ] {
            let condition = compile_condition(text, &event, &schema).map_err(|error| format!("{error:?}"));
            let condition = condition.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(eval(&condition, &Switch), Value::Bool(expected), "{text}");
        }
        let constant = compile_condition("hit.event == \"sched:sched_switch\"", &event, &schema);
        assert!(constant.is_ok_and(|condition| condition.node == Node::Bool(true)));
    }
}
