//! Packs in the running kernel: from a rule's text to the records that hits have made.
//!
//! In: texts, a [`Schema`] of this kernel. Out: programs that run ([`Machine::load`]), and what they recorded as values
//! ([`records`]). The way is that of `lkst run`, without its files. What is loaded goes with its [`Loaded`], also
//! where a test fails.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::Context as _;
use lkst::kernel::btf::Btf;
use lkst::kernel::load::{Environment, LoadError};
use lkst::kernel::loaded::Loaded;
use lkst::kernel::schema::{BTF_PATH, KernelSchema};
use lkst::kernel::tracefs::Tracefs;
use lkst::trace::decode::{Classes, EventClass, Value as Decoded, u32_at};
use lkst::trace::raw;
use lkst_probes::features::Features;
use lkst_probes::layout::record;
use lkst_rules::diagnostic::{Severity, render};
use lkst_rules::plan::Plan;
use lkst_rules::schema::{Event, PathError, PathStep, Resolved, Schema};
use lkst_rules::source::Source;
use lkst_rules::{Options, Pack, compile};

/// What loading needs of this machine.
pub struct Machine {
    features: Features,
    btf: Btf,
    tracefs: Tracefs,
}

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// Where the number of CPUs or the kernel's types cannot be read.
    pub fn of(schema: &KernelSchema) -> anyhow::Result<Machine> {
        Ok(Machine {
            features: lkst::command::run::generator_features(schema)?,
            btf: Btf::parse(std::fs::read(BTF_PATH)?)?,
            tracefs: Tracefs::at(schema.tracefs().root()),
        })
    }

    /// Loads and attaches the plans' programs, which go nowhere before [`Loaded::start`].
    ///
    /// # Errors
    /// As [`lkst::kernel::generation::load`].
    pub fn load(&self, plans: &[Arc<Plan>]) -> Result<Loaded, LoadError> {
        let env = Environment {
            features: self.features.clone(),
            btf: Some(&self.btf),
            tracefs: &self.tracefs,
            uuid: [0x7e; 16],
            pins: None,
            memo: "",
            max_bytes: u64::MAX,
        };
        lkst::kernel::generation::load(plans, &env)
    }
}

/// Compiles a pack of one file.
///
/// # Errors
/// The diagnostics, as people see them, where one is an error.
pub fn plan(name: &str, text: &str, schema: &dyn Schema) -> anyhow::Result<Arc<Plan>> {
    let pack = Pack {
        name: name.to_owned(),
        sources: vec![Source {
            name: format!("{name}.lkst"),
            text: text.to_owned(),
        }],
    };
    let (plan, mut diagnostics) = compile(&pack, &Options::default(), schema);
    diagnostics.list.retain(|d| d.severity == Severity::Error);
    plan.map(Arc::new)
        .with_context(|| render(&diagnostics, &pack.sources, false))
}

/// This kernel with one of the two ways to a field.
#[derive(Debug)]
pub struct OneWay<'s> {
    /// The kernel.
    pub schema: &'s KernelSchema,
    /// By the arguments, rather than by the format.
    pub typed: bool,
}

impl Schema for OneWay<'_> {
    fn events(&self) -> Vec<(&str, &str)> {
        self.schema.events()
    }

    fn event(&self, system: &str, name: &str) -> Option<Arc<Event>> {
        let mut event = Event::clone(&*self.schema.event(system, name)?);
        for field in &mut event.fields {
            match self.typed {
                true => field.place = None,
                false => field.recipe = None,
            }
        }
        Some(Arc::new(event))
    }

    fn argument(&self, event: &Event, steps: &[PathStep]) -> Result<Resolved, PathError> {
        self.schema.argument(event, steps)
    }

    fn task_member(&self, path: &[&str]) -> Option<Resolved> {
        self.schema.task_member(path)
    }

    fn enumerator(&self, name: &str) -> Vec<(String, i64)> {
        self.schema.enumerator(name)
    }

    fn syscall_number(&self, name: &str) -> Option<u32> {
        self.schema.syscall_number(name)
    }

    fn syscall_names(&self) -> Vec<&str> {
        self.schema.syscall_names()
    }
}

