//! `lkst event NAME`: what a rule may name of one event.
//!
//! In: the schema, `system:name` (or a name alone, where only one system has it). Out: its kind, fields, symbols and
//! arguments, for people or as one JSON object.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context as _;
use lkst_rules::schema::{Event, Field, Origin, PathStep, Schema, Symbols, Type};
use serde::Serialize;

use super::events::{EventKind, glob};
use crate::kernel::schema::KernelSchema;

/// Members of a structure that are shown to people; `--json` has all.
const SHOWN_MEMBERS: usize = 40;

#[derive(Serialize)]
struct Shown<'e> {
    event: String,
    kind: EventKind,
    syscall: Option<u32>,
    in_interrupt: bool,
    fields: Vec<ShownField<'e>>,
    arguments: Vec<ShownArgument<'e>>,
}

#[derive(Serialize)]
struct ShownField<'e> {
    name: &'e str,
    #[serde(rename = "type")]
    ty: String,
    c_type: &'e str,
    hex: bool,
    symbols: Vec<(&'e str, i64)>,
    enumerators: Vec<(&'e str, i64)>,
}

#[derive(Serialize)]
struct ShownArgument<'e> {
    name: &'e str,
    c_type: &'e str,
    /// `None` where it is no single value.
    #[serde(rename = "type")]
    ty: Option<String>,
    members: Vec<ShownMember>,
}

#[derive(Serialize)]
struct ShownMember {
    path: String,
    c_type: String,
    #[serde(rename = "type")]
    ty: Option<String>,
}

/// A type in the words of the rule language.
#[must_use]
pub fn type_name(ty: Type) -> String {
    let int = |bits: u8, signed: bool| format!("{}{bits}", if signed { 's' } else { 'u' });
    match ty {
        Type::Int { bits, signed } => int(bits, signed),
        Type::Bool => "bool".to_owned(),
        Type::Text { capacity: 256.. } => "text".to_owned(),
        Type::Text { capacity } => format!("text[{capacity}]"),
        Type::Duration => "duration".to_owned(),
        Type::Array { bits, signed, count } => format!("{}[{count}]", int(bits, signed)),
        Type::Sequence { bits, signed } => format!("{}[]", int(bits, signed)),
    }
}

/// Writes what is known of the event.
///
/// # Errors
/// Where there is no such event, with those whose names are alike; or `out` cannot be written.
pub fn run(schema: &KernelSchema, name: &str, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let event = find(schema, name)?;
    let shown = Shown {
        event: event.full_name(),
        kind: EventKind::of(&event),
        syscall: match event.origin {
            Origin::Tracepoint => None,
            Origin::SyscallEnter(number) | Origin::SyscallExit(number) => Some(number),
        },
        in_interrupt: event.in_interrupt,
        fields: event.fields.iter().map(shown_field).collect(),
        arguments: shown_arguments(schema, &event),
    };
    if json {
        serde_json::to_writer_pretty(&mut *out, &shown)?;
        writeln!(out)?;
        return Ok(());
    }
    write_text(&shown, out).context("cannot write")
}

fn find(schema: &KernelSchema, name: &str) -> anyhow::Result<Arc<Event>> {
    let of_name = |pattern: &str| {
        let events = schema.events().into_iter();
        let found = events
            .filter(|(_, event)| glob(pattern, event))
            .map(|(system, event)| format!("{system}:{event}"));
        found.take(8).collect::<Vec<_>>()
    };
    let (system, event) = match name.split_once(':') {
        Some(parts) => parts,
        None => match of_name(name).as_slice() {
            [only] => return find(schema, only),
            [] => ("", name),
            several => anyhow::bail!("several systems have an event `{name}`: {}", several.join(", ")),
        },
    };
    if let Some(event) = schema.event(system, event) {
        return Ok(event);
    }
    let alike = of_name(&format!("*{event}*"));
    if alike.is_empty() {
        anyhow::bail!("this kernel has no event `{name}`; `lkst events` lists those that it has");
    }
    anyhow::bail!("this kernel has no event `{name}`; it has {}", alike.join(", "))
}

