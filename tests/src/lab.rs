//! Rule text in, a traced kernel out: what the suites that run on the real kernel share.
//!
//! A [`Lab`] holds what loading needs. Only one is open at a time in a process, since tests of one kernel on a few
//! CPUs disturb each other's pace, though not each other's results.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, ensure};
use lkst::command::run::generator_features;
use lkst::kernel::generation::load;
use lkst::kernel::load::Environment;
use lkst::kernel::loaded::{EventCounts, Loaded, RuleCounts};
use lkst::kernel::schema::KernelSchema;
use lkst::session::{Host, Session};
use lkst_probes::image::ProgramImage;
use lkst_rules::diagnostic::render;
use lkst_rules::plan::Plan;
use lkst_rules::schema::Schema as _;
use lkst_rules::source::Source;
use lkst_rules::{Options, Pack, compile};

use crate::live::{OneWay, plan};
use crate::view::View;
use crate::{kernel_schema, kernel_takes_programs};

static ONE: Mutex<()> = Mutex::new(());

/// What loading needs.
pub struct Lab {
    /// The kernel's events.
    pub schema: KernelSchema,
    _one: MutexGuard<'static, ()>,
}

impl Lab {
    /// Opens it, or says that the test is skipped.
    ///
    /// # Errors
    /// What is missing, where the kernel is required.
    pub fn open(test: &str) -> anyhow::Result<Option<Lab>> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        if !kernel_takes_programs(test)? {
            return Ok(None);
        }
        let Some(schema) = kernel_schema(test)? else {
            return Ok(None);
        };
        Ok(Some(Lab { schema, _one: one }))
    }

    /// Compiles rules; warnings are printed.
    ///
    /// # Errors
    /// The diagnostics.
    pub fn plan(&self, rules: &str) -> anyhow::Result<Arc<Plan>> {
        self.plan_of("test", rules)
    }

    /// As [`Lab::plan`], for a pack of this name.
    ///
    /// # Errors
    /// The diagnostics.
    pub fn plan_of(&self, name: &str, rules: &str) -> anyhow::Result<Arc<Plan>> {
        let source = Source {
            name: format!("{name}.lkst"),
            text: rules.to_owned(),
        };
        let pack = Pack {
            name: name.to_owned(),
            sources: vec![source],
        };
        let (plan, diagnostics) = compile(&pack, &Options::default(), &self.schema);
        let said = render(&diagnostics, &pack.sources, false);
        let plan = plan.with_context(|| said.clone())?;
        if !said.is_empty() {
            eprintln!("{said}");
        }
        Ok(Arc::new(plan))
    }

    /// Compiles, loads and attaches rules. They are not started.
    ///
    /// # Errors
    /// What the compiler or the kernel says.
    pub fn load(&self, rules: &str) -> anyhow::Result<Loaded> {
        let plan = self.plan(rules)?;
        Ok(load(&[plan], &self.environment()?)?)
    }

    /// As [`Lab::load`], with fields read in one of the two ways.
    ///
    /// # Errors
    /// As [`Lab::load`], or that some program goes the other way.
    pub fn load_one_way(&self, rules: &str, typed: bool) -> anyhow::Result<Loaded> {
        let schema = OneWay {
            schema: &self.schema,
            typed,
        };
        let loaded = load(&[plan("test", rules, &schema)?], &self.environment()?)?;
        let as_wanted = |program: &ProgramImage| loaded.is_typed(program.number) == typed;
        ensure!(loaded.image.programs.iter().all(as_wanted), "the other way");
        Ok(loaded)
    }

    /// The first so many events, as `system:name`, of systems that every kernel has and that programs may hang on.
    #[must_use]
    pub fn usual_events(&self, count: usize) -> Vec<String> {
        const SYSTEMS: [&str; 9] = [
            "sched",
            "signal",
            "task",
            "timer",
            "irq",
            "workqueue",
            "kmem",
            "block",
            "writeback",
        ];
        let mut events = self.schema.events();
        events.retain(|(system, name)| {
            SYSTEMS.contains(system) && self.schema.unattachable(system, name).is_none()
        });
        let names = events
            .into_iter()
            .map(|(system, name)| format!("{system}:{name}"));
        names.take(count).collect()
    }

    /// What loading needs beside plans.
    ///
    /// # Errors
    /// What the kernel lacks.
    pub fn environment(&self) -> anyhow::Result<Environment<'_>> {
        Ok(Environment {
            features: generator_features(&self.schema)?,
            btf: self.schema.btf(),
            tracefs: self.schema.tracefs(),
            uuid: [7; 16],
            pins: None,
            memo: "",
            max_bytes: u64::MAX,
        })
    }

    /// A session of these rules that saves below `output`, as `lkst run` makes it.
    ///
    /// # Errors
    /// As [`Lab::load`].
    pub fn session(&self, rules: &str, output: PathBuf) -> anyhow::Result<Session> {
        let mut loaded = self.load(rules)?;
        loaded.keep_names(&self.environment()?, true);
        Ok(Session::new(loaded, Host::this()?, output))
    }
}

