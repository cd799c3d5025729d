//! The rules folder → other rules in force. One pack's fault is that pack's alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use lkst_probes::features::Costs;
use lkst_rules::diagnostic::{Diagnostics, render};
use lkst_rules::plan::{Plan, SharedColumns};
use lkst_rules::{Options, compile};

use super::{Agent, tell_manager, unix_now_ns};
use crate::command::run::generator_features;
use crate::command::{build_diagnostic, no_events};
use crate::compile::compile_text;
use crate::config::Config;
use crate::guard::boot_clock_s;
use crate::kernel::adopt::adopt;
use crate::kernel::costs::measure;
use crate::kernel::generation::load;
use crate::kernel::load::{Environment, LoadError};
use crate::kernel::pins::Pins;
use crate::kernel::restricted::Restricted;
use crate::kernel::schema::KernelSchema;
use crate::kernel::tracefs::Tracefs;
use crate::reload::{Packs, Version, VersionText};
use crate::rules_dir::scan;
use crate::session::{Session, TooCostly};
use crate::status::Reload;
use crate::trace::saved::saved_rings;

/// What compiling and loading needs of the kernel. Large, and so let go of as soon as the rules are in force.
struct Kernel {
    schema: KernelSchema,
    /// Whether programs can be typed.
    typed: bool,
}

impl Kernel {
    fn read(tracefs: &Arc<Tracefs>, typed: bool) -> anyhow::Result<Kernel> {
        Ok(Kernel {
            schema: KernelSchema::through(tracefs.clone()).map_err(no_events)?,
            typed,
        })
    }
}

impl Kernel {
    /// What rules may see of it.
    fn allowed<'a>(&'a self, config: &'a Config) -> Restricted<'a> {
        Restricted {
            schema: &self.schema,
            never: &config.never_capture,
        }
    }
}

/// What a pack may cost of each CPU where its file does not say, in millionths.
const BUDGET_PPM: u32 = 10_000;

/// A plan as the host wants it: none is without a budget, and one that is only observed decides and counts, and acts on
/// nothing.
fn as_set(config: &Config, plan: Arc<Plan>) -> Arc<Plan> {
    let mut plan = (*plan).clone();
    plan.budget_ppm.get_or_insert(BUDGET_PPM);
    if !config.is_observed(&plan.pack) {
        return Arc::new(plan);
    }
    for rule in &mut plan.rules {
        rule.actions.clear();
    }
    Arc::new(plan)
}

/// How long rules may take to come into force: the kernel's verifier looks at what is too large for a minute or two.
const UNHURRIED_US: u32 = 600_000_000;

/// While it lives systemd does not take us for dead. Else it would end us in the middle of loading rules, and the next
/// agent, which loads the same ones, too.
struct Unhurried {
    /// `WatchdogSec=` of the unit.
    usual_us: Option<u32>,
}

impl Unhurried {
    fn begin() -> Unhurried {
        let usual = std::env::var("WATCHDOG_USEC").ok();
        let usual_us = usual.and_then(|text| text.parse().ok());
        if usual_us.is_some() {
            tell_manager(&[sd_notify::NotifyState::WatchdogUsec(UNHURRIED_US)]);
        }
        // Before the agent is ready it is `TimeoutStartSec=` that counts.
        tell_manager(&[sd_notify::NotifyState::ExtendTimeoutUsec(UNHURRIED_US)]);
        Unhurried { usual_us }
    }
}

impl Drop for Unhurried {
    fn drop(&mut self) {
        if let Some(usual_us) = self.usual_us {
            tell_manager(&[
                sd_notify::NotifyState::WatchdogUsec(usual_us),
                sd_notify::NotifyState::Watchdog,
            ]);
        }
    }
}

/// Lets all threads have one heap: those that load programs live for a second, and each would leave one of its own behind,
/// with what is still used strewn over all.
pub(super) fn one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is not used any more back to the machine.
pub(super) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// All that a pack is compiled with, as a key.
fn settings(config: &Config, pack: &str) -> String {
    format!(
        "{:?} {:?} {:?}",
        config.options(pack),
        config.mode(pack),
        config.never_capture
    )
}

