//! What rules may name on the running kernel: the [`Schema`] of tracefs, BTF and the catalogue.
//!
//! In: a [`Tracefs`], and BTF where the kernel has it. Out: events, their fields, arguments, types and symbols.
//!
//! A kernel has 2,300 events and a pack names ten: only the names are read at once (3 ms), an event's format when it
//! is asked for (0.3 ms), and the index of enumerators with the first one that is looked up (12 ms). It is made for a
//! compilation and dropped after it: BTF and its index hold 7 MB.
//!
//! INVARIANT: an event whose format cannot be read or understood is not there: `event` is `None`, and the reason is in
//! the log. INVARIANT: the kernel does not change while this lives; what was read once is not read again.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use lkst_probes::catalogue::{self, Expression, Place as CataloguePlace, Row};
use lkst_rules::schema::{
    Event, Field, Operator, Origin, Path as SchemaPath, PathError, PathStep, Recipe, Resolved, Schema,
    Symbols, Type,
};

use super::arguments::{self, TypedArgument};
use super::btf::{Btf, BtfError, Id};
use super::btf_path::{self, Start};
use super::field;
use super::format::{self, FormatField};
use super::print_format;
use super::syscall;
use super::tracefs::{Tracefs, TracefsError};

/// Where a kernel shows its BTF.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Events that commonly happen in an interrupt, by glob.
const IN_INTERRUPT: &str = include_str!("interrupt.txt");

/// Events that the kernel has and lets no program attach to: a name and the reason a line. A test attaches to every
/// other event, and proves that it cannot attach to these.
const UNATTACHABLE: &str = include_str!("unattachable.txt");

