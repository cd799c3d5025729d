//! The agent: one loop over everything that can happen.
//!
//! ```text
//! rules folder ─watch→ ┐                 ┌─→ rules.rs    other rules in force, exactly between two hits
//! firings ──notices──→ ├─ enum Event ─→ ─┼─→ session.rs  told, kept buffers saved
//! `lkst status` … ───→ │                 ├─→ answers.rs  what is there, orders carried out
//! clock, signals ────→ ┘                 └─→ the end: what is in the kernel goes on
//! ```
//!
//! INVARIANT: the loop is woken at most [`WAKES_PER_S`] times a second by firings, once a second by the clock, and
//! by nothing else while nothing happens. Where there are stream buffers, a quarter of a ring that is full wakes it too.
//! INVARIANT: what is wrong with rules, disk or clients ends nothing: it is said in `lkst status`, in the log and in
//! the metrics, for as long as it is so.

mod answers;
mod disk;
mod firings;
mod rules;
mod tick;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lkst_probes::features::Costs;
use lkst_rules::plan::SharedColumns;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::command::{Failed, no_events};
use crate::config::{Config, Folders};
use crate::control::Asked;
use crate::guard::{Boot, Guard, Verdict, boot_clock_s};
use crate::kernel::features::{self, Features};
use crate::kernel::pins::Pins;
use crate::kernel::tracefs::Tracefs;
use crate::reload::Packs;
use crate::session::stream::finish_left;
use crate::session::{Host, Session, boot_now_ns, boot_offset_ns};
use crate::status::Reload;
use crate::trust::Trust;
use crate::watch::{SETTLE, Watch};

use disk::Disk;
use firings::Log;
use tick::Ticks;

/// How often the kernel may wake us, at most.
pub const WAKES_PER_S: u64 = 10;
/// How often to look at what no notice announces: returns to `main`, `save after`, ends of sets.
const TICK: Duration = Duration::from_secs(1);

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The host's settings.
    pub config: Config,
    /// Where it lives.
    pub folders: Folders,
    /// Whose rules are believed.
    pub trust: Trust,
    /// What this boot is.
    pub boot: Boot,
}

/// What can happen.
#[derive(Debug)]
enum Event {
    /// The rules folder has changed, or may have.
    Rules,
    /// Rules fired.
    Fired,
    /// A second has passed.
    Tick,
    /// Somebody asks.
    Asked(Asked),
    /// SIGHUP: to look at the rules again.
    Again,
    /// SIGTERM or SIGINT.
    End,
}

/// A running agent.
pub struct Agent {
    options: AgentOptions,
    features: Features,
    /// Open for as long as we run: once our privileges are dropped we could not mount it.
    tracefs: Arc<Tracefs>,
    host: Host,
    started_unix_ns: u64,
    guard: Guard,
    pins: Option<Arc<Pins>>,
    packs: Packs,
    /// What things cost on this host, once it is known.
    costs: Option<Costs>,
    /// What the plans of packs have in common.
    columns: SharedColumns,
    /// What is traced. `None`: nothing, see `off`.
    session: Option<Session>,
    /// Why nothing is loaded, for people.
    off: Option<String>,
    /// Where the kernel tells of firings.
    notices: Option<AsyncFd<OwnedFd>>,
    /// Before this, notices wait.
    quiet_until: Instant,
    last_reload: Option<Reload>,
    /// What went wrong with the last change of rules, beside what packs are to blame for.
    reload_trouble: Option<String>,
    watch_trouble: Option<String>,
    disk: Disk,
    /// Traces that the session had written when memory was last given back.
    saved_traces: u64,
    log: Log,
}

impl Agent {
    /// Begins: takes over what another agent has left in the kernel, or loads the rules anew.
    ///
    /// # Errors
    /// [`Failed::Missing`] where this kernel or these privileges do not allow it; [`Failed::Input`] where another agent
    /// uses the same folders.
    pub fn start(options: AgentOptions) -> anyhow::Result<Agent> {
        rules::one_heap();
        let features = features::probe().map_err(Failed::Missing)?;
        let tracefs = Arc::new(Tracefs::open().map_err(no_events)?);
        let pins = Pins::open(&options.folders.pin).map_err(Failed::input)?;
        let disk = Disk::open(&options.folders.state, &options.config).map_err(Failed::input)?;
        let (guard, verdict) = Guard::open(&options.folders.state, &options.boot);
        let off = match verdict {
            Verdict::Load => None,
            Verdict::WithoutRules(why) => Some(why.to_string()),
        };
        let mut agent = Agent {
            features,
            tracefs,
            host: Host::this()?,
            started_unix_ns: unix_now_ns(),
            guard,
            pins: Some(pins),
            packs: Packs::default(),
            costs: None,
            columns: SharedColumns::new(),
            session: None,
            off,
            notices: None,
            quiet_until: Instant::now(),
            last_reload: None,
            reload_trouble: None,
            watch_trouble: None,
            disk,
            saved_traces: 0,
            log: Log::default(),
            options,
        };
        if let Some(off) = &agent.off {
            tracing::warn!("{off}");
        } else if let Err(error) = agent.adopt() {
            tracing::error!("{error:#}; it is taken down, and the rules are loaded anew");
            agent.take_down();
        }
        agent.finish_left();
        agent.look_at_rules(true);
        Ok(agent)
    }