fn shown_field(field: &Field) -> ShownField<'_> {
    fn pairs(symbols: &Symbols) -> Vec<(&str, i64)> {
        symbols
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect()
    }
    ShownField {
        name: &field.name,
        ty: type_name(field.ty),
        c_type: &field.declared,
        hex: field.hex,
        symbols: pairs(&field.symbols),
        enumerators: pairs(&field.enumerators),
    }
}

fn shown_arguments<'e>(schema: &KernelSchema, event: &'e Event) -> Vec<ShownArgument<'e>> {
    let name = |text: &str| PathStep::Name(text.to_owned());
    event
        .arguments
        .iter()
        .map(|argument| {
            let value = schema.argument(event, &[name(&argument.name)]).ok();
            let members = schema.argument_members(event, &argument.name);
            let members = members.into_iter().map(|(member, c_type)| {
                let found = schema
                    .argument(event, &[name(&argument.name), name(&member)])
                    .ok();
                ShownMember {
                    path: format!("args.{}.{member}", argument.name),
                    c_type,
                    ty: found.map(|f| type_name(f.ty)),
                }
            });
            ShownArgument {
                name: &argument.name,
                c_type: &argument.declared,
                ty: value.map(|value| type_name(value.ty)),
                members: members.collect(),
            }
        })
        .collect()
}

fn write_text(shown: &Shown<'_>, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{}", shown.event)?;
    match (shown.kind, shown.syscall) {
        (_, Some(number)) => writeln!(out, "  typed: system call {number}; every hit is counted exactly")?,
        (EventKind::Typed, None) => writeln!(
            out,
            "  typed: read from the tracepoint's own arguments; every hit is counted exactly"
        )?,
        (EventKind::Classic, None) => writeln!(
            out,
            "  classic: read from what the kernel formats for tracers; hits within other BPF programs are skipped, and said so"
        )?,
    }
    if shown.in_interrupt {
        writeln!(
            out,
            "  often in an interrupt: `task.…` is then whoever was interrupted"
        )?;
    }
    writeln!(out, "\nfields")?;
    let width = shown
        .fields
        .iter()
        .map(|field| field.name.len())
        .max()
        .unwrap_or(0);
    for field in &shown.fields {
        writeln!(out, "  {:<width$}  {:<9} {}", field.name, field.ty, field.c_type)?;
        let symbols = if field.symbols.is_empty() {
            &field.enumerators
        } else {
            &field.symbols
        };
        if !symbols.is_empty() {
            let list: Vec<_> = symbols
                .iter()
                .map(|(name, value)| format!("{name} = {value}"))
                .collect();
            writeln!(out, "  {:<width$}    {}", "", list.join(", "))?;
        }
    }
    if shown.arguments.is_empty() {
        return Ok(());
    }
    writeln!(out, "\narguments")?;
    for argument in &shown.arguments {
        writeln!(out, "  args.{}  {}", argument.name, argument.c_type)?;
        let width = argument
            .members
            .iter()
            .map(|member| member.path.len())
            .max()
            .unwrap_or(0)
            .min(48);
        for member in argument.members.iter().take(SHOWN_MEMBERS) {
            let ty = member.ty.as_deref().unwrap_or("…");
            writeln!(out, "    {:<width$}  {ty:<9} {}", member.path, member.c_type)?;
        }
        if let Some(more) = argument
            .members
            .len()
            .checked_sub(SHOWN_MEMBERS)
            .filter(|&more| more > 0)
        {
            writeln!(out, "    … and {more} more (`--json` shows all)")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::type_name;
    use lkst_rules::schema::Type;

    #[test]
    fn types_are_named_as_in_rules() {
        let array = Type::Array {
            bits: 64,
            signed: false,
            count: 6,
        };
        let names = [Type::I32, Type::Bool, Type::COMM, Type::TEXT, array].map(type_name);
        assert_eq!(names, ["s32", "bool", "text[16]", "text", "u64[6]"]);
        assert_eq!(
            type_name(Type::Sequence {
                bits: 8,
                signed: false
            }),
            "u8[]"
        );
    }
}