impl Agent {
    /// Looks at the rules folder, and lets other rules come into force where it has some. With `again`, all packs are
    /// compiled, also those whose text is the same.
    pub(super) fn look_at_rules(&mut self, again: bool) {
        let begun = Instant::now();
        let _unhurried = Unhurried::begin();
        let found = scan(&self.options.folders.rules, self.options.trust);
        let mut kernel: Option<Kernel> = None;
        let mut unread = None;
        let config = &self.options.config;
        let typed = self.features.btf;
        let record_ns = self.costs.map(|costs| costs.record_ns);
        let shared = &mut self.columns;
        // Of plans that are gone.
        shared.retain(|_, columns| Arc::strong_count(columns) > 1);
        let changed = self.packs.look(
            found,
            |name| settings(config, name),
            again,
            |text| {
                if kernel.is_none() {
                    match Kernel::read(&self.tracefs, typed) {
                        Ok(read) => kernel = Some(read),
                        Err(error) => unread = Some(format!("{error:#}")),
                    }
                }
                let kernel = kernel
                    .as_ref()
                    .ok_or_else(|| unread.clone().unwrap_or_default())?;
                let mut options = config.options(&text.pack.name);
                options.record_ns = record_ns.unwrap_or(options.record_ns);
                let mut compiled = compile_text(text, &options, &kernel.allowed(config));
                if let Some(plan) = &mut compiled.plan {
                    Arc::make_mut(plan).share(shared);
                }
                compiled.plan = compiled.plan.map(|plan| as_set(config, plan));
                Ok(compiled)
            },
        );
        self.say_errors();
        if changed || (again && self.session.is_none()) {
            let kernel = match kernel {
                Some(kernel) => Ok(kernel),
                None => Kernel::read(&self.tracefs, typed),
            };
            match kernel {
                Ok(kernel) => self.put_in_force(&kernel, begun),
                Err(error) => self.reload_trouble = Some(format!("{error:#}")),
            }
        }
        trim();
    }

    /// Says which packs are wrong, each error once.
    fn say_errors(&mut self) {
        let errors: Vec<String> = self
            .packs
            .iter()
            .filter_map(|(name, entry)| {
                let error = entry.error.as_ref()?;
                let goes_on = match entry.good {
                    Some(_) => "its last good version stays in force",
                    None => "nothing of it is in force",
                };
                Some(format!("pack {name}: {goes_on}:\n{}", error.trim_end()))
            })
            .chain(self.packs.troubles())
            .collect();
        for error in errors {
            self.log.trouble(error);
        }
    }

    /// Lets what the packs want come into force. What breaks all is found and left out.
    fn put_in_force(&mut self, kernel: &Kernel, begun: Instant) {
        if self.off.is_some() || !self.open_pins() {
            return;
        }
        if let Err(error) = self.guard.loading(boot_clock_s()) {
            tracing::warn!(%error, "a crash after this load would not be counted");
        }
        self.reload_trouble = None;
        let mut loaded = self.try_wanted(kernel, begun);
        if let Err(error) = &loaded {
            let new: Vec<String> = self
                .packs
                .wanted()
                .into_iter()
                .filter_map(|(name, is_new, _)| is_new.then_some(name))
                .collect();
            match (error, new.as_slice()) {
                (_, []) => self.reload_trouble = Some(format!("the rules could not be changed: {error}")),
                (error, [one]) => {
                    let text = self.worded(error, one);
                    self.packs.reject(one, text);
                    loaded = self.try_wanted(kernel, begun);
                }
                (_, _) => loaded = self.in_parts(kernel, begun),
            }
        }
        if let Err(error) = loaded
            && self.reload_trouble.is_none()
        {
            self.reload_trouble = Some(format!("the rules could not be changed: {error}"));
        }
        if let Some(trouble) = self.reload_trouble.clone() {
            self.log.trouble(trouble);
        }
        self.say_errors();
        self.after_saving();
    }

    /// Lets what is new come into force in parts, so that the fault of one pack keeps no other out.
    fn in_parts(&mut self, kernel: &Kernel, begun: Instant) -> Result<(), LoadError> {
        let new = self.packs.take_new();
        // What is gone goes first.
        self.try_wanted(kernel, begun)?;
        self.part(new, kernel, begun);
        Ok(())
    }

