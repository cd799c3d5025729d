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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Values of params, as the rule language writes them: `250ms`, `"nginx"`.
    pub params: BTreeMap<String, String>,
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
    let plan = resolve(&pack.name, &files, &options.params, schema, &mut diagnostics);
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
