//! Which records an event may make for a pack: one for each list of columns, one for each union of them that several
//! sets may ask for at once, one with all fields where a rule waits for it, and one for each rule that may fire.
//!
//! In: a pack's wish of an event. Out: the [`Section`] that the code generator lowers.

use lkst_rules::plan::{Column, EventPlan, Expr, Node, Plan};
use lkst_rules::schema::Type;
use lkst_rules::source::Span;

use crate::layout::{Encoding, RecordLayout};
use crate::lower::{LowerError, PackEnv, Section};
use crate::numbers::{EventSpots, NoNumber, PackNumbers};

/// Different lists of columns that the sets of one pack may ask of one event.
const LISTS_MAX: usize = 4;

/// Gives the layouts of a pack their ids.
pub(crate) struct Layouts<'n>(pub(crate) &'n mut PackNumbers);

impl Layouts<'_> {
    fn layout(
        &mut self,
        name: &str,
        span: Span,
        columns: impl IntoIterator<Item = (String, Encoding, bool)>,
    ) -> Result<RecordLayout, LowerError> {
        self.0.layout(name, columns).map_err(|error| match error {
            NoNumber::TooLarge(error) => LowerError::too_large(name, span, error),
            NoNumber::Full | NoNumber::Beside => LowerError::TooManyLayouts,
        })
    }

    fn columns(&mut self, name: &str, columns: &[Column], span: Span) -> Result<RecordLayout, LowerError> {
        self.layout(name, span, columns.iter().map(encoded))
    }

    fn fired(
        &mut self,
        plan: &Plan,
        rule: usize,
        values: &[Column],
        span: Span,
    ) -> Result<RecordLayout, LowerError> {
        let name = plan.rules.get(rule).map_or("", |rule| &rule.name);
        let names = Encoding::Enum(vec![(name.to_owned(), rule as u32)]);
        let columns = std::iter::once(("rule".to_owned(), names, false));
        self.layout("lkst:fired", span, columns.chain(values.iter().map(encoded)))
    }

    /// The layout of `lkst:overload`.
    pub(crate) fn overload(&mut self) -> Result<RecordLayout, LowerError> {
        let ns = Encoding::Int {
            bits: 64,
            signed: false,
        };
        let columns = ["spent_ns", "budget_ns"].map(|name| (name.to_owned(), ns.clone(), false));
        self.layout("lkst:overload", Span::default(), columns)
    }

    /// The layout of `lkst:switched` or `lkst:refused`.
    pub(crate) fn change(&mut self, plan: &Plan, name: &str) -> Result<RecordLayout, LowerError> {
        let buffers = plan.buffers.iter().zip(0..);
        let buffers: Vec<(String, u32)> = buffers
            .filter(|(buffer, _)| !buffer.name.is_empty())
            .map(|(buffer, n)| (buffer.name.clone(), n))
            .collect();
        let columns =
            ["from", "to"].map(|column| (column.to_owned(), Encoding::Enum(buffers.clone()), false));
        self.layout(name, Span::default(), columns)
    }
}

fn encoded(column: &Column) -> (String, Encoding, bool) {
    (column.name.clone(), Encoding::of(column.value.ty), column.hex)
}

/// What a pack wants of an event, its records laid out.
///
/// # Errors
/// Where a record has no layout.
pub(crate) fn section<'p>(
    pack: &'p PackEnv<'p>,
    plan: &'p EventPlan,
    spots: EventSpots,
    layouts: &mut Layouts<'_>,
) -> Result<Section<'p>, LowerError> {
    let name = plan.event.full_name();
    let span = plan
        .members
        .first()
        .map(|m| m.span)
        .or_else(|| plan.triggers.first().map(|t| t.span))
        .unwrap_or_default();

    let mut distinct: Vec<Vec<Column>> = Vec::new();
    let mut lists = Vec::new();
    for member in &plan.members {
        let columns = plain(member.columns.as_deref().unwrap_or(&plan.all));
        let list = distinct
            .iter()
            .position(|known| *known == columns)
            .unwrap_or_else(|| {
                distinct.push(columns);
                distinct.len() - 1
            });
        lists.push(list);
    }
    if distinct.len() > LISTS_MAX {
        return Err(LowerError::TooManyLists {
            event: name,
            lists: distinct.len(),
            span,
        });
    }

    let mut records: Vec<(RecordLayout, Vec<Column>)> = Vec::new();
    let mut record_for = |columns: Vec<Column>| -> Result<usize, LowerError> {
        if let Some(known) = records.iter().position(|(_, known)| *known == columns) {
            return Ok(known);
        }
        records.push((layouts.columns(&name, &columns, span)?, columns));
        Ok(records.len() - 1)
    };
    let mut unions = Vec::new();
    for mask in 1..1_u32 << distinct.len() {
        let chosen = distinct
            .iter()
            .enumerate()
            .filter(|(list, _)| mask >> list & 1 == 1);
        unions.push((mask, record_for(union(chosen.map(|(_, columns)| columns)))?));
    }
    let full = match plan.triggers.is_empty() {
        true => None,
        false => Some(record_for(plain(&plan.all))?),
    };
    let fired = plan
        .triggers
        .iter()
        .map(|trigger| {
            let rule = trigger.rule as u64;
            let values = plain(&trigger.values);
            let layout = layouts.fired(pack.plan, trigger.rule, &values, trigger.span)?;
            let number = Column {
                name: "rule".to_owned(),
                value: Expr {
                    node: Node::Int(rule),
                    ty: Type::U32,
                    span: trigger.span,
                },
                hex: false,
            };
            Ok((layout, std::iter::once(number).chain(values).collect()))
        })
        .collect::<Result<Vec<_>, LowerError>>()?;
    Ok(Section {
        pack,
        plan,
        spots,
        records,
        lists,
        unions,
        full,
        fired,
        firing: None,
    })
}

/// The columns with their places forgotten, so that two lists that mean the same are equal.
fn plain(columns: &[Column]) -> Vec<Column> {
    columns.iter().map(Column::without_span).collect()
}

/// The union of lists: each value once; two values of one name are told apart by a number.
fn union<'c>(lists: impl Iterator<Item = &'c Vec<Column>>) -> Vec<Column> {
    let mut all: Vec<Column> = Vec::new();
    for column in lists.flatten() {
        if all.contains(column) {
            continue;
        }
        let taken = |name: &str| all.iter().any(|c| c.name == name);
        let mut column = column.clone();
        let base = column.name.clone();
        let mut number = 2;
        while taken(&column.name) {
            column.name = format!("{base}_{number}");
            number += 1;
        }
        all.push(column);
    }
    all
}
