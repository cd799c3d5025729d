//! What the agent says of itself: plain data, as `lkst status --json` and the control socket give it.
//!
//! Times are nanoseconds since 1970 (`…_unix_ns`) or lengths (`…_ns`); sizes are bytes; counts are since the thing
//! that they are of came into force, over all CPUs. Keys are only ever added.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of lkst.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// When the agent started.
    pub started_unix_ns: u64,
    /// `uname -n`.
    pub host: String,
    /// `uname -r`.
    pub kernel: String,
    /// How often the rules in force have changed, since tracing began.
    pub generation: u64,
    /// Where rules are read.
    pub rules_dir: PathBuf,
    /// Where incidents are kept.
    pub state_dir: PathBuf,
    /// Where maps and links are pinned.
    pub pin_dir: PathBuf,
    /// The last change of rules.
    pub last_reload: Option<Reload>,
    /// What is wrong with the agent as a whole, each for people. Empty where all is well.
    pub troubles: Vec<String>,
    /// Memory of buffers and maps.
    pub memory: Memory,
    /// All packs that the rules folder has, or that are still in force, in name order.
    pub packs: Vec<PackStatus>,
}

/// A change of rules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// When it was in force.
    pub at_unix_ns: u64,
    /// From the moment that the folder had come to rest.
    pub took_ns: u64,
    /// Programs that were loaded for it.
    pub programs_loaded: usize,
}

/// Memory that buffers and maps have in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// In use.
    pub used_bytes: u64,
    /// `max_memory`.
    pub max_bytes: u64,
}

/// Whether a pack works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackPhase {
    /// Its rules decide and act.
    #[default]
    Active,
    /// Its rules decide and count, and act on nothing.
    Observe,
    /// A rule or a person stopped it, until `lkst reset`.
    Stopped,
    /// Its events alone cost more than its budget; it is out of the kernel until `lkst reset`.
    OverBudget,
    /// No rules of it are in force: see its error.
    Off,
}

/// A pack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PackStatus {
    /// Its name.
    pub name: String,
    /// Where it was read.
    pub path: PathBuf,
    /// Whether it works.
    pub phase: PackPhase,
    /// SHA-256 of the text in force, in hexadecimal digits. `None` where no rules of it are in force.
    pub hash: Option<String>,
    /// When that text came into force.
    pub since_unix_ns: Option<u64>,
    /// Why the text that is in the rules folder now is not in force, for people. The last good one is, if there was one.
    pub error: Option<String>,
    /// What the compiler warned of, for people.
    pub warnings: Option<String>,
    /// Its sets.
    pub sets: Vec<SetStatus>,
    /// Its buffers.
    pub buffers: Vec<BufferStatus>,
    /// Its rules.
    pub rules: Vec<RuleStatus>,
    /// Its events.
    pub events: Vec<EventStatus>,
    /// What it saved.
    pub incidents: IncidentStatus,
    /// What it costs.
    pub cost: Cost,
}

/// A set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SetStatus {
    /// Its name.
    pub name: String,
    /// Whether it is enabled now.
    pub enabled: bool,
    /// What is left of its time; `None` where it has no end.
    pub left_ns: Option<u64>,
}

/// A buffer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BufferStatus {
    /// Its name.
    pub name: String,
    /// For each CPU.
    pub size_bytes: u64,
    /// Recording goes there.
    pub current: bool,
    /// It waits to be saved; nothing writes to it.
    pub kept: bool,
    /// When recording returns from there to `main`; `None` where it does not, or is elsewhere.
    pub left_ns: Option<u64>,
    /// What newer records have overwritten, over all CPUs, since it was last saved: how a ring works. Of a stream 0.
    #[serde(default)]
    pub overwritten_bytes: u64,
    /// It is written to disk all the time.
    #[serde(default)]
    pub stream: bool,
    /// Of a stream: what it has written to disk since the agent started.
    #[serde(default)]
    pub written_bytes: u64,
    /// Of a stream: records that found no room, since the disk or the agent were too slow, since it came into force.
    #[serde(default)]
    pub lost: u64,
    /// Of a stream: why it cannot be written now, for people. What it records stays in memory while there is room.
    #[serde(default)]
    pub error: Option<String>,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its name.
    pub name: String,
    /// Firings.
    pub fired: u64,
    /// Firings that its `limit` refused.
    pub limited: u64,
    /// Switches that were refused since the buffer was kept.
    pub refused: u64,
    /// Firings that came to nothing since too many CPUs changed the state at once.
    pub given_up: u64,
    /// Its last firing that the agent was told of.
    pub last: Option<LastFiring>,
}

/// The last firing of a rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LastFiring {
    /// When.
    pub at_unix_ns: u64,
    /// What it said. Control characters are escaped.
    pub message: String,
}

/// An event of a pack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EventStatus {
    /// `system:name`.
    pub name: String,
    /// Typed programs see every hit.
    pub typed: bool,
    /// Records.
    pub recorded: u64,
    /// Records that found no room.
    pub lost: u64,
    /// Hits over a set's `max`.
    pub capped: u64,
    /// Hits that were not recorded since the pack was over its budget.
    pub over_budget: u64,
    /// Texts that could not be read.
    pub unreadable: u64,
    /// Hits that the kernel skipped; `None` where it does not say.
    pub skipped: Option<u64>,
}

/// What a pack saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IncidentStatus {
    /// Traces written since the agent started.
    pub saved: u64,
    /// Where the last one is.
    pub last: Option<PathBuf>,
    /// Why the last try to save failed, for people. What could not be saved stays in memory and is tried again.
    pub error: Option<String>,
}

/// What a pack costs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Its budget, in percent of each CPU. `None`: none.
    pub budget_percent: Option<f64>,
    /// Hits of its events, a second, over all CPUs, lately.
    pub hits_per_s: f64,
    /// Records a second, over all CPUs, lately.
    pub records_per_s: f64,
    /// An estimate, in percent of the CPU on which it costs most, lately.
    pub cpu_percent: f64,
}