/// Why there is no schema.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The list of events.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The catalogue that is built in; only a bug can cause it.
    #[error(transparent)]
    Catalogue(#[from] catalogue::CatalogueError),
    /// BTF is there and not understood.
    #[error("{BTF_PATH}: {0}")]
    Btf(#[from] BtfError),
}

/// An enumerator: its enum's type, its value.
type Enumerator = (Id, i64);

/// What was read so far, by system and name; `None` for what cannot be used.
type ReadEvents = HashMap<(String, String), Option<Arc<Event>>>;

/// The running kernel, as far as rules can name it.
#[derive(Debug)]
pub struct KernelSchema {
    tracefs: Arc<Tracefs>,
    btf: Option<Btf>,
    names: Vec<(String, String)>,
    /// Rows by `system:name`.
    catalogue: HashMap<String, Vec<Row>>,
    read: RefCell<ReadEvents>,
    enumerators: OnceCell<HashMap<u64, Vec<Enumerator>>>,
    hz: OnceCell<Option<u64>>,
    syscall_names: Vec<&'static str>,
}

impl KernelSchema {
    /// The schema of the kernel that runs this program.
    ///
    /// # Errors
    /// [`SchemaError`]. A kernel without BTF is no error here: it has classic events only.
    pub fn of_this_kernel() -> Result<Self, SchemaError> {
        Self::through(Arc::new(Tracefs::open()?))
    }

    /// As [`KernelSchema::of_this_kernel`], through a tracefs that is open already: who has dropped its privileges
    /// cannot mount another.
    ///
    /// # Errors
    /// As there.
    pub fn through(tracefs: Arc<Tracefs>) -> Result<Self, SchemaError> {
        let btf = match fs::read(BTF_PATH) {
            Ok(bytes) => Some(Btf::parse(bytes)?),
            Err(error) => {
                tracing::warn!(%error, path = BTF_PATH, "no type information: no typed events, no `args.`");
                None
            }
        };
        Self::new(tracefs, btf)
    }

    /// A schema of these parts.
    ///
    /// # Errors
    /// [`SchemaError`] where the names of the events cannot be read.
    pub fn new(tracefs: Arc<Tracefs>, btf: Option<Btf>) -> Result<Self, SchemaError> {
        let names = tracefs.events()?;
        let mut catalogue: HashMap<String, Vec<Row>> = HashMap::new();
        for row in catalogue::rows()? {
            catalogue.entry(row.event.clone()).or_default().push(row);
        }
        Ok(KernelSchema {
            tracefs,
            btf,
            names,
            catalogue,
            read: RefCell::default(),
            enumerators: OnceCell::new(),
            hz: OnceCell::new(),
            syscall_names: syscall::names(),
        })
    }

    /// The kernel's types, where it has them.
    #[must_use]
    pub fn btf(&self) -> Option<&Btf> {
        self.btf.as_ref()
    }

    /// Where the events are read from.
    #[must_use]
    pub fn tracefs(&self) -> &Tracefs {
        &self.tracefs
    }

    /// `CONFIG_HZ`. The first call may take a sixth of a second.
    #[must_use]
    pub fn hz(&self) -> Option<u64> {
        *self.hz.get_or_init(super::hz::of_this_kernel)
    }

    /// The members behind an argument of an event that is a pointer to a structure: their names and types in C; none
    /// for other arguments.
    #[must_use]
    pub fn argument_members(&self, event: &Event, argument: &str) -> Vec<(String, String)> {
        let known = self.btf.as_ref().zip(self.typed_arguments(event));
        known
            .and_then(|(btf, arguments)| {
                let argument = arguments.iter().find(|a| a.name == argument)?;
                Some(btf_path::members(btf, argument.ty))
            })
            .unwrap_or_default()
    }

    fn typed_arguments(&self, event: &Event) -> Option<Vec<TypedArgument>> {
        if event.origin != Origin::Tracepoint {
            return None;
        }
        arguments::of_tracepoint(self.btf.as_ref()?, &event.name)
    }

    fn read_event(&self, system: &str, name: &str) -> Option<Arc<Event>> {
        self.names
            .binary_search_by(|(s, n)| (s.as_str(), n.as_str()).cmp(&(system, name)))
            .ok()?;
        let read = self
            .tracefs
            .format(system, name)
            .map_err(|error| error.to_string());
        let format = read.and_then(|text| format::parse(&text).map_err(|error| error.to_string()));
        match format {
            Ok(format) => Some(Arc::new(self.make_event(system, name, &format))),
            Err(error) => {
                tracing::warn!(system, name, error, "this event cannot be used");
                None
            }
        }
    }

    fn make_event(&self, system: &str, name: &str, format: &format::Format) -> Event {
        let btf = self.btf.as_ref();
        let origin = if system == syscall::SYSTEM {
            syscall::origin(name)
        } else {
            None
        };
        let in_interrupt = is_in_interrupt(system, name);
        let mut event = Event {
            system: system.to_owned(),
            name: name.to_owned(),
            origin: origin.unwrap_or(Origin::Tracepoint),
            fields: Vec::with_capacity(format.fields.len()),
            arguments: Vec::new(),
            in_interrupt,
        };
        if let Some(origin) = origin {
            event.fields = syscall_fields(origin, &format.fields, btf);
            return event;
        }
        let arguments = self.typed_arguments(&event);
        if let (Some(btf), Some(arguments)) = (btf, &arguments) {
            event.arguments = arguments::shown(btf, arguments);
        }
        for raw in &format.fields {
            let Some(typed) = field::of_event(raw, btf) else {
                continue;
            };
            event.fields.push(Field {
                name: raw.name.clone(),
                declared: typed.declared,
                ty: typed.ty,
                hex: typed.hex,
                place: Some(field::place(raw)),
                recipe: None,
                symbols: print_format::symbols(&format.print, &raw.name, &|name| self.one_value(name)),
                enumerators: typed.enumerators,
            });
        }
        if let Some(arguments) = arguments {
            self.add_recipes(&mut event, &arguments);
        }
        event
    }

    /// Takes the catalogue's rows for the event, if they cover it whole.
    fn add_recipes(&self, event: &mut Event, arguments: &[TypedArgument]) {
        let (Some(rows), Some(btf)) = (self.catalogue.get(&event.full_name()), self.btf.as_ref()) else {
            return;
        };
        let kernel = Kernel {
            btf,
            arguments,
            enumerator: &|name| self.one_value(name),
        };
        let recipes: Option<Vec<_>> = event
            .fields
            .iter()
            .map(|field| {
                let row = rows.iter().find(|row| row.field == field.name)?;
                row.alternatives
                    .iter()
                    .find_map(|expression| recipe(&kernel, field.ty, expression))
            })
            .collect();
        let Some(recipes) = recipes else {
            tracing::debug!(
                event = event.full_name(),
                "the catalogue does not cover it on this kernel"
            );
            return;
        };
        for (field, (recipe, ty)) in event.fields.iter_mut().zip(recipes) {
            field.recipe = Some(recipe);
            field.ty = ty;
        }
    }

    /// The value of an enumerator that every enum agrees on.
    fn one_value(&self, name: &str) -> Option<i64> {
        let mut values = self.enumerator(name).into_iter().map(|(_, value)| value);
        let first = values.next()?;
        values.all(|value| value == first).then_some(first)
    }

    /// Enumerators by a hash of their names. Names are compared where they lie in BTF: there are some 40,000.
    fn enumerator_index(&self) -> &HashMap<u64, Vec<Enumerator>> {
        self.enumerators.get_or_init(|| {
            let mut index: HashMap<u64, Vec<Enumerator>> = HashMap::new();
            for ty in self.btf.iter().flat_map(Btf::types) {
                for (name, value) in ty.enumerators() {
                    index.entry(hash(name)).or_default().push((ty.id, value));
                }
            }
            index
        })
    }
}

impl Schema for KernelSchema {
    fn hz(&self) -> Option<u64> {
        KernelSchema::hz(self)
    }

    fn events(&self) -> Vec<(&str, &str)> {
        self.names
            .iter()
            .map(|(system, name)| (system.as_str(), name.as_str()))
            .collect()
    }

    fn event(&self, system: &str, name: &str) -> Option<Arc<Event>> {
        let key = (system.to_owned(), name.to_owned());
        if let Some(known) = self.read.borrow().get(&key) {
            return known.clone();
        }
        let event = self.read_event(system, name);
        self.read.borrow_mut().insert(key, event.clone());
        event
    }

    fn unattachable(&self, system: &str, name: &str) -> Option<&str> {
        UNATTACHABLE.lines().find_map(|line| {
            let (event, reason) = line.split_once(' ')?;
            (event.split_once(':') == Some((system, name))).then_some(reason)
        })
    }

    fn argument(&self, event: &Event, steps: &[PathStep]) -> Result<Resolved, PathError> {
        let fail = |message: &str, known| PathError {
            step: 0,
            message: message.to_owned(),
            known,
        };
        let Some((PathStep::Name(name), rest)) = steps.split_first() else {
            return Err(fail("an argument's name is expected", Vec::new()));
        };
        let Some((btf, arguments)) = self.btf.as_ref().zip(self.typed_arguments(event)) else {
            let message = match event.origin {
                Origin::Tracepoint => "this kernel has no type information about the event's arguments",
                _ => "the arguments of a system call are fields: write them without `args.`",
            };
            return Err(fail(message, Vec::new()));
        };
        let Some(start) = start(&arguments, name) else {
            let known = arguments.into_iter().map(|a| a.name).collect();
            return Err(fail("the event has no argument of that name", known));
        };
        if let Some(message) = unreadable(btf, start) {
            return Err(fail(message, Vec::new()));
        }
        btf_path::resolve(btf, start, rest, 1).map_err(|mut error| {
            error.step = error.step.min(steps.len().saturating_sub(1));
            error
        })
    }

    fn task_member(&self, path: &[&str]) -> Option<Resolved> {
        let steps: Vec<_> = path
            .iter()
            .map(|name| PathStep::Name((*name).to_owned()))
            .collect();
        btf_path::resolve(self.btf.as_ref()?, Start::CurrentTask, &steps, 0).ok()
    }

    fn enumerator(&self, name: &str) -> Vec<(String, i64)> {
        let Some(btf) = self.btf.as_ref() else {
            return Vec::new();
        };
        let found = self
            .enumerator_index()
            .get(&hash(name))
            .map_or(&[][..], Vec::as_slice);
        let mut values: Vec<(String, i64)> = Vec::new();
        for (id, value) in found {
            let Some(ty) = btf
                .ty(*id)
                .filter(|ty| ty.enumerators().any(|(n, v)| n == name && v == *value))
            else {
                continue;
            };
            let of = ty.declared();
            if !values.contains(&(of.clone(), *value)) {
                values.push((of, *value));
            }
        }
        values
    }

    fn syscall_number(&self, name: &str) -> Option<u32> {
        syscall::number(name)
    }

    fn syscall_names(&self) -> Vec<&str> {
        self.syscall_names.clone()
    }
}

fn syscall_fields(origin: Origin, fields: &[FormatField], btf: Option<&Btf>) -> Vec<Field> {
    let mut next = 0u8;
    let mut recipe = |name: &str| match name {
        "__syscall_nr" => Recipe::SyscallNumber,
        _ if matches!(origin, Origin::SyscallExit(_)) => Recipe::SyscallReturn,
        _ => {
            next += 1;
            Recipe::SyscallArgument(next - 1)
        }
    };
    let make = |raw: &FormatField| {
        let typed = field::of_syscall(raw, btf);
        Field {
            recipe: Some(recipe(&raw.name)),
            name: raw.name.clone(),
            declared: typed.declared,
            ty: typed.ty,
            hex: typed.hex,
            place: None,
            symbols: Symbols::from([]),
            enumerators: typed.enumerators,
        }
    };
    fields.iter().map(make).collect()
}

fn start(arguments: &[TypedArgument], name: &str) -> Option<Start> {
    let index = arguments.iter().position(|argument| argument.name == name)?;
    let argument = arguments.get(index)?;
    Some(Start::Argument {
        number: u8::try_from(index).ok()?,
        ty: argument.ty,
        trusted: argument.trusted,
    })
}

/// Why no program may read an argument at all: the verifier wants a pointer's target to be a structure, an integer or
/// void (`btf_ctx_access`).
fn unreadable(btf: &Btf, start: Start) -> Option<&'static str> {
    use super::btf::Kind;
    let Start::Argument { ty, .. } = start else {
        return None;
    };
    let ty = btf.ty(ty)?.strip()?;
    let target = ty.target().filter(|_| ty.kind == Kind::Ptr)?.strip()?;
    match target.kind {
        Kind::Struct | Kind::Union | Kind::Int | Kind::Void => None,
        Kind::Fwd => {
            Some("the kernel's type information does not say what it points to, so no program may read it")
        }
        _ => Some("the kernel lets no program read a pointer of this kind"),
    }
}

