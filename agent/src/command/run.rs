//! `lkst run`: rules in, firings on the screen as they come, traces at the end.
//!
//! One loop over what can happen: a firing, the clock, a signal, the end of COMMAND. Whatever ends it, the kernel is
//! stopped first, then what is left in the rings is saved, then everything is taken out of the kernel.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lkst_probes::lower::{TrackerPaths, tracker};
use lkst_rules::Options;
use lkst_rules::plan::Plan;
use lkst_rules::schema::{Path as FieldPath, PathStep, Recipe, Schema};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Failed, load_failed};
use crate::compile::{Compiled, compile_path};
use crate::kernel::generation::load;
use crate::kernel::load::Environment;
use crate::kernel::loaded::Loaded;
use crate::kernel::names::names_paths;
use crate::kernel::{cpus, features};
use crate::session::Firing;
use crate::session::{Host, Session, counted};

/// What `lkst run` was asked for.
#[derive(Debug)]
pub struct RunOptions {
    /// A rule file, a pack's folder or a folder of packs.
    pub path: PathBuf,
    /// Where the traces go.
    pub output: Option<PathBuf>,
    /// How long.
    pub duration: Option<Duration>,
    /// Values for the packs' params.
    pub params: Options,
    /// COMMAND and its arguments; empty where there is none.
    pub command: Vec<OsString>,
    /// Colours in diagnostics.
    pub colour: bool,
}

/// How often we look at what no notice announces.
const TICK: Duration = Duration::from_millis(100);

/// How long COMMAND has to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);

/// Traces as the options say.
///
/// # Errors
/// [`Failed`] where the input is wrong or the kernel does not allow it, each already worded for people; anything else
/// is unexpected.
pub fn run(options: &RunOptions) -> anyhow::Result<()> {
    let kernel = features::probe().map_err(Failed::Missing)?;
    let schema = super::schema()?;
    let compiled = compile_path(&options.path, &options.params, &schema).map_err(Failed::input)?;
    let plans = accept(&compiled, options.colour)?;
    let output = make_output(options.output.as_deref())?;
    let host = Host::this()?;
    let btf = schema.btf().filter(|_| kernel.btf);
    let env = Environment {
        features: generator_features(&schema)?,
        btf,
        tracefs: schema.tracefs(),
        uuid: host.uuid,
        pins: None,
        memo: "",
        max_bytes: u64::MAX,
    };
    let mut loaded = load(&plans, &env).map_err(|error| load_failed(error, &compiled))?;
    loaded.keep_names(&env, !plans.is_empty());
    if loaded.image.follows_command {
        if options.command.is_empty() {
            eprintln!("lkst: note: `task.traced` is never true, since no COMMAND was given after `--`");
        } else if let Some(btf) = btf {
            let codes = tracker(&env.features, &tracker_paths(&schema)?)?;
            loaded.follow(&codes, btf)?;
        }
    }
    drop(schema);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut session = Session::new(loaded, host, output.clone());
    let mut out = io::stdout();
    let ended = runtime.block_on(trace(&mut session, options, &mut out));
    if let Err(error) = &ended
        && error.is::<Failed>()
    {
        // COMMAND could not be started: there is nothing to save. The folder goes too, unless it held something.
        let _ = std::fs::remove_dir(&output);
        return ended.map(drop);
    }
    // Also where something went wrong meanwhile: what was recorded is saved.
    let traces = session.finish(&mut |firing| show(firing, &mut io::stdout()))?;
    session.summary(&mut out)?;
    for trouble in &session.troubles {
        eprintln!("lkst: {trouble}");
    }
    match traces {
        0 => writeln!(out, "\nno trace was written")?,
        1 => writeln!(out, "\ntrace: {}", output.display())?,
        many => writeln!(out, "\n{many} traces: {}", output.display())?,
    }
    if let Some(status) = ended?
        && !status.success()
    {
        eprintln!("lkst: COMMAND ended with {status}");
    }
    if session.troubles.is_empty() {
        Ok(())
    } else {
        bail!("not everything could be saved")
    }
}

/// The plans, if all packs compiled; their diagnostics are printed in any case.
fn accept(compiled: &[Compiled], colour: bool) -> anyhow::Result<Vec<Arc<Plan>>> {
    for pack in compiled {
        eprint!("{}", pack.rendered(colour));
    }
    let plans: Vec<Arc<Plan>> = compiled.iter().filter_map(|pack| pack.plan.clone()).collect();
    if plans.len() < compiled.len() {
        return Err(Failed::Said.into());
    }
    Ok(plans)
}

fn make_output(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    let output = match wanted {
        Some(path) => path.to_owned(),
        None => PathBuf::from(format!("lkst-{}", jiff::Zoned::now().strftime("%Y%m%dT%H%M%S"))),
    };
    std::fs::create_dir_all(&output).map_err(|error| {
        Failed::Input(format!(
            "cannot make the folder {output:?} for the traces: {error}"
        ))
    })?;
    Ok(output)
}