    /// Runs until SIGTERM or SIGINT. What is in the kernel stays there and goes on.
    ///
    /// # Errors
    /// Where the current folder is not known and the rules folder's path is relative to it.
    pub async fn run(mut self, mut signals: Signals, mut asked: mpsc::Receiver<Asked>) -> anyhow::Result<()> {
        let mut watch = Watch::new(&self.options.folders.rules, SETTLE)?;
        let mut ticks = Ticks::every(TICK).context("cannot make a timer")?;
        // What changed between the first look and the watch.
        self.look_at_rules(false);
        tell_manager(&[sd_notify::NotifyState::Ready]);
        loop {
            self.watch_trouble = watch.trouble().map(str::to_owned);
            match self.next(&mut watch, &mut signals, &mut ticks, &mut asked).await {
                Event::Rules => self.look_at_rules(false),
                Event::Again => {
                    tell_manager(&[
                        sd_notify::NotifyState::Reloading,
                        sd_notify::NotifyState::monotonic_usec_now()?,
                    ]);
                    self.look_at_rules(true);
                    tell_manager(&[sd_notify::NotifyState::Ready]);
                }
                Event::Fired => self.fired(),
                Event::Tick => {
                    watch.look_for_mounts();
                    self.tick();
                }
                Event::Asked(asked) => {
                    let answer = self.answer(asked.request);
                    // Whoever asked may have gone.
                    let _ = asked.answer.send(answer);
                }
                Event::End => break,
            }
        }
        tell_manager(&[sd_notify::NotifyState::Stopping]);
        self.end();
        Ok(())
    }

