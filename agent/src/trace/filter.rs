//! A condition of the rule language and opened traces in, a [`Filter`] of their records out.
//!
//! The condition is typed once for each class of record, by what the trace says of its columns: no kernel is asked,
//! least of all the one that runs here. A record of a class that lacks what the condition names does not match, and
//! neither does one of which the condition asks what no trace has (`task.uid`).

use std::cell::Cell;
use std::sync::Arc;

use lkst_probes::layout::{ColumnLayout, Encoding, UNREADABLE, VARYING_MAX_BYTES};
use lkst_rules::diagnostic::{Diagnostics, render};
use lkst_rules::eval::{Hit, Value as Worth, eval};
use lkst_rules::plan::{Expr, TaskValue};
use lkst_rules::schema::{
    Base, Event, Field, Origin, Path, PathError, PathStep, Place, Recipe, Resolved, Schema, Type,
};
use lkst_rules::source::Source;
use lkst_rules::{ConditionError, compile_condition};

use super::decode::{Int, Value};
use super::read::{Class, Filter, RecordView, Traces};

/// The condition has a meaning for no record of these traces.
#[derive(Debug, thiserror::Error)]
#[error("the condition fits no record of these traces\n{rendered}")]
pub struct ConditionFitsNothing {
    /// What is wrong with it, for one of the events.
    pub diagnostics: Diagnostics,
    /// The same for people.
    pub rendered: String,
}

/// A condition, ready for all classes of some traces.
#[derive(Debug)]
pub struct Condition {
    /// By [`Class::index`]; `None` where no record of the class can match.
    classes: Vec<Option<Expr>>,
}

impl Condition {
    /// Types the condition for each class.
    ///
    /// # Errors
    /// Where it has a meaning for none of them. What is wrong with the condition itself is preferred to what an event
    /// lacks.
    pub fn new(text: &str, traces: &Traces) -> Result<Condition, ConditionFitsNothing> {
        let mut classes = Vec::new();
        classes.resize_with(traces.class_count, || None);
        let (mut invalid, mut missing) = (None, None);
        let all = traces.traces.iter().flat_map(|trace| trace.classes.all());
        for class in all {
            match classes.get_mut(class.index) {
                Some(place @ None) => match compile_condition(text, &event_of(class), &Recorded) {
                    Ok(condition) => *place = Some(condition),
                    Err(ConditionError::Invalid(found)) => invalid = invalid.or(Some(found)),
                    Err(ConditionError::Missing(found)) => missing = missing.or(Some(found)),
                },
                _ => continue,
            }
        }
        match invalid.or(missing) {
            Some(diagnostics) if classes.iter().all(Option::is_none) => {
                let source = Source {
                    name: "--where".to_owned(),
                    text: text.to_owned(),
                };
                let rendered = render(&diagnostics, &[source], false);
                Err(ConditionFitsNothing {
                    diagnostics,
                    rendered,
                })
            }
            _ => Ok(Condition { classes }),
        }
    }
}

impl Filter for Condition {
    fn matches(&mut self, record: &RecordView<'_>) -> bool {
        let Some(Some(condition)) = self.classes.get(record.class.index) else {
            return false;
        };
        let hit = RecordedHit {
            record,
            unknown: Cell::new(false),
        };
        eval(condition, &hit).bool() && !hit.unknown.get()
    }
}

/// An event as its records show it.
fn event_of(class: &Class) -> Event {
    let layout = &class.event.layout;
    let (system, name) = layout.name.split_once(':').unwrap_or(("", &layout.name));
    Event {
        system: system.to_owned(),
        name: name.to_owned(),
        origin: Origin::Tracepoint,
        fields: layout
            .columns
            .iter()
            .map(|column| field_of(system, column))
            .collect(),
        arguments: Vec::new(),
        in_interrupt: false,
    }
}

