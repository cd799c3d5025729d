//! The control socket: what may be asked of a running agent, and what it answers.
//!
//! ```text
//! `lkst status` … ─client.rs→ RUN_DIR/control.sock ─server.rs→ Asked ─→ the agent's loop ─→ Done or Refusal ─→ back
//! ```
//!
//! Whoever asks is somewhere else; the one loop of the agent (`daemon.rs`) answers, so an answer is always about one
//! moment. docs/control.md has the protocol.

pub mod client;
pub mod server;
pub mod socket;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::status::Status;

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What is there.
    Status,
    /// Look at the rules folder now.
    Reload,
    /// Save the current buffer of a pack, or of all packs.
    Save {
        /// Which; `None` is all.
        pack: Option<String>,
    },
    /// Switch a pack to a buffer; the one that it leaves is saved.
    Switch {
        /// Which pack.
        pack: String,
        /// To which of its buffers.
        buffer: String,
        /// How long, in nanoseconds; `None` until the next switch.
        for_ns: Option<u64>,
    },
    /// Enable a set.
    Enable {
        /// Of which pack.
        pack: String,
        /// Which set.
        set: String,
        /// How long, in nanoseconds; `None` without end.
        for_ns: Option<u64>,
    },
    /// Disable a set.
    Disable {
        /// Of which pack.
        pack: String,
        /// Which set.
        set: String,
    },
    /// Bring a pack back to how it starts: stopped or over its budget, `once` and `limit` used up.
    Reset {
        /// Which.
        pack: String,
    },
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// What was done, for people.
    Done {
        /// In a sentence.
        message: String,
        /// Traces that were written.
        traces: Vec<PathBuf>,
    },
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Of what kind.
    pub kind: RefusalKind,
    /// For people: what, and how to mend it.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// There is no such pack, set or buffer.
    NotFound,
    /// It cannot be done now.
    Conflict,
    /// It was tried and failed.
    Failed,
}

/// A request on its way to the agent's loop.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Done, Refusal>>,
}