/// What expressions of the catalogue are about.
struct Kernel<'k> {
    btf: &'k Btf,
    /// The tracepoint's.
    arguments: &'k [TypedArgument],
    /// The value of an enumerator.
    enumerator: &'k dyn Fn(&str) -> Option<i64>,
}

/// How a typed program computes a field, and the field's type with it. `None` where the kernel's types differ.
fn recipe(kernel: &Kernel<'_>, ty: Type, expression: &Expression) -> Option<(Recipe, Type)> {
    match expression {
        Expression::Path(place) => {
            let found = follow(kernel, place)?;
            match fitting(ty, &found) {
                Some(ty) => Some((found.recipe, ty)),
                None => assigned(ty, integer(found)?),
            }
        }
        Expression::TextOr {
            pointer,
            of,
            otherwise,
        } => {
            let found = follow(kernel, of)?;
            let recipe = Recipe::TextOr {
                pointer: path_of(follow(kernel, pointer)?)?,
                otherwise: otherwise.as_str().into(),
                of: path_of(found.clone())?,
            };
            matches!(ty, Type::Text { .. }).then_some((recipe, fitting(ty, &found)?))
        }
        Expression::Number(_) | Expression::Binary { .. } => assigned(ty, computed(kernel, expression)?),
        Expression::SyscallArguments => {
            let six = Type::Array {
                bits: 64,
                signed: false,
                count: 6,
            };
            (ty == six).then_some((Recipe::AnySyscallArguments, ty))
        }
        Expression::Jiffies => matches!(ty, Type::Int { .. }).then_some((Recipe::Jiffies, ty)),
        Expression::SwitchState {
            preempt,
            prev_state,
            exit_state,
        } => {
            let path = |place| path_of(follow(kernel, place)?);
            let recipe = Recipe::SwitchState {
                preempt: path(preempt)?,
                prev_state: path(prev_state)?,
                exit_state: path(exit_state)?,
            };
            matches!(ty, Type::Int { .. }).then_some((recipe, ty))
        }
        Expression::Siginfo {
            member,
            none,
            private,
        } => {
            let found = follow(kernel, member)?;
            let ty = fitting(ty, &found)?;
            Some((
                Recipe::Siginfo {
                    member: path_of(found)?,
                    none: *none,
                    private: *private,
                },
                ty,
            ))
        }
    }
}