fn field_of(system: &str, column: &ColumnLayout) -> Field {
    let ty = match column.encoding {
        // A span's duration is one; all else that was a duration is an integer in the trace.
        Encoding::Int {
            bits: 64,
            signed: false,
        } if system == "span" && column.name == "duration" => Type::Duration,
        Encoding::Int { bits, signed } => Type::Int { bits, signed },
        Encoding::Enum(_) | Encoding::String => Type::Text {
            capacity: VARYING_MAX_BYTES as u16,
        },
        Encoding::Text { bytes } => Type::Text { capacity: bytes },
        Encoding::Array { bits, signed, count } => Type::Array { bits, signed, count },
        Encoding::Sequence { bits, signed } => Type::Sequence { bits, signed },
    };
    Field {
        name: column.name.clone(),
        declared: String::new(),
        ty,
        hex: column.hex,
        // Never looked at, since the evaluator asks for fields by name; but a field without any cannot be read.
        place: Some(Place::At(column.offset.unwrap_or(0))),
        recipe: None,
        symbols: Arc::default(),
        enumerators: Arc::default(),
    }
}

/// What a trace says of the kernel that it comes from: nothing but the events' columns and the threads' names.
struct Recorded;

impl Schema for Recorded {
    fn events(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn event(&self, _system: &str, _name: &str) -> Option<Arc<Event>> {
        None
    }

    fn argument(&self, _event: &Event, _steps: &[PathStep]) -> Result<Resolved, PathError> {
        Err(PathError {
            step: 0,
            message: "a trace holds the columns that were recorded, by their names".to_owned(),
            known: Vec::new(),
        })
    }

    fn task_member(&self, path: &[&str]) -> Option<Resolved> {
        (path == ["comm"]).then(|| Resolved {
            ty: Type::COMM,
            declared: String::new(),
            hex: false,
            // Never looked at either.
            recipe: Recipe::Path(Path {
                base: Base::CurrentTask,
                hops: Vec::new(),
                bits: None,
                text_behind: false,
            }),
            enumerators: Arc::default(),
        })
    }

    fn enumerator(&self, _name: &str) -> Vec<(String, i64)> {
        Vec::new()
    }

    fn syscall_number(&self, _name: &str) -> Option<u32> {
        None
    }

    fn syscall_names(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// A record as the evaluator asks it.
struct RecordedHit<'a> {
    record: &'a RecordView<'a>,
    /// Something was asked that no trace knows.
    unknown: Cell<bool>,
}

impl Hit for RecordedHit<'_> {
    fn field(&self, name: &str) -> Option<Worth> {
        let (name, index) = match name.strip_suffix(']').and_then(|name| name.rsplit_once('[')) {
            Some((name, index)) => (name, index.parse::<usize>().ok()),
            None => (name, None),
        };
        let mut values = self.record.values();
        let (column, value) = values.find(|(column, _)| column.name == name)?;
        Some(match value {
            Value::Int(Int { extended, .. }) => Worth::Int(extended),
            Value::Ints(ints) => Worth::Int(ints.iter().nth(index?)?.extended),
            Value::Enum(_, name) => Worth::Text(name.map(|name| name.as_bytes().to_vec())),
            Value::Text(text) => {
                let unreadable = column.encoding == Encoding::String && text == UNREADABLE.as_bytes();
                Worth::Text((!unreadable).then(|| text.to_vec()))
            }
        })
    }

    fn task(&self, what: &TaskValue) -> Option<Worth> {
        match what {
            TaskValue::Pid => Some(Worth::Int(self.record.pid().into())),
            TaskValue::Tid => Some(Worth::Int(self.record.tid().into())),
            TaskValue::Comm(_) => Some(Worth::Text(
                self.record.comm().map(|comm| comm.as_bytes().to_vec()),
            )),
            TaskValue::Uid | TaskValue::Gid | TaskValue::Ppid(_) | TaskValue::Traced => {
                self.unknown.set(true);
                None
            }
        }
    }

    fn cpu(&self) -> u32 {
        self.record.stream.cpu
    }

    fn time(&self) -> u64 {
        self.record.time
    }

    fn text_at(&self, _pointer: u64, _user: bool) -> Option<Vec<u8>> {
        self.unknown.set(true);
        None
    }
}
