//! `lkst status`, `reload`, `save`, `switch`, `enable`, `disable`, `reset`: a running agent asked, its answer shown.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::time::Duration;

use super::{Failed, status_view};
use crate::control::client::ask;
use crate::control::{Done, Request};
use crate::status::Status;

/// How `lkst status` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// For people, once.
    People,
    /// For people, every second.
    Watch,
    /// For machines.
    Json,
}

/// Carries out an order and says what was done.
///
/// # Errors
/// [`Failed::Input`] with the agent's or the socket's reason.
pub fn order(run_dir: &Path, request: &Request, out: &mut dyn Write) -> anyhow::Result<()> {
    match ask(run_dir, request).map_err(Failed::input)? {
        Done::Done { message, traces } => {
            writeln!(out, "{}", crate::trace::escape::visible(&message))?;
            for trace in traces {
                writeln!(out, "{}", trace.display())?;
            }
        }
        Done::Status(status) => status_view::show(&status, false, out)?,
    }
    Ok(())
}

/// Shows what an agent says of itself.
///
/// # Errors
/// As [`order`].
pub fn status(run_dir: &Path, view: View, out: &mut dyn Write) -> anyhow::Result<()> {
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    loop {
        let status = fetch(run_dir)?;
        match view {
            View::Json => {
                serde_json::to_writer_pretty(&mut *out, &status)?;
                writeln!(out)?;
            }
            View::People => status_view::show(&status, colour, out)?,
            View::Watch => {
                let mut screen = Vec::new();
                status_view::show(&status, colour, &mut screen)?;
                if colour {
                    // Home, then each line to its end, then what is below: no flicker.
                    let text = String::from_utf8_lossy(&screen).replace('\n', "\x1b[K\n");
                    write!(out, "\x1b[H{text}\x1b[J")?;
                } else {
                    out.write_all(&screen)?;
                    writeln!(out)?;
                }
                out.flush()?;
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
        }
        return Ok(());
    }
}

fn fetch(run_dir: &Path) -> anyhow::Result<Status> {
    match ask(run_dir, &Request::Status).map_err(Failed::input)? {
        Done::Status(status) => Ok(*status),
        Done::Done { message, .. } => Err(Failed::Input(message).into()),
    }
}
