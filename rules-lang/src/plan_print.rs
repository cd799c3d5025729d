//! The plan as text, for `lkst explain --emit plan` and for cases of the corpus.
//!
//! In: a [`Plan`], or an expression of one. Out: stable text. It shows what the rule text does not: types, signs, where
//! each value comes from. A comparison or operator that is signed ends in `s`: `<s`.

use std::fmt::{self, Display, Formatter, Write as _};

use crate::parse::literal::{duration_text, size_text};
use crate::plan::{
    Action, Column, EventPlan, Expr, Guard, Limit, Load, Member, MessagePiece, Node, Plan, Rule, Set,
    TaskValue, Trigger,
};
use crate::schema::{Base, Origin, Path, Place, Recipe, Type};

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "pack {}", self.pack)?;
        if let Some(ppm) = self.budget_ppm {
            writeln!(f, "budget {} %", crate::print::Percent(ppm.into()))?;
        }
        for buffer in &self.buffers {
            let mode = if buffer.stream { " stream" } else { "" };
            writeln!(f, "buffer {} {}{mode}", buffer.name, size_text(buffer.size_bytes))?;
        }
        for set in &self.sets {
            writeln!(f, "{}", In(self, set))?;
        }
        for rule in &self.rules {
            write!(f, "{}", In(self, rule))?;
        }
        for event in &self.events {
            write!(f, "{}", In(self, event))?;
        }
        Ok(())
    }
}

/// A part of a plan, with the plan, whose names it needs.
struct In<'p, T>(&'p Plan, T);

impl In<'_, ()> {
    fn set(plan: &Plan, number: usize) -> &str {
        plan.sets.get(number).map_or("?", |set| &set.name)
    }
}

impl Display for In<'_, &Set> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(_, set) = self;
        write!(f, "set {}", set.name)?;
        if let Some(max) = set.max_per_s {
            write!(f, " max {max}/s")?;
        }
        if set.start {
            f.write_str(" start")?;
        }
        if set.timed {
            f.write_str(" timed")?;
        }
        Ok(())
    }
}

impl Display for In<'_, &Rule> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(plan, rule) = *self;
        write!(f, "rule {}", rule.name)?;
        if !rule.live {
            f.write_str(" off")?;
        }
        f.write_char('\n')?;
        if let Some(guard) = &rule.guard {
            writeln!(f, "  while {}", In(plan, guard))?;
        }
        for action in &rule.actions {
            writeln!(f, "  {}", In(plan, action))?;
        }
        if !rule.message.is_empty() {
            f.write_str("  notify \"")?;
            for piece in &rule.message {
                match piece {
                    MessagePiece::Text(text) => write!(f, "{}", text.escape_debug())?,
                    MessagePiece::Value(index) => write!(f, "{{{index}}}")?,
                }
            }
            f.write_str("\"\n")?;
        }
        match rule.limit {
            Limit::Per { count, window_ns } => {
                writeln!(f, "  limit {count} per {}", duration_text(window_ns))
            }
            Limit::Once => writeln!(f, "  once"),
        }
    }
}

impl Display for In<'_, &Guard> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(plan, guard) = *self;
        match guard {
            Guard::Set(set) => f.write_str(In::set(plan, *set)),
            Guard::Not(of) => write!(f, "not {}", In(plan, &**of)),
            Guard::And(left, right) => write!(f, "({} and {})", In(plan, &**left), In(plan, &**right)),
            Guard::Or(left, right) => write!(f, "({} or {})", In(plan, &**left), In(plan, &**right)),
        }
    }
}

impl Display for In<'_, &Action> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(plan, action) = *self;
        let lasting = |f: &mut Formatter<'_>, for_ns: &Option<u64>| match for_ns {
            Some(for_ns) => write!(f, " for {}", duration_text(*for_ns)),
            None => Ok(()),
        };
        match action {
            Action::Enable { set, for_ns } => {
                write!(f, "enable {}", In::set(plan, *set))?;
                lasting(f, for_ns)
            }
            Action::Disable { set } => write!(f, "disable {}", In::set(plan, *set)),
            Action::Switch { buffer, for_ns } => {
                let name = plan.buffers.get(*buffer).map_or("?", |buffer| &buffer.name);
                write!(f, "switch buffer {name}")?;
                lasting(f, for_ns)
            }
            Action::Save { after_ns: 0 } => f.write_str("save"),
            Action::Save { after_ns } => write!(f, "save after {}", duration_text(*after_ns)),
            Action::Stop => f.write_str("stop"),
        }
    }
}

