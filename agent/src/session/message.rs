//! A firing's record → the text of its `notify`.

use lkst_probes::layout::Encoding;
use lkst_rules::plan::{Column, Load, MessagePiece, Node, Plan, Rule};
use lkst_rules::schema::Type;

use crate::trace::decode::{EventClass, Value};
use crate::trace::incident::NamedValue;

/// The values of a rule's message, as people read them.
pub(super) fn values(plan: &Plan, rule: usize, class: &EventClass, record: &[u8]) -> Vec<NamedValue> {
    // All triggers of a rule have values of the same names; which of them fired is told by the columns' encodings.
    let wanted = class.layout.columns.len().saturating_sub(1);
    let candidates = plan
        .events
        .iter()
        .flat_map(|e| e.triggers.iter().map(move |t| (e, t)));
    let trigger = candidates.filter(|(_, t)| t.rule == rule).find(|(_, t)| {
        t.values.len() == wanted
            && t.values.iter().all(|value| {
                let encoding = Encoding::of(value.value.ty);
                class
                    .layout
                    .columns
                    .iter()
                    .any(|c| c.name == value.name && c.encoding == encoding)
            })
    });
    let Some((event, trigger)) = trigger else {
        return Vec::new();
    };
    let declared = |column: &Column| match &column.value.node {
        Node::Load(Load::Field { name, .. }) => event.event.field(name).map(|f| f.declared.as_str()),
        _ => None,
    };
    trigger
        .values
        .iter()
        .map(|column| {
            let value = class.values(record).find(|(place, _)| place.name == column.name);
            let value = value.map_or_else(String::new, |(place, value)| {
                shown(value, column.value.ty, place.hex, declared(column))
            });
            NamedValue {
                name: column.name.clone(),
                value,
            }
        })
        .collect()
}

/// The whole message, or the rule's name where it has none.
pub(super) fn text(rule: &Rule, values: &[NamedValue]) -> String {
    if rule.message.is_empty() {
        return "fired".to_owned();
    }
    let piece = |piece: &MessagePiece| match piece {
        MessagePiece::Text(text) => text.clone(),
        MessagePiece::Value(index) => values.get(*index).map_or_else(String::new, |v| v.value.clone()),
    };
    rule.message.iter().map(piece).collect()
}

fn shown(value: Value<'_>, ty: Type, hex: bool, declared: Option<&str>) -> String {
    match value {
        Value::Int(int) => match (ty, declared) {
            (Type::Duration, _) => duration(int.extended),
            (Type::Bool, _) => (int.extended != 0).to_string(),
            // The kernel's own dev_t: include/linux/kdev_t.h.
            (_, Some("dev_t")) => format!("{}:{}", int.extended >> 20, int.extended & 0xf_ffff),
            _ if hex => format!("{:#x}", int.stored()),
            _ if int.signed => int.extended.cast_signed().to_string(),
            _ => int.extended.to_string(),
        },
        Value::Enum(_, Some(name)) => name.to_owned(),
        Value::Enum(number, None) => number.to_string(),
        Value::Text(text) => crate::trace::escape::lossless(text),
        Value::Ints(ints) => {
            let ints: Vec<String> = ints.iter().map(|int| int.stored().to_string()).collect();
            format!("[{}]", ints.join(", "))
        }
    }
}

/// Nanoseconds in the unit that people would choose, with three digits after the point at most.
fn duration(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (1_000, "us"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let thousandths = ns / (unit / 1_000);
    let text = format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000);
    format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_are_shown_in_the_unit_that_fits() {
        let shown = [0, 999, 1_000, 1_500, 150_250_000, 2_000_000_000, 61_000_000_000].map(duration);
        assert_eq!(shown, ["0ns", "999ns", "1us", "1.5us", "150.25ms", "2s", "61s"]);
    }
}
