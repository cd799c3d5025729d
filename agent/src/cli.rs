//! The command line: what may be written, and what each word leads to.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};
use lkst_rules::Options;
use lkst_rules::ast::ExprKind;
use lkst_rules::diagnostic::Diagnostics;
use lkst_rules::parse::parse_expression;

use crate::command::explain::{ExplainOptions, Stage};
use crate::command::{Failed, agent, check, event, events, explain, orders, run, schema, show};
use crate::config::{CONFIG_FILE, FolderFlags};
use crate::control::Request;

/// A rule-driven tracer for the Linux kernel.
///
/// Rule files say which events to record, and when to record more, elsewhere, or to keep what was recorded. The kernel
/// decides at the event.
#[derive(Debug, Parser)]
#[command(name = "lkst", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trace now, in the foreground: firings as they come, the trace at the end
    #[command(after_help = "Examples:
  lkst run examples/rules/processes.lkst              until Ctrl-C
  lkst run --for 10s -o /tmp/t examples/rules/failing_syscalls.lkst
  lkst run examples/rules/command_io.lkst -- make     until the command ends")]
    Run {
        /// A rule file, the folder of a pack, or a folder of packs
        path: PathBuf,
        /// Where the traces go [default: ./lkst-TIME]
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// How long, such as 500ms, 10s, 5m
        #[arg(long = "for", value_name = "DUR", value_parser = duration)]
        duration: Option<Duration>,
        #[command(flatten)]
        params: Params,
        /// Ends when this command does; `task.traced` is true for it and for what it starts. Where the trace ends
        /// first the command gets SIGTERM, and SIGKILL two seconds later; what it started is left alone
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Compile rules and say what is wrong with them; nothing is loaded
    #[command(after_help = "Exit code 1 where something is wrong.")]
    Check {
        /// Rule files, folders of packs
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// A JSON array of diagnostics on standard output
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        params: Params,
    },
    /// List the kernel's events
    #[command(after_help = "Examples:
  lkst events 'sched:*'
  lkst events --long '*:*exec*'")]
    Events {
        /// Which, as SYSTEM:EVENT with `*`
        glob: Option<String>,
        /// With each event's kind
        #[arg(long)]
        long: bool,
        /// A JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show an event: its fields, types, symbols, arguments and kind
    Event {
        /// SYSTEM:EVENT
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show traces, one line a record
    #[command(after_help = "Examples:
  lkst show lkst-20261122T120000
  lkst show --where 'prev_comm == \"bash\" and cpu == 0' lkst-20261122T120000
  lkst show --json TRACE | jq .fields")]
    Show {
        /// Traces, or folders of traces
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// A JSON object a line
        #[arg(long)]
        json: bool,
        /// Only records for which this expression of the rule language is true
        #[arg(long = "where", value_name = "EXPR")]
        condition: Option<String>,
    },
    /// Trace as the rules folder says, for months: the daemon
    ///
    /// Rules are read from RULES_DIR and take effect when files there change. What is in the kernel goes on when the agent ends;
    /// the next agent takes it over.
    #[command(after_help = "Examples:
  lkst agent                                     as /etc/lkst/lkst.toml says
  lkst agent --rules-dir ./rules --state-dir /tmp/s --run-dir /tmp/r --pin-dir /sys/fs/bpf/mine
  lkst agent --stop-tracing                      end what an agent that has ended left in the kernel")]
    Agent {
        /// The file with the host's settings
        #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
        config: PathBuf,
        /// Where rules are read [default: /etc/lkst/rules.d]
        #[arg(long, value_name = "DIR")]
        rules_dir: Option<PathBuf>,
        /// Where incidents are kept [default: /var/lib/lkst]
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Where the control socket is [default: /run/lkst]
        #[arg(long, value_name = "DIR")]
        run_dir: Option<PathBuf>,
        /// Where on a bpffs maps and links are pinned [default: /sys/fs/bpf/lkst]
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<PathBuf>,
        /// Save what is recorded, take everything out of the kernel, and end
        #[arg(long)]
        stop_tracing: bool,
    },
    /// Show what a running agent does: packs, sets, buffers, firings, losses, cost
    Status {
        #[command(flatten)]
        at: RunDir,
        /// As JSON
        #[arg(long, conflicts_with = "watch")]
        json: bool,
        /// Again every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Let a running agent look at its rules folder now, and compile all of it
    ///
    /// Needed only where the kernel's events have changed, such as by a module, or where tracing was ended by hand: a
    /// change of the folder is seen by itself.
    Reload {
        #[command(flatten)]
        at: RunDir,
    },
    /// Save what is in the current buffer of a pack, or of all packs, while recording goes on
    Save {
        #[command(flatten)]
        at: RunDir,
        /// Which [default: all]
        pack: Option<String>,
    },
    /// Switch a pack to another of its buffers; the one that it leaves is saved
    #[command(after_help = "Examples:
  lkst switch io_stall incident --for 10s
  lkst switch io_stall main")]
    Switch {
        #[command(flatten)]
        at: RunDir,
        /// Which pack
        pack: String,
        /// To which buffer
        buffer: String,
        /// How long, such as 10s; then recording returns to `main` [default: until the next switch]
        #[arg(long = "for", value_name = "DUR", value_parser = duration)]
        duration: Option<Duration>,
    },
    /// Enable a set of a pack
    Enable {
        #[command(flatten)]
        at: RunDir,
        /// Which pack
        pack: String,
        /// Which of its sets
        set: String,
        /// How long, such as 10s [default: without end]
        #[arg(long = "for", value_name = "DUR", value_parser = duration)]
        duration: Option<Duration>,
    },
    /// Disable a set of a pack
    Disable {
        #[command(flatten)]
        at: RunDir,
        /// Which pack
        pack: String,
        /// Which of its sets
        set: String,
    },
    /// Bring a pack back to how it starts: stopped, over its budget, `once` and `limit` used up
    Reset {
        #[command(flatten)]
        at: RunDir,
        /// Which pack
        pack: String,
    },
    /// Print a stage of what rules become
    Explain {
        /// A rule file, the folder of a pack, or a folder of packs
        path: PathBuf,
        /// Which stage
        #[arg(long, value_enum, default_value = "plan")]
        emit: Stage,
        #[command(flatten)]
        params: Params,
    },
}

#[derive(Debug, clap::Args)]
struct RunDir {
    /// Where the agent's socket is
    #[arg(long, value_name = "DIR", default_value = "/run/lkst")]
    run_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Params {
    /// Gives a param of the rules another value
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = param)]
    params: Vec<(String, String)>,
}

impl Params {
    fn options(self) -> Options {
        Options {
            params: self.params.into_iter().collect(),
            ..Options::default()
        }
    }
}

fn param(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("write NAME=VALUE, such as slow=50ms")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A duration as the rule language writes it.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = parse_expression(0, text, &mut Diagnostics::default());
    match parsed.map(|expr| expr.kind) {
        Some(ExprKind::Duration(ns)) if ns > 0 => Ok(Duration::from_nanos(ns)),
        _ => Err("write a duration such as 500ms, 10s, 5m or 1h".to_owned()),
    }
}

/// The command line as data, from which man pages and completions are made.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Does what the command line says. The exit codes: 0 done, 1 the input is wrong, 2 the usage is wrong (clap's own),
/// 3 this kernel or these privileges do not allow it.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The agent's log has times, or goes to the journal.
    if !matches!(command, Command::Agent { .. }) {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("LKST_LOG"))
            .with_writer(io::stderr)
            .without_time()
            .init();
    }
    match dispatch(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Failed>() {
            Some(Failed::Said) => ExitCode::from(1),
            Some(Failed::Input(text)) => {
                let text = text.trim_end();
                let prefix = if text.starts_with("error") { "" } else { "error: " };
                eprintln!("{prefix}{text}");
                ExitCode::from(1)
            }
            Some(Failed::Missing(missing)) => {
                for missing in missing {
                    eprintln!("error: lkst cannot trace here: {missing}");
                }
                ExitCode::from(3)
            }
            None if is_broken_pipe(&error) => ExitCode::SUCCESS,
            None => {
                eprintln!("error: {}", chain(&error));
                ExitCode::from(1)
            }
        },
    }
}