/// What one pack has counted, by name.
pub trait Counted {
    /// An event's counters, summed over all CPUs. An event that the pack does not have counts nothing.
    fn event(&self, name: &str) -> EventCounts;
    /// An event's counters on a CPU.
    fn event_on(&self, name: &str, cpu: usize) -> EventCounts;
    /// A rule's counters.
    ///
    /// # Panics
    /// Where there is no such rule.
    fn rule(&self, name: &str) -> RuleCounts;
    /// Hits that the kernel itself has skipped, of the program that the event hangs on.
    fn skipped_hits(&self, name: &str) -> u64;
    /// What lies in a buffer's ring of a CPU, with nobody writing to it.
    fn ring(&self, buffer: &str, cpu: usize) -> View;
    /// What lies in a buffer's ring of a CPU while programs write.
    fn live_ring(&self, buffer: &str, cpu: usize) -> View;
    /// The number of a buffer.
    ///
    /// # Panics
    /// Where there is no such buffer.
    fn buffer(&self, name: &str) -> usize;
}

impl Counted for Loaded {
    fn event(&self, name: &str) -> EventCounts {
        (0..self.cpus()).map(|cpu| self.event_on(name, cpu)).sum()
    }

    fn event_on(&self, name: &str, cpu: usize) -> EventCounts {
        let event = self.image.packs[0].events.iter().find(|e| e.name == name);
        event.map_or_else(EventCounts::default, |e| self.event_counts(e.counters, cpu))
    }

    fn rule(&self, name: &str) -> RuleCounts {
        let pack = &self.image.packs[0];
        let place = pack.plan.rules.iter().position(|rule| rule.name == name);
        let place = place.unwrap_or_else(|| panic!("no rule `{name}`"));
        self.rule_counts(pack.rules[place].counters)
    }

    fn skipped_hits(&self, name: &str) -> u64 {
        let event = self.image.packs[0].events.iter().find(|e| e.name == name);
        event
            .and_then(|e| self.skipped(e.program?))
            .unwrap_or_else(|| panic!("the kernel does not say how often it skipped {name}"))
    }

    fn ring(&self, buffer: &str, cpu: usize) -> View {
        let rings = self.rings_of(0, self.buffer(buffer));
        let rings = rings.unwrap_or_else(|| panic!("no rings of `{buffer}`"));
        View::new(
            rings
                .look()
                .unwrap_or_else(|error| panic!("the rings cannot be mapped: {error}"))
                .copy(cpu, false),
            &self.image.packs[0].layouts,
        )
    }

    fn live_ring(&self, buffer: &str, cpu: usize) -> View {
        let rings = self.rings_of(0, self.buffer(buffer));
        let rings = rings.unwrap_or_else(|| panic!("no rings of `{buffer}`"));
        View::new(
            rings
                .look()
                .unwrap_or_else(|error| panic!("the rings cannot be mapped: {error}"))
                .copy(cpu, true),
            &self.image.packs[0].layouts,
        )
    }

    fn buffer(&self, name: &str) -> usize {
        let place = self.image.packs[0]
            .plan
            .buffers
            .iter()
            .position(|buffer| buffer.name == name);
        place.unwrap_or_else(|| panic!("no buffer `{name}`"))
    }
}