/// A recorded value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// An integer, extended to 64 bits by its sign.
    Int(u64),
    /// Text without its NUL.
    Text(Vec<u8>),
    /// Integers in a row, each extended.
    Ints(Vec<u64>),
}

/// Column names to their places in [`Record::cells`].
pub type Columns = HashMap<String, usize>;

/// A record, decoded.
#[derive(Debug, Clone)]
pub struct Record {
    /// `system:name`
    pub event: Arc<str>,
    /// Where each column is.
    pub columns: Arc<Columns>,
    /// Whose ring it was in.
    pub cpu: u32,
    /// Nanoseconds of the boot clock.
    pub time: u64,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The id of its layout.
    pub id: u16,
    /// The columns' values.
    pub cells: Vec<Cell>,
}

impl Record {
    /// The value of a column.
    #[must_use]
    pub fn cell(&self, column: &str) -> Option<&Cell> {
        self.cells.get(*self.columns.get(column)?)
    }

    /// The value of a column that is an integer.
    #[must_use]
    pub fn int(&self, column: &str) -> Option<u64> {
        match self.cell(column)? {
            Cell::Int(value) => Some(*value),
            Cell::Text(_) | Cell::Ints(_) => None,
        }
    }
}

/// All records of a pack, by CPU and then in the order in which they were reserved. At most `most` of each kind and CPU,
/// the latest ones.
#[must_use]
pub fn records(loaded: &Loaded, pack: usize, most: usize) -> Vec<Record> {
    let Some(image) = loaded.image.packs.get(pack) else {
        return Vec::new();
    };
    let classes = Classes::of_layouts(&image.layouts);
    let names: HashMap<u16, (Arc<str>, Arc<Columns>)> = image
        .layouts
        .iter()
        .map(|layout| {
            let columns = layout.columns.iter().zip(0..).map(|(c, n)| (c.name.clone(), n));
            let name: Arc<str> = layout.name.as_str().into();
            (layout.id, (name, Arc::new(columns.collect())))
        })
        .collect();
    let mut records = Vec::new();
    for rings in (0..image.rings.len()).filter_map(|buffer| loaded.rings_of(pack, buffer)) {
        for cpu in 0..rings.cpus() {
            let stream = rings
                .look()
                .unwrap_or_else(|error| panic!("the rings cannot be mapped: {error}"))
                .copy(cpu, false);
            let mut left: HashMap<u16, usize> = HashMap::new();
            let mut found = raw::records(&stream, &classes).records;
            found.reverse();
            found.retain(|record| {
                let left = left.entry(record.id).or_insert(most);
                let wanted = *left > 0;
                *left = left.saturating_sub(1);
                wanted
            });
            found.reverse();
            let decoded = found.iter().filter_map(|found| {
                let (event, columns) = names.get(&found.id)?;
                decode(&stream.pages, found.bytes.clone(), classes.get(found.id)?).map(|(pid, tid, cells)| {
                    Record {
                        event: Arc::clone(event),
                        columns: Arc::clone(columns),
                        cpu: cpu as u32,
                        time: found.time,
                        pid,
                        tid,
                        id: found.id,
                        cells,
                    }
                })
            });
            records.extend(decoded);
        }
    }
    records
}

fn decode(pages: &[u8], bytes: Range<usize>, class: &EventClass) -> Option<(u32, u32, Vec<Cell>)> {
    let bytes = pages.get(bytes)?;
    let cells = class.values(bytes).map(|(_, value)| match value {
        Decoded::Int(int) => Cell::Int(int.extended),
        Decoded::Enum(number, _) => Cell::Int(u64::from(number)),
        Decoded::Text(text) => Cell::Text(text.to_vec()),
        Decoded::Ints(ints) => Cell::Ints(ints.iter().map(|int| int.extended).collect()),
    });
    Some((
        u32_at(bytes, record::PID)?,
        u32_at(bytes, record::TID)?,
        cells.collect(),
    ))
}

/// Runs the test crate's workload, which must be at `program`, for so long.
///
/// # Errors
/// Where it cannot be started or fails.
pub fn workload(program: &str, time: std::time::Duration) -> anyhow::Result<()> {
    let status = std::process::Command::new(program)
        .arg(time.as_millis().to_string())
        .status()
        .context("cannot start the workload")?;
    anyhow::ensure!(status.success(), "the workload ended with {status}");
    Ok(())
}