/// The error and its causes, each said once: some speak of their cause themselves.
fn chain(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |said, cause| match said.is_empty() {
            true => cause,
            false if said.contains(&cause) => said,
            false => format!("{said}: {cause}"),
        })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut out = io::stdout();
    match command {
        Command::Run {
            path,
            output,
            duration,
            params,
            command,
        } => {
            let params = params.options();
            run::run(&run::RunOptions {
                path,
                output,
                duration,
                params,
                command,
                colour,
            })
        }
        Command::Check { paths, json, params } => {
            let options = check::CheckOptions {
                paths,
                params: params.options(),
                json,
                colour,
            };
            check::run(&options, &schema()?, &mut out, &mut io::stderr())
        }
        Command::Events { glob, long, json } => {
            let detail = match (json, long) {
                (true, _) => events::Detail::Json,
                (false, true) => events::Detail::Long,
                (false, false) => events::Detail::Names,
            };
            events::run(&schema()?, glob.as_deref(), detail, &mut out)
        }
        Command::Event { name, json } => event::run(&schema()?, &name, json, &mut out),
        Command::Show {
            paths,
            json,
            condition,
        } => {
            let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let shown = show::run(
                &show::ShowOptions {
                    paths,
                    json,
                    condition,
                },
                &mut out,
                colour,
            )?;
            for problem in &shown.problems {
                eprintln!("error: {problem}");
            }
            if shown.problems.is_empty() {
                Ok(())
            } else {
                Err(Failed::Said.into())
            }
        }
        Command::Agent {
            config,
            rules_dir,
            state_dir,
            run_dir,
            pin_dir,
            stop_tracing,
        } => agent::run(agent::AgentArguments {
            config,
            folders: FolderFlags {
                rules: rules_dir,
                state: state_dir,
                run: run_dir,
                pin: pin_dir,
            },
            stop_tracing,
        }),
        Command::Status { at, json, watch } => {
            let view = match (json, watch) {
                (true, _) => orders::View::Json,
                (false, true) => orders::View::Watch,
                (false, false) => orders::View::People,
            };
            orders::status(&at.run_dir, view, &mut out)
        }
        Command::Reload { at } => orders::order(&at.run_dir, &Request::Reload, &mut out),
        Command::Save { at, pack } => orders::order(&at.run_dir, &Request::Save { pack }, &mut out),
        Command::Switch {
            at,
            pack,
            buffer,
            duration,
        } => {
            let for_ns = duration.map(nanoseconds);
            let request = Request::Switch { pack, buffer, for_ns };
            orders::order(&at.run_dir, &request, &mut out)
        }
        Command::Enable {
            at,
            pack,
            set,
            duration,
        } => {
            let for_ns = duration.map(nanoseconds);
            orders::order(&at.run_dir, &Request::Enable { pack, set, for_ns }, &mut out)
        }
        Command::Disable { at, pack, set } => {
            orders::order(&at.run_dir, &Request::Disable { pack, set }, &mut out)
        }
        Command::Reset { at, pack } => orders::order(&at.run_dir, &Request::Reset { pack }, &mut out),
        Command::Explain { path, emit, params } => {
            let options = ExplainOptions {
                path,
                stage: emit,
                params: params.options(),
                colour,
            };
            explain::run(&options, &schema()?, &mut out)
        }
    }
}