impl Display for In<'_, &EventPlan> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(plan, event) = *self;
        write!(f, "event {}", event.event.full_name())?;
        match event.event.origin {
            Origin::Tracepoint => f.write_char('\n')?,
            Origin::SyscallEnter(number) => writeln!(f, ", entry of system call {number}")?,
            Origin::SyscallExit(number) => writeln!(f, ", exit of system call {number}")?,
        }
        for column in event.all.iter() {
            writeln!(f, "  field {}", Sourced(column))?;
        }
        for member in &event.members {
            writeln!(f, "  {}", In(plan, member))?;
        }
        for trigger in &event.triggers {
            writeln!(f, "  {}", In(plan, trigger))?;
        }
        Ok(())
    }
}

impl Display for In<'_, &Member> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(plan, member) = *self;
        write!(
            f,
            "member of {}{}",
            In::set(plan, member.set),
            With(member.with.as_ref(), member.own)
        )?;
        if let Some(sample) = member.sample {
            write!(f, " sample 1/{sample}")?;
        }
        match &member.columns {
            None => f.write_str(" record all"),
            Some(columns) if columns.is_empty() => f.write_str(" record nothing"),
            Some(columns) => {
                f.write_str(" record")?;
                columns
                    .iter()
                    .try_for_each(|column| write!(f, "\n    {}", Sourced(column)))
            }
        }
    }
}

impl Display for In<'_, &Trigger> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let In(plan, trigger) = *self;
        let rule = plan.rules.get(trigger.rule).map_or("?", |rule| &rule.name);
        write!(f, "trigger of {rule}{}", With(trigger.with.as_ref(), trigger.own))?;
        for (index, column) in trigger.values.iter().enumerate() {
            write!(f, "\n    {{{index}}} {}", Sourced(column))?;
        }
        Ok(())
    }
}

/// A condition, where there is one.
struct With<'p>(Option<&'p Expr>, bool);

impl Display for With<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let With(condition, own) = self;
        if *own {
            f.write_str(" own")?;
        }
        condition
            .iter()
            .try_for_each(|condition| write!(f, " with {condition}"))
    }
}

/// A column, with the source of its value.
struct Sourced<'p>(&'p Column);

impl Display for Sourced<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Sourced(Column { name, value, hex }) = self;
        write!(f, "{name}: {}", TypeName(value.ty))?;
        if *hex {
            f.write_str(" hex")?;
        }
        match &value.node {
            Node::Load(Load::Field {
                name: field,
                place,
                recipe,
            }) => {
                f.write_str(" =")?;
                if field != name {
                    write!(f, " {field}")?;
                }
                if let Some(place) = place {
                    write!(f, " {}", Placed(*place))?;
                }
                recipe
                    .iter()
                    .try_for_each(|recipe| write!(f, " [{}]", Cooked(recipe)))
            }
            _ => write!(f, " = {value}"),
        }
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = |signed: &bool| if *signed { "s" } else { "" };
        let not = |negated: &bool| if *negated { "not " } else { "" };
        match &self.node {
            Node::Int(bits) => match self.ty {
                Type::Duration => f.write_str(&duration_text(*bits)),
                Type::Int { signed: true, .. } => write!(f, "{}", bits.cast_signed()),
                _ => write!(f, "{bits}"),
            },
            Node::Text(text) => write!(f, "{:?}", String::from_utf8_lossy(text)),
            Node::Bool(value) => write!(f, "{value}"),
            Node::Load(load) => write!(f, "{load}"),
            Node::Negate(of) => write!(f, "-({of})"),
            Node::Complement(of) => write!(f, "~({of})"),
            Node::Binary {
                op,
                signed,
                left,
                right,
            } => write!(f, "({left} {}{} {right})", op.symbol(), sign(signed)),
            Node::Compare {
                op,
                signed,
                left,
                right,
            } => write!(f, "({left} {}{} {right})", op.symbol(), sign(signed)),
            Node::TextEqual { left, right, negated } => {
                write!(f, "({left} {} {right})", if *negated { "!=" } else { "==" })
            }
            Node::InInts { value, list, negated } => {
                write!(f, "({value} {}in {{", not(negated))?;
                let signed = matches!(value.ty, Type::Int { signed: true, .. });
                for (at, bits) in list.iter().enumerate() {
                    f.write_str(if at == 0 { " " } else { ", " })?;
                    if signed {
                        write!(f, "{}", bits.cast_signed())?;
                    } else {
                        write!(f, "{bits}")?;
                    }
                }
                f.write_str(" })")
            }
            Node::InTexts { value, list, negated } => {
                write!(f, "({value} {}in {{", not(negated))?;
                for (at, text) in list.iter().enumerate() {
                    write!(
                        f,
                        "{}{:?}",
                        if at == 0 { " " } else { ", " },
                        String::from_utf8_lossy(text)
                    )?;
                }
                f.write_str(" })")
            }
            Node::InRange {
                value,
                low,
                high,
                signed,
                negated,
            } => {
                write!(f, "({value} {}in{} {low} .. {high})", not(negated), sign(signed))
            }
            Node::Like {
                value,
                open_start,
                body,
                open_end,
                negated,
            } => {
                let star = |open: &bool| if *open { "*" } else { "" };
                let body = String::from_utf8_lossy(body);
                let body = body.escape_debug();
                write!(
                    f,
                    "({value} {}like \"{}{body}{}\")",
                    not(negated),
                    star(open_start),
                    star(open_end)
                )
            }
            Node::Str { pointer, user } => {
                write!(
                    f,
                    "str({pointer} in {} memory)",
                    if *user { "user" } else { "kernel" }
                )
            }
            Node::Not(of) => write!(f, "not {of}"),
            Node::And(left, right) => write!(f, "({left} and {right})"),
            Node::Or(left, right) => write!(f, "({left} or {right})"),
        }
    }
}