/// A value of an expression: an integer, and its type.
struct Integer {
    recipe: Recipe,
    bits: u8,
    signed: bool,
}

impl Integer {
    /// The value at its own width, for whatever uses it at another.
    fn whole(self) -> Box<Recipe> {
        Box::new(match self.recipe {
            constant @ Recipe::Constant(_) => constant,
            of => Recipe::As {
                of: Box::new(of),
                bits: self.bits,
                signed: self.signed,
            },
        })
    }
}

/// What a path leads to as an integer: of text behind a pointer, the pointer.
fn integer(found: Resolved) -> Option<Integer> {
    let mut recipe = found.recipe;
    let (bits, signed) = match (found.ty, &mut recipe) {
        (Type::Int { bits, signed }, _) => (bits, signed),
        (Type::Bool, _) => (8, false),
        (Type::Text { .. }, Recipe::Path(path)) if path.text_behind => {
            path.text_behind = false;
            (64, false)
        }
        _ => return None,
    };
    Some(Integer { recipe, bits, signed })
}

fn computed(kernel: &Kernel<'_>, expression: &Expression) -> Option<Integer> {
    let recipe = match expression {
        Expression::Path(place) => match (follow(kernel, place), place.steps.as_slice()) {
            (Some(found), _) => return integer(found),
            (None, [PathStep::Name(name)]) => Recipe::Constant((kernel.enumerator)(name)?),
            _ => return None,
        },
        Expression::Number(number) => Recipe::Constant(*number),
        Expression::Binary { operator, a, b } => Recipe::Binary {
            operator: *operator,
            a: computed(kernel, a)?.whole(),
            b: computed(kernel, b)?.whole(),
        },
        _ => return None,
    };
    Some(Integer {
        recipe,
        bits: 64,
        signed: false,
    })
}

