//! A pack that names all of the busiest events, in an agent that stands still while every CPU is busy with what the pack
//! names: whatever holds it then is the kernel.
//!
//! The suite on budgets counts with it, the benches measure its share of the CPU.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lkst::status::PackStatus;

use crate::agents::Bed;
use crate::shared::words;
use crate::worker::{Worker, cpu_time, cpus};

/// The pack, and the one beside it, which records `task:task_rename` of the tag.
const PACKS: [&str; 2] = ["costly", "other"];
/// The tag of the names that the pack beside it records.
pub const TAG: u8 = b'B';
/// The ends of reads: none but ours is recorded, or counted as over the budget.
pub const READS: &str = "syscalls:sys_exit_pread64";
/// What each read asks for: as many bytes as nobody else does, so that its ends are known by what they return.
const BYTES: usize = 32_760;

/// An agent that has been stopped, and what it has in force.
#[derive(Debug)]
pub struct Costly {
    bed: Bed,
}

impl Costly {
    /// Starts an agent with the pack and another, and stops it by SIGSTOP. `budget` is in percent; without `enabled`
    /// the pack is at every hit, and records none.
    ///
    /// # Errors
    /// What the agent says.
    pub fn start(binary: &str, budget: f64, enabled: bool) -> anyhow::Result<Costly> {
        let start = if enabled { "start with s" } else { "" };
        let mut bed = Bed::new(binary)?;
        bed.put(
            "costly.lkst",
            &format!(
                "budget {budget:.2}%
                 set s {{
                   sched:* timer:* syscalls:*
                   syscalls:sys_enter_pread64 record fd, buf, count, pos, task.comm, task.ppid, task.uid, task.gid
                   {READS} with ret == {BYTES}
                 }}
                 {start}
                 rule each {{ when syscalls:sys_exit_prctl then notify \"renamed: {{ret}}\" }}"
            ),
        )?;
        bed.put(
            "other.lkst",
            &format!(
                "budget 100%
                 buffer main {{ size = 4MiB }}
                 set s {{ task:task_rename with newcomm like \"lkt{}-*\" }}
                 start with s",
                char::from(TAG)
            ),
        )?;
        bed.start()?;
        for pack in PACKS {
            bed.pack_until(pack, "is in force", |pack| pack.hash.is_some())?;
        }
        bed.signal(libc::SIGSTOP);
        Ok(Costly { bed })
    }

    /// Lets the agent go on, asks it for the pack and the one beside it, and takes all of it out of the kernel. With them
    /// comes what the agent has logged.
    ///
    /// # Errors
    /// What the agent says.
    pub fn end(mut self) -> anyhow::Result<([PackStatus; 2], String)> {
        self.bed.signal(libc::SIGCONT);
        let pack = |name| self.bed.pack(name)?.with_context(|| format!("no pack {name}"));
        let packs = [pack(PACKS[0])?, pack(PACKS[1])?];
        self.bed.end()?;
        self.bed.stop_tracing()?;
        Ok((packs, self.bed.log()))
    }
}

/// Reads that were made.
#[derive(Debug, Clone, Copy)]
pub struct Reads {
    /// How many, on all CPUs.
    pub made: u64,
    /// What one took of its CPU, in nanoseconds: the mean.
    pub ns: f64,
}

/// Reads of zeros on every CPU at once, for so long: each takes as long as a common system call does, and shares nothing
/// with another CPU.
///
/// # Errors
/// There is no `/dev/zero`, no process can be made, or a read went wrong.
pub fn reads(time: Duration) -> anyhow::Result<Reads> {
    let file = File::open("/dev/zero")?;
    let words = words()?;
    let cpus = cpus();
    let mut workers = Vec::new();
    for (place, cpu) in cpus.iter().enumerate() {
        let file = &file;
        workers.push(Worker::new(*cpu, move || {
            let mut bytes = [0_u8; BYTES];
            let had = || cpu_time(0).unwrap_or_default();
            let (begun, first) = (Instant::now(), had());
            let mut made = 0;
            while begun.elapsed() < time {
                for _ in 0..1000 {
                    // SAFETY: as many bytes are read as there are.
                    let read = unsafe { libc::pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), BYTES, 0) };
                    made += u64::from(read == BYTES.cast_signed());
                }
            }
            words[2 * place].store(made, Relaxed);
            words[2 * place + 1].store((had() - first).as_nanos() as u64, Relaxed);
        })?);
    }
    workers.iter_mut().for_each(Worker::go);
    for worker in workers {
        worker.join()?;
    }
    let sum = |which: usize| -> u64 {
        (0..cpus.len())
            .map(|cpu| words[2 * cpu + which].load(Relaxed))
            .sum()
    };
    let (made, ns) = (sum(0), sum(1));
    ensure!(made > 0, "no read went well");
    ensure!(ns > 0, "no processor time is known");
    Ok(Reads {
        made,
        ns: ns as f64 / made as f64,
    })
}