impl Display for Load {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            // A name without a place in the format says how else it is found, here and not only in a list of fields.
            Load::Field {
                name,
                place: None,
                recipe: Some(recipe),
            } if name.starts_with("args.") => {
                write!(f, "{name}[{}]", Cooked(recipe))
            }
            Load::Field { name, .. } => f.write_str(name),
            Load::Task(what) => f.write_str(match what {
                TaskValue::Pid => "task.pid",
                TaskValue::Tid => "task.tid",
                TaskValue::Uid => "task.uid",
                TaskValue::Gid => "task.gid",
                TaskValue::Ppid(_) => "task.ppid",
                TaskValue::Comm(_) => "task.comm",
                TaskValue::Traced => "task.traced",
            }),
            Load::Cpu => f.write_str("hit.cpu"),
            Load::Time => f.write_str("hit.time"),
            Load::EventName(_) => f.write_str("hit.event"),
        }
    }
}

struct TypeName(Type);

impl Display for TypeName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letter = |signed: bool| if signed { 'i' } else { 'u' };
        match self.0 {
            Type::Int { bits, signed } => write!(f, "{}{bits}", letter(signed)),
            Type::Bool => f.write_str("bool"),
            Type::Text { capacity } => write!(f, "text[{capacity}]"),
            Type::Duration => f.write_str("duration"),
            Type::Array { bits, signed, count } => write!(f, "{}{bits}[{count}]", letter(signed)),
            Type::Sequence { bits, signed } => write!(f, "{}{bits}[]", letter(signed)),
        }
    }
}

struct Placed(Place);

impl Display for Placed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::At(byte) => write!(f, "at {byte}"),
            Place::DataLoc(byte) => write!(f, "data_loc at {byte}"),
            Place::RelLoc(byte) => write!(f, "rel_loc at {byte}"),
        }
    }
}

struct Cooked<'p>(&'p Recipe);

impl Display for Cooked<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Recipe::Path(path) => write!(f, "{}", Walked(path)),
            Recipe::SyscallNumber => f.write_str("number"),
            Recipe::SyscallArgument(index) => write!(f, "argument {index}"),
            Recipe::AnySyscallArgument(index) => write!(f, "argument {index} of any call"),
            Recipe::AnySyscallArguments => f.write_str("arguments of any call"),
            Recipe::SyscallReturn => f.write_str("return"),
            Recipe::Jiffies => f.write_str("jiffies"),
            Recipe::SwitchState {
                preempt,
                prev_state,
                exit_state,
            } => {
                write!(
                    f,
                    "switch state of {}, {}, {}",
                    Walked(preempt),
                    Walked(prev_state),
                    Walked(exit_state)
                )
            }
            Recipe::Siginfo {
                member,
                none,
                private,
            } => {
                write!(f, "siginfo {}, else {none} or {private}", Walked(member))
            }
            Recipe::TextOr {
                pointer,
                of,
                otherwise,
            } => write!(f, "{}, or {otherwise:?} unless {}", Walked(of), Walked(pointer)),
            Recipe::Constant(value) => write!(f, "{value}"),
            Recipe::As { of, bits, signed } => {
                let ty = Type::Int {
                    bits: *bits,
                    signed: *signed,
                };
                write!(f, "{}({})", TypeName(ty), Cooked(of))
            }
            Recipe::Binary { operator, a, b } => {
                write!(f, "({} {} {})", Cooked(a), operator.symbol(), Cooked(b))
            }
        }
    }
}

struct Walked<'p>(&'p Path);

impl Display for Walked<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Walked(path) = self;
        match path.base {
            Base::Argument(index) => write!(f, "arg{index}")?,
            Base::CurrentTask => f.write_str("current")?,
        }
        for hop in &path.hops {
            write!(f, "{}{}", if hop.direct { "->" } else { "~>" }, hop.offset)?;
        }
        if let Some(bits) = path.bits {
            write!(f, " bits {}+{}", bits.shift, bits.width)?;
        }
        if path.text_behind {
            f.write_str(" text")?;
        }
        Ok(())
    }
}