    /// Halves what cannot be in force together until what is to blame is alone.
    fn part(&mut self, new: Vec<(String, Version)>, kernel: &Kernel, begun: Instant) {
        for (name, version) in &new {
            self.packs.want(name, version.clone());
        }
        let Err(error) = self.try_wanted(kernel, begun) else {
            return;
        };
        match new.as_slice() {
            [] => {}
            [(name, _)] => {
                let text = self.worded(&error, name);
                self.packs.reject(name, text);
            }
            _ => {
                let mut first = self.packs.take_new();
                let second = first.split_off(first.len() / 2);
                self.part(first, kernel, begun);
                self.part(second, kernel, begun);
            }
        }
    }

    /// An error, at its place in the pack where it has one.
    fn worded(&self, error: &LoadError, pack: &str) -> String {
        let LoadError::Build(build) = error else {
            return error.to_string();
        };
        let wanted = self.packs.wanted();
        let is_its = wanted.get(build.pack).is_some_and(|(name, ..)| name == pack);
        let Some(diagnostic) = build_diagnostic(&build.error).filter(|_| is_its) else {
            return build.error.to_string();
        };
        let mut diagnostics = Diagnostics::default();
        diagnostics.push(diagnostic);
        let texts = self.packs.texts(0);
        let sources = texts.iter().find(|text| text.name == pack).map(VersionText::pack);
        render(
            &diagnostics,
            &sources.map(|pack| pack.sources).unwrap_or_default(),
            false,
        )
    }

    fn try_wanted(&mut self, kernel: &Kernel, begun: Instant) -> Result<(), LoadError> {
        let plans: Vec<Arc<Plan>> = self.packs.wanted().into_iter().map(|(_, _, plan)| plan).collect();
        let now = unix_now_ns();
        let memo = serde_json::to_string(&self.packs.texts(now)).unwrap_or_default();
        let mut env = environment(&self.options.config, &self.host, kernel, self.pins.clone(), &memo)
            .map_err(|error| LoadError::Grace(std::io::Error::other(format!("{error:#}"))))?;
        env.features.costs = self.costs(kernel, &env);
        let log = &mut self.log;
        let programs_loaded = match &mut self.session {
            Some(session) => session.reload(&plans, &env, &mut |firing| log.firing(firing))?,
            None => {
                let mut loaded = load(&plans, &env)?;
                loaded.keep_names(&env, !plans.is_empty());
                let programs = loaded.image.programs.len();
                let mut session = Session::new(loaded, self.host.clone(), self.incidents());
                session.rotate_streams(self.options.config.rotation());
                session.start();
                self.session = Some(session);
                if let Err(error) = self.listen() {
                    tracing::error!("{error:#}: firings are told once a second");
                }
                programs
            }
        };
        self.packs.accept(now);
        let took = begun.elapsed();
        self.last_reload = Some(Reload {
            at_unix_ns: now,
            took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
            programs_loaded,
        });
        tracing::info!(
            packs = plans.len(),
            programs_loaded,
            took_ms = took.as_millis() as u64,
            "rules in force"
        );
        Ok(())
    }

    /// What things cost on this host: measured once, before anything is loaded, since every program depends on it.
    fn costs(&mut self, kernel: &Kernel, env: &Environment<'_>) -> Costs {
        let alone = || Environment {
            features: env.features.clone(),
            pins: None,
            max_bytes: u64::MAX,
            memo: "",
            ..*env
        };
        *self.costs.get_or_insert_with(|| {
            measure(&kernel.schema, &alone()).unwrap_or_else(|error| {
                tracing::warn!(
                    "what a hit costs could not be measured, so budgets are only roughly right: {error:#}"
                );
                Costs::default()
            })
        })
    }

    /// Lets what the packs want come into force, also where no text has changed.
    pub(super) fn change_rules(&mut self) {
        let begun = Instant::now();
        match Kernel::read(&self.tracefs, self.features.btf) {
            Ok(kernel) => self.put_in_force(&kernel, begun),
            Err(error) => self.reload_trouble = Some(format!("{error:#}")),
        }
        trim();
    }

