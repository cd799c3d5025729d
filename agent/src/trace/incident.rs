//! `incident.json`: why a trace was saved, from where, and what it lacks. Types only.
//!
//! The caller of [`super::seal::save`] says why and what was counted in the kernel; `save` fills in what it alone
//! knows: the host's and the pack's names, the time range, and what of each stream came through.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the file's form that this code writes.
pub const FORMAT: u32 = 1;

/// All of `incident.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// [`FORMAT`]; set by `save`.
    pub format: u32,
    /// What the folder is named for: the rule that fired, or `end`.
    pub reason: String,
    /// The rule that fired.
    pub rule: Option<String>,
    /// When it fired, in nanoseconds of the boot clock.
    pub fired_at_ns: Option<u64>,
    /// Its message.
    pub message: Option<String>,
    /// The values that its message shows.
    pub values: Vec<NamedValue>,
    /// Recording into these buffers went on while they were saved.
    pub live: bool,
    /// When this was saved, in nanoseconds since 1970.
    pub saved_at_unix_ns: u64,
    /// The generation of the rules.
    pub generation: u64,
    /// The pack; set by `save`.
    pub pack: String,
    /// The host's name; set by `save`.
    pub host: String,
    /// The kernel's release; set by `save`.
    pub kernel_release: String,
    /// The version of lkst; set by `save`.
    pub lkst_version: String,
    /// Wall clock minus boot clock, in nanoseconds; set by `save`.
    pub boot_offset_ns: i64,
    /// The time of the first record, by the boot clock; set by `save`.
    pub begin_ns: Option<u64>,
    /// The time of the last record, by the boot clock; set by `save`.
    pub end_ns: Option<u64>,
    /// Each ring that went into the trace, also those without a record; set by `save`.
    pub streams: Vec<StreamSummary>,
    /// What was counted, by event and CPU. `save` sets [`Counts::kept`] and leaves the rest to the caller.
    pub counts: BTreeMap<String, BTreeMap<u32, Counts>>,
    /// The names of the threads that have records in the trace; [`super::seal::save_named`] sets them.
    pub names: BTreeMap<u32, String>,
}

/// A value that a rule's message shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedValue {
    /// The expression, or its name.
    pub name: String,
    /// As the message shows it.
    pub value: String,
}

/// One ring of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamSummary {
    /// Its file in `ctf/`; none where it held no record.
    pub file: Option<String>,
    /// The buffer.
    pub buffer: String,
    /// The CPU.
    pub cpu: u32,
    /// Which allocation of the buffer this was.
    pub instance_id: u64,
    /// Bytes reserved in the ring since it was made: which moment of it this is.
    pub position: u64,
    /// Records in the file.
    pub records: u64,
    /// Records that were reserved and never committed, or that contradicted their layout.
    pub torn: u64,
    /// Of a stream: records whose time was moved up to that of the one before, since that was on disk already.
    pub late: u64,
    /// Records that found no room in the ring; of a stream, since the piece before.
    pub lost: u64,
    /// Pages that newer ones had overwritten since the ring was made or last saved.
    pub overwritten_pages: u64,
    /// Pages that were not in the ring though they should have been.
    pub missing_pages: u64,
}

/// What happened to the hits of one event on one CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Recorded in a buffer.
    pub recorded: u64,
    /// Of these, in this trace.
    pub kept: u64,
    /// Of these, overwritten by newer ones.
    pub overwritten: u64,
    /// Found no room in the ring.
    pub lost: u64,
    /// Over the `max` of their set.
    pub capped: u64,
    /// Over the pack's budget.
    pub over_budget: u64,
    /// Reserved and never committed.
    pub torn: u64,
    /// Recorded with a text that could not be read.
    pub unreadable: u64,
    /// Skipped by the kernel before any program ran; `None` where it does not say.
    pub skipped: Option<u64>,
}