fn tracker_paths(schema: &dyn Schema) -> anyhow::Result<TrackerPaths> {
    let path = |event: &str, steps: &[&str]| -> anyhow::Result<FieldPath> {
        let event = schema
            .event("sched", event)
            .with_context(|| format!("no event `sched:{event}`"))?;
        let steps: Vec<PathStep> = steps
            .iter()
            .map(|step| PathStep::Name((*step).to_owned()))
            .collect();
        match schema.argument(&event, &steps).map(|resolved| resolved.recipe) {
            Ok(Recipe::Path(path)) => Ok(path),
            other => bail!("cannot follow COMMAND: {other:?}"),
        }
    };
    Ok(TrackerPaths {
        parent_tgid: path("sched_process_fork", &["parent", "tgid"])?,
        child_tgid: path("sched_process_fork", &["child", "tgid"])?,
        exit_tgid: path("sched_process_exit", &["p", "tgid"])?,
        exit_live: path("sched_process_exit", &["p", "signal", "live", "counter"])?,
    })
}

fn say_what_is_traced(loaded: &Loaded) {
    let events: usize = loaded.image.packs.iter().map(|pack| pack.plan.events.len()).sum();
    let rules: usize = loaded.image.packs.iter().map(|pack| pack.plan.rules.len()).sum();
    let names: Vec<&str> = loaded
        .image
        .packs
        .iter()
        .map(|pack| pack.plan.pack.as_str())
        .collect();
    eprintln!(
        "lkst: tracing {} ({}, {}); Ctrl-C ends",
        names.join(", "),
        counted(events as u64, "event"),
        counted(rules as u64, "rule"),
    );
}

/// A firing, on a line.
fn show(firing: &Firing<'_>, out: &mut dyn Write) -> io::Result<()> {
    let time = firing.when.strftime("%H:%M:%S%.6f");
    writeln!(out, "{time}  {}/{}  {}", firing.pack, firing.rule, firing.text)?;
    out.flush()
}

/// Until something ends it. Returns how COMMAND ended, where it did.
async fn trace(
    session: &mut Session,
    options: &RunOptions,
    out: &mut dyn Write,
) -> anyhow::Result<Option<ExitStatus>> {
    let ring: OwnedFd = session.loaded().notices.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is a duplicate that only `AsyncFd` owns, so it stays open as long as it is registered.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    session.start();
    // Said now that it is true: signals are caught, and events recorded.
    say_what_is_traced(session.loaded());
    let mut child = spawn(session, &options.command)?;
    // A day that never comes, where there is no end.
    let far = Duration::from_secs(86_400 * 365 * 30);
    let end = Instant::now() + options.duration.unwrap_or(far);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            ready = ring.readable() => {
                ready?.clear_ready();
                session.notices(&mut |firing| show(firing, out))?;
            }
            _ = tick.tick() => {
                session.look_at_names();
                session.tick(&mut |firing| show(firing, out))?;
                if session.all_stopped() {
                    break None;
                }
            }
            () = sleep_until(end) => break None,
            _ = interrupt.recv() => break None,
            _ = terminate.recv() => break None,
            _ = hangup.recv() => break None,
            status = wait(&mut child) => break Some(status?),
        }
    };
    if ended.is_none()
        && let Some(child) = &mut child
    {
        return Ok(Some(end_command(child).await?));
    }
    Ok(ended)
}

/// Starts COMMAND, followed from its first instruction on: the programs follow what a followed process forks, so this
/// process is followed for as long as it takes to fork.
fn spawn(session: &mut Session, command: &[OsString]) -> anyhow::Result<Option<Child>> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(None);
    };
    let own = std::process::id();
    session.loaded().follow_process(own, true)?;
    let child = Command::new(program).args(arguments).spawn();
    session.loaded().follow_process(own, false)?;
    let child =
        child.map_err(|error| Failed::Input(format!("cannot start {}: {error}", program.display())))?;
    Ok(Some(child))
}

/// COMMAND does not outlive the trace that was made of it: it is asked to end, as perf asks, then made to.
async fn end_command(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = child
        .id()
        .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended by itself just now; then there is nobody to ask.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

async fn wait(child: &mut Option<Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

/// What the code generator has to know of this machine.
///
/// # Errors
/// Where the number of CPUs cannot be read.
pub fn generator_features(schema: &dyn Schema) -> anyhow::Result<lkst_probes::features::Features> {
    let status = schema.task_member(&["thread_info", "status"]);
    let compat_status = match status.map(|found| found.recipe) {
        Some(Recipe::Path(path)) if cfg!(target_arch = "x86_64") => Some(path),
        _ => None,
    };
    Ok(lkst_probes::features::Features {
        cpus: cpus().context("cannot read how many CPUs there can be")?,
        long_jumps: crate::kernel::features::long_jumps(),
        compat_status,
        costs: lkst_probes::features::Costs::default(),
        names: names_paths(schema),
    })
}