    /// Takes packs out of the kernel whose mere hits cost more than their budgets.
    pub(super) fn take_down_costly(&mut self, costly: Vec<TooCostly>) {
        for TooCostly {
            pack,
            percent,
            budget_percent,
        } in &costly
        {
            let why = format!(
                "taken down: the hits of its events alone cost {percent:.1}% of a CPU for ten seconds, and its budget is \
                 {budget_percent}%; name fewer or rarer events or give it a larger `budget`, or `lkst reset {pack}`"
            );
            self.log.trouble(format!("pack {pack}: {why}"));
            self.packs.take_down(pack, why);
        }
        if !costly.is_empty() {
            self.change_rules();
        }
    }

    /// Takes over what another agent has left in the kernel, where there is something.
    pub(super) fn adopt(&mut self) -> anyhow::Result<()> {
        let Some(pins) = self.pins.clone() else {
            return Ok(());
        };
        if pins.names()?.is_empty() {
            return Ok(());
        }
        let kernel = Kernel::read(&self.tracefs, false)?;
        let features = generator_features(&kernel.schema)?;
        let config = &self.options.config;
        let shared = &mut self.columns;
        // Each memo once: what is in force and what the packs keep are then the same plans.
        let mut compiled: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        let plans = |memo: &str| -> Result<Vec<Arc<Plan>>, String> {
            let versions = versions(memo, config, &kernel, shared)?;
            let in_force = versions.iter().filter(|version| version.text.down.is_none());
            let plans = in_force.map(|version| Arc::clone(&version.plan)).collect();
            compiled.insert(memo.to_owned(), versions);
            Ok(plans)
        };
        let Some(adopted) = adopt(&pins, &features, plans)? else {
            clear(&pins);
            self.pins = None;
            self.open_pins();
            return Ok(());
        };
        let versions = compiled
            .remove(&adopted.memo)
            .context("the rules in force were not asked for")?;
        tracing::info!(
            packs = versions.len(),
            generation = adopted.loaded.generation(),
            "took over what is in the kernel"
        );
        self.packs = Packs::adopt(versions);
        self.host.uuid = adopted.uuid;
        self.costs = Some(adopted.costs);
        let saved = saved_rings(&self.incidents());
        let incidents = self.incidents();
        let mut session = Session::adopt(
            adopted.loaded,
            adopted.former,
            saved,
            self.host.clone(),
            incidents,
        );
        session.rotate_streams(self.options.config.rotation());
        self.session = Some(session);
        if let Err(error) = self.listen() {
            tracing::error!("{error:#}: firings are told once a second");
        }
        self.fired();
        Ok(())
    }
}

/// Removes what was never in force.
fn clear(pins: &Pins) {
    if let Err(error) = pins.clear() {
        tracing::warn!(%error, folder = ?pins.folder(), "what was never in force could not be removed");
    }
}

fn environment<'e>(
    config: &Config,
    host: &crate::session::Host,
    kernel: &'e Kernel,
    pins: Option<Arc<Pins>>,
    memo: &'e str,
) -> anyhow::Result<Environment<'e>> {
    Ok(Environment {
        features: generator_features(&kernel.schema)?,
        btf: kernel.schema.btf().filter(|_| kernel.typed),
        tracefs: kernel.schema.tracefs(),
        uuid: host.uuid,
        pins,
        max_bytes: config.max_memory.0,
        memo,
    })
}

/// The versions that a memo names, compiled as they were.
fn versions(
    memo: &str,
    config: &Config,
    kernel: &Kernel,
    shared: &mut SharedColumns,
) -> Result<Vec<Version>, String> {
    let texts: Vec<VersionText> = serde_json::from_str(memo).map_err(|error| error.to_string())?;
    let version = |text: VersionText| {
        let pack = text.pack();
        let options: Options = config.options(&text.name);
        let (plan, diagnostics) = compile(&pack, &options, &kernel.allowed(config));
        let said = render(&diagnostics, &pack.sources, false);
        match plan {
            Some(mut plan) => {
                plan.share(shared);
                Ok(Version {
                    plan: as_set(config, Arc::new(plan)),
                    text,
                    warnings: Some(said).filter(|said| !said.is_empty()),
                })
            }
            None => Err(said),
        }
    };
    texts.into_iter().map(version).collect()
}