/// A field that is assigned an integer, as C does it.
fn assigned(field: Type, value: Integer) -> Option<(Recipe, Type)> {
    let recipe = match (field, value.recipe) {
        (Type::Int { .. }, recipe @ (Recipe::Constant(_) | Recipe::Binary { .. })) => recipe,
        (Type::Int { bits, .. }, recipe) if bits == value.bits => recipe,
        (Type::Int { .. }, recipe) => Recipe::As {
            of: Box::new(recipe),
            bits: value.bits,
            signed: value.signed,
        },
        (Type::Bool, recipe) => Recipe::Binary {
            operator: Operator::NotEqual,
            a: Integer { recipe, ..value }.whole(),
            b: Box::new(Recipe::Constant(0)),
        },
        _ => return None,
    };
    Some((recipe, field))
}

fn path_of(found: Resolved) -> Option<SchemaPath> {
    match found.recipe {
        Recipe::Path(path) => Some(path),
        _ => None,
    }
}

fn follow(kernel: &Kernel<'_>, place: &CataloguePlace) -> Option<Resolved> {
    let Kernel { btf, arguments, .. } = kernel;
    if place.current {
        return btf_path::resolve(btf, Start::CurrentTask, &place.steps, 0).ok();
    }
    let Some((PathStep::Name(name), rest)) = place.steps.split_first() else {
        return None;
    };
    let start = start(arguments, name)?;
    if unreadable(btf, start).is_some() {
        return None;
    }
    btf_path::resolve(btf, start, rest, 1).ok()
}

/// The type of a field that is assigned what a path leads to, if one load is the whole assignment: its own, where the
/// value is as wide. Text of varying length that is copied from an array is as long as that. An array may be what the
/// kernel keeps as one integer (an address) or as another array.
fn fitting(field: Type, found: &Resolved) -> Option<Type> {
    match (field, found.ty) {
        (Type::Int { bits, .. }, Type::Int { bits: from, .. }) => (bits == from).then_some(field),
        (Type::Bool, Type::Bool) => Some(field),
        (Type::Text { capacity }, Type::Text { capacity: from }) => Some(Type::Text {
            capacity: capacity.min(from),
        }),
        (Type::Array { bits, count, .. }, Type::Int { bits: from, .. })
            if u32::from(bits) * u32::from(count) == u32::from(from) && lies_in_memory(&found.recipe) =>
        {
            Some(field)
        }
        (
            Type::Array { bits, count, .. },
            Type::Array {
                bits: from,
                count: elements,
                ..
            },
        ) if u32::from(bits) * u32::from(count) == u32::from(from) * u32::from(elements) => Some(field),
        _ => None,
    }
}

/// Whether a path ends in memory, in whole bytes.
fn lies_in_memory(recipe: &Recipe) -> bool {
    matches!(recipe, Recipe::Path(path) if !path.hops.is_empty() && path.bits.is_none())
}

fn is_in_interrupt(system: &str, name: &str) -> bool {
    IN_INTERRUPT.lines().any(|line| match line.split_once(':') {
        Some((of, glob)) if of == system => match glob.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == glob,
        },
        _ => false,
    })
}

fn hash(name: &str) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    hasher.finish()
}