    async fn next(
        &self,
        watch: &mut Watch,
        signals: &mut Signals,
        ticks: &mut Ticks,
        asked: &mut mpsc::Receiver<Asked>,
    ) -> Event {
        let fired = async {
            sleep_until(self.quiet_until.into()).await;
            match &self.notices {
                Some(notices) => {
                    if let Ok(mut ready) = notices.readable().await {
                        ready.clear_ready();
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = signals.next() => event,
            _ = watch.changed() => Event::Rules,
            Some(asked) = asked.recv() => Event::Asked(asked),
            () = ticks.next() => Event::Tick,
            () = fired => Event::Fired,
        }
    }

    fn fired(&mut self) {
        let gap = self.session.as_ref().and_then(Session::wake_gap);
        self.quiet_until = Instant::now() + gap.unwrap_or(Duration::from_millis(1000 / WAKES_PER_S));
        let Some(session) = &mut self.session else { return };
        if let Err(error) = session.notices(&mut |firing| self.log.firing(firing)) {
            tracing::warn!(%error, "firings could not be told");
        }
        self.after_saving();
    }

    fn tick(&mut self) {
        let is_pinned = self.pins.as_ref().is_none_or(|pins| pins.is_there());
        if self.session.is_some() && !is_pinned {
            self.ended_by_hand();
        }
        if let Some(session) = &mut self.session {
            session.look_at_names();
            if let Err(error) = session.tick(&mut |firing| self.log.firing(firing)) {
                tracing::warn!(%error, "firings could not be told");
            }
        }
        let costly = self
            .session
            .as_mut()
            .map(|session| std::mem::take(&mut session.too_costly));
        self.take_down_costly(costly.unwrap_or_default());
        self.log.second();
        self.after_saving();
        if let Err(error) = self.guard.settle(boot_clock_s()) {
            tracing::debug!(%error, "the guard's file");
        }
        tell_manager(&[sd_notify::NotifyState::Watchdog]);
    }

    /// Says what went wrong with saving, once, and gives back the memory that it took.
    fn after_saving(&mut self) {
        if let Some(session) = &mut self.session {
            let saved = session.saved_traces();
            let is_new = saved != self.saved_traces;
            self.saved_traces = saved;
            self.disk
                .keep(&self.options.folders.state, is_new, &session.open_incidents());
            if is_new {
                rules::trim();
            }
            for trouble in std::mem::take(&mut session.troubles) {
                self.log.trouble(trouble);
            }
        }
    }

    /// The kill switch was used: somebody has removed the names of what was in the kernel, which has ended it.
    fn ended_by_hand(&mut self) {
        let folder = self.options.folders.pin.clone();
        self.save_all_and_drop();
        self.pins = None;
        let off =
            format!("tracing was ended by hand: {folder:?} was removed; `lkst reload` loads the rules again");
        tracing::warn!("{off}");
        self.off = Some(off);
    }

    /// Saves what is in all rings, and lets go of them. Nothing records into them any more.
    fn save_all_and_drop(&mut self) {
        self.notices = None;
        let Some(mut session) = self.session.take() else {
            return;
        };
        match session.finish(&mut |firing| self.log.firing(firing)) {
            Ok(traces) => tracing::info!(traces, "saved what was recorded"),
            Err(error) => tracing::warn!(%error, "firings could not be told"),
        }
        for trouble in session.troubles {
            tracing::warn!("{trouble}");
        }
    }

    /// Takes everything out of the kernel.
    fn take_down(&mut self) {
        self.save_all_and_drop();
        if let Some(pins) = self.pins.take() {
            if let Err(error) = pins.clear() {
                tracing::warn!(%error, folder = ?pins.folder(), "what is in the kernel could not all be removed");
            }
            // Its folder is gone: another one takes its place.
            drop(pins);
            self.open_pins();
        }
    }

    /// Whether there is a folder for names.
    fn open_pins(&mut self) -> bool {
        if self.pins.is_none() {
            match Pins::open(&self.options.folders.pin) {
                Ok(pins) => self.pins = Some(pins),
                Err(error) => self.reload_trouble = Some(error.to_string()),
            }
        }
        self.pins.is_some()
    }

    fn end(mut self) {
        self.fired();
        if let Some(session) = &mut self.session {
            // Nobody drains until the next agent: what is there is better on disk.
            session.end_streams();
        }
        self.after_saving();
        if let Err(error) = self.guard.clean_stop(boot_clock_s()) {
            tracing::warn!(%error, "the guard's file could not be written");
        }
        if self.session.is_some() {
            tracing::info!(
                "the agent ends; tracing goes on in the kernel until `lkst agent --stop-tracing` or the next agent"
            );
        }
    }

    /// Ends all tracing: what is in the kernel is saved and taken out of it.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn stop_tracing(options: AgentOptions) -> anyhow::Result<bool> {
        let features = features::probe().map_err(Failed::Missing)?;
        let tracefs = Arc::new(Tracefs::open().map_err(no_events)?);
        let pins = Pins::open(&options.folders.pin).map_err(Failed::input)?;
        let is_empty = pins
            .names()
            .context("cannot list what is in the kernel")?
            .is_empty();
        let disk = Disk::open(&options.folders.state, &options.config).map_err(Failed::input)?;
        let (guard, _) = Guard::open(&options.folders.state, &options.boot);
        let mut agent = Agent {
            features,
            tracefs,
            host: Host::this()?,
            started_unix_ns: unix_now_ns(),
            guard,
            pins: Some(pins),
            packs: Packs::default(),
            costs: None,
            columns: SharedColumns::new(),
            session: None,
            off: None,
            notices: None,
            quiet_until: Instant::now(),
            last_reload: None,
            reload_trouble: None,
            watch_trouble: None,
            disk,
            saved_traces: 0,
            log: Log::default(),
            options,
        };
        if !is_empty && let Err(error) = agent.adopt() {
            tracing::error!("{error:#}; what it recorded cannot be saved");
        }
        agent.finish_left();
        agent.save_all_and_drop();
        if let Some(pins) = agent.pins.take() {
            pins.clear()
                .with_context(|| format!("cannot remove {:?}", pins.folder()))?;
        }
        agent.guard.clean_stop(boot_clock_s()).ok();
        Ok(!is_empty)
    }

    /// Finishes the pieces of streams that a killed agent left, where no session has done it.
    fn finish_left(&mut self) {
        if self.session.is_none() {
            for trouble in finish_left(&self.options.folders.state, boot_offset_ns(), &mut |_| {}) {
                self.log.trouble(trouble);
            }
        }
    }

    /// Where incidents go.
    fn incidents(&self) -> PathBuf {
        self.options.folders.state.clone()
    }

    /// Listens to the notices of a session that has just begun.
    fn listen(&mut self) -> anyhow::Result<()> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let ring: OwnedFd = session.loaded().notices.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is a duplicate that only `AsyncFd` owns, so it stays open as long as it is registered.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        self.notices = Some(ring.context("cannot wait for firings")?);
        Ok(())
    }
}

/// The signals that mean something to us, caught from the moment that this is made.
#[derive(Debug)]
pub struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Catches them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.interrupt.recv() => Event::End,
            _ = self.terminate.recv() => Event::End,
            _ = self.hangup.recv() => Event::Again,
        }
    }
}

/// Tells systemd, where it is there.
fn tell_manager(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn unix_now_ns() -> u64 {
    boot_now_ns().wrapping_add_signed(boot_offset_ns())
}
