//! `lkst agent`: settings and flags in, a daemon that runs for months; its log and its privileges.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Failed;
use crate::accounts;
use crate::config::{Config, FolderFlags, MetricsAddress};
use crate::control::server::{Listener, Serve, serve};
use crate::control::socket::Bound;
use crate::daemon::{Agent, AgentOptions, Signals};
use crate::guard::Boot;
use crate::trust::Trust;

/// What `lkst agent` was asked for.
#[derive(Debug, Clone)]
pub struct AgentArguments {
    /// The file with the host's settings.
    pub config: PathBuf,
    /// Folders in place of those that it names.
    pub folders: FolderFlags,
    /// Only to end all tracing.
    pub stop_tracing: bool,
}

/// Requests that may wait for the loop.
const WAITING: usize = 16;

/// Runs the agent until SIGTERM, or ends all tracing.
///
/// # Errors
/// [`Failed`], worded for people.
pub fn run(arguments: AgentArguments) -> anyhow::Result<()> {
    log_for_months();
    // The settings say whose rules are believed, so they are root's, or of whoever runs this.
    let own = rustix::process::geteuid().as_raw();
    let config = Config::read(&arguments.config, Trust::Owner(own)).map_err(Failed::input)?;
    let folders = config.folders(arguments.folders);
    let owner = accounts::user(&config.owner)
        .map_err(|error| Failed::Input(format!("{}: `owner`: {error}", arguments.config.display())))?;
    let options = AgentOptions {
        config,
        folders,
        trust: Trust::Owner(owner),
        boot: Boot::read().context("cannot read which boot this is")?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _inside = runtime.enter();
    if arguments.stop_tracing {
        match Agent::stop_tracing(options)? {
            true => eprintln!("lkst: tracing has ended; nothing of lkst is left in the kernel"),
            false => eprintln!("lkst: nothing was traced"),
        }
        return Ok(());
    }
    let group = group(&options.config, &arguments.config)?;
    let socket = Bound::new(&options.folders.run, group).map_err(Failed::input)?;
    let metrics = match &options.config.metrics_address {
        Some(address) => Some(
            metrics_listener(address)
                .with_context(|| format!("cannot serve metrics at {address:?}, as `metrics_address` says"))?,
        ),
        None => None,
    };
    // Before anything is in the kernel: to be asked to end must never be to be cut off.
    let signals = Signals::new().context("cannot catch signals")?;
    let agent = Agent::start(options)?;
    drop_privileges();
    let (ask, asked) = mpsc::channel(WAITING);
    let listener = Listener::Unix(socket.listener().context("cannot wait for clients")?);
    runtime.spawn(serve(listener, Serve::Control, ask.clone()));
    if let Some(listener) = metrics {
        runtime.spawn(serve(listener, Serve::Metrics, ask));
    }
    runtime.block_on(agent.run(signals, asked))
}

/// Who may use the socket beside root.
fn group(config: &Config, file: &Path) -> anyhow::Result<Option<u32>> {
    let Some(name) = &config.socket_group else {
        return Ok(None);
    };
    let group = accounts::group(name)
        .map_err(|error| Failed::Input(format!("{}: `socket_group`: {error}", file.display())))?;
    Ok(Some(group))
}

fn metrics_listener(address: &MetricsAddress) -> anyhow::Result<Listener> {
    Ok(match address {
        MetricsAddress::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Listener::Tcp(tokio::net::TcpListener::from_std(listener)?)
        }
        MetricsAddress::Unix(path) => {
            use std::os::unix::fs::FileTypeExt as _;
            // One that an agent before us has left.
            if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                std::fs::remove_file(path)?;
            }
            Listener::Unix(tokio::net::UnixListener::bind(path)?)
        }
    })
}

/// To the journal where systemd runs us, else to standard error with the time.
fn log_for_months() {
    let filter = || {
        EnvFilter::builder()
            .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
            .with_env_var("LKST_LOG")
            .from_env_lossy()
    };
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(journal) => tracing_subscriber::registry().with(filter()).with(journal).init(),
        None => tracing_subscriber::fmt()
            .with_env_filter(filter())
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .init(),
    }
}

/// Keeps what loading programs and reading rule files needs, and nothing else.
fn drop_privileges() {
    let keep = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::DAC_READ_SEARCH;
    let kept = rustix::thread::capabilities(None).map(|have| have.permitted & keep);
    let dropped = kept.and_then(|keep| {
        set_capabilities(
            None,
            CapabilitySets {
                effective: keep,
                permitted: keep,
                inheritable: CapabilitySet::empty(),
            },
        )
    });
    if let Err(error) = dropped.and_then(|()| set_no_new_privs(true)) {
        tracing::warn!(%error, "privileges that are not needed could not be dropped");
    }
}
