//! What the soak does, and what it measures.
//!
//! In: how long. Out: a [`Table`] of what is allowed and what was seen. `watched.rs` looks at the agent's process from
//! outside, `numbers.rs` at the traces that it has left; neither asks the agent.

mod numbers;
mod table;
mod watched;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::agents::Bed;
use crate::numbered::ours;
use crate::shared::{WORDS, words};
use crate::worker::{Worker, cpus, rename};

use numbers::Found;
pub use table::Table;
use watched::{Resting, Usage, Watched};

/// Of numbered names; of names that switch `count`; of names that make noise, and that fire the rules of `load`.
const TAGS: [u8; 4] = *b"KTLF";
/// The most resident memory of an agent at rest: `VmRSS`, with the pages of its program.
const REST_BYTES: u64 = 16 << 20;
/// The most memory of its own, at any time: also while rules change and traces are written.
const PEAK_BYTES: u64 = 32 << 20;
/// By how much its own memory may grow while it lives.
const GROWTH_BYTES: u64 = 1 << 20;
/// Voluntary context switches a second, where nothing fires.
const WAKES_PER_S: f64 = 2.0;
/// Percent of a CPU that shows as 0.0.
const IDLE_PERCENT: f64 = 0.05;
/// Events that are attached, at least.
const EVENTS: usize = 60;
/// Between two cycles.
const CYCLE: Duration = Duration::from_secs(300);

/// How the time is divided.
#[derive(Debug, Clone)]
pub struct Plan {
    cycles: u32,
    kills: Duration,
    lives: Duration,
    still: Duration,
    binary: String,
}

impl Plan {
    /// So long in all.
    ///
    /// # Errors
    /// Where the path of this program is not known.
    pub fn of(time: Duration) -> anyhow::Result<Plan> {
        let cycles = (time.as_secs() / CYCLE.as_secs()).max(1) as u32;
        let cycle = time / cycles;
        let still = Duration::from_secs(60).min(cycle / 2);
        let binary = std::env::current_exe().context("the path of this program is not known")?;
        Ok(Plan {
            cycles,
            kills: (cycle - still) / 2,
            lives: (cycle - still) / 2,
            still,
            binary: binary.to_string_lossy().into_owned(),
        })
    }
}

/// Rules of `load`: 60 events and more, all that happens on a busy machine, into rings that overwrite themselves.
fn load_rules(variant: usize) -> String {
    let ours = ours();
    let column = ["", " record newcomm"][variant % 2];
    let seconds = 1 + variant / 2 % 2;
    format!(
        "budget 100%
         buffer incident {{ size = 1MiB }}
         set always {{ sched:* timer:* irq:* task:task_newtask signal:* workqueue:* block:* }}
         set names {{ task:task_rename with newcomm like \"lktL-*\" and {ours}{column} }}
         start with always, names
         rule fired {{
           when task:task_rename with newcomm like \"lktF-*\" and {ours}
           then switch buffer incident for {seconds}s save after 1s notify \"{{newcomm}}\"
           limit 1 per 5s
         }}"
    )
}

/// Rules of `count`: every number is recorded, and nothing is ever overwritten.
fn count_rules(variant: usize) -> String {
    let ours = ours();
    let columns = ["newcomm, pid", "newcomm, oldcomm"][variant % 2];
    let size = ["4MiB", "6MiB"][variant / 2 % 2];
    format!(
        "budget 100%
         buffer main {{ size = 4MiB }}
         buffer away {{ size = {size} }}
         set numbered_{variant} {{ task:task_rename with newcomm like \"lktK-*\" and {ours} record {columns} }}
         start with numbered_{variant}
         rule leave {{
           when task:task_rename with newcomm == \"lktT-00000000\" and {ours} then switch buffer away notify \"left\" limit 1000 per 1s
         }}
         rule come_back {{
           when task:task_rename with newcomm == \"lktT-00000001\" and {ours} then switch buffer main notify \"back\" limit 1000 per 1s
         }}"
    )
}

/// Set by SIGINT and SIGTERM: everything is to be taken down, not left.
static ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_: libc::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

/// A small generator: the soak must differ from time to time, and be told apart by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What was done to the agent.
#[derive(Debug, Default)]
struct Done {
    kills: u64,
    triggers: u64,
    reloads: u64,
    orders: u64,
    stops: u64,
}

struct Soak<'p> {
    plan: &'p Plan,
    bed: Bed,
    random: Random,
    cpus: Vec<usize>,
    words: &'static [AtomicU64; WORDS],
    variants: [usize; 2],
    found: Found,
    done: Done,
    /// Of agents that lived: what they had at rest, first and last.
    watched: Watched,
    table: Table,
}

/// Runs it; what was measured until an error is in the table.
pub fn run(plan: &Plan) -> (Table, anyhow::Result<()>) {
    // SAFETY: the handler only stores into an atomic.
    unsafe {
        libc::signal(libc::SIGINT, end as *const () as libc::sighandler_t);
        libc::signal(libc::SIGTERM, end as *const () as libc::sighandler_t);
    }
    match Soak::new(plan) {
        Ok(mut soak) => {
            let ended = soak.run();
            if ended.is_err() {
                eprintln!("soak: the agent's log ends:\n{}", tail(&soak.bed.log(), 20));
            }
            (soak.table, ended)
        }
        Err(error) => (Table::default(), Err(error)),
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}

/// One name from a process of its own.
fn name_once(cpu: usize, tag: u8, serial: u32) -> std::io::Result<()> {
    Worker::new(cpu, move || rename(tag, serial))?.join()
}

impl Soak<'_> {
    fn new(plan: &Plan) -> anyhow::Result<Soak<'_>> {
        let seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64 | 1;
        println!("soak: seed {seed}, {plan:?}");
        let cpus = cpus();
        // Where it ends, and for each CPU the last number and whether to pause.
        if cpus.len() * 2 + 2 > WORDS {
            bail!("this machine has too many CPUs");
        }
        Ok(Soak {
            plan,
            bed: Bed::new(&plan.binary)?,
            random: Random(seed),
            words: words()?,
            found: Found::new(&cpus),
            cpus,
            variants: [0; 2],
            done: Done::default(),
            watched: Watched::default(),
            table: Table::default(),
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        std::fs::write(
            self.bed.path("lkst.toml"),
            "max_incidents_size = \"2GiB\"\nmax_incidents_size_per_pack = \"512MiB\"\n",
        )?;
        self.put(0, 0)?;
        self.put(1, 0)?;
        self.start()?;
        let mut workers = self.workers()?;
        workers.iter_mut().for_each(Worker::go);
        for cycle in 1..=self.plan.cycles {
            self.killed()?;
            self.lived()?;
            self.still(cycle)?;
            println!("soak: cycle {cycle} of {}: {:?}", self.plan.cycles, self.done);
        }
        self.words[0].store(1, Ordering::Relaxed);
        for worker in workers {
            worker.join()?;
        }
        self.finish()
    }

    /// On every CPU one that numbers and one that makes noise.
    fn workers(&self) -> anyhow::Result<Vec<Worker>> {
        let words = self.words;
        let mut workers = Vec::new();
        for (place, cpu) in self.cpus.iter().enumerate() {
            workers.push(Worker::new(*cpu, move || {
                let mut serial = 0;
                while words[0].load(Ordering::Relaxed) == 0 {
                    if words[1].load(Ordering::Relaxed) == 0 {
                        rename(TAGS[0], serial);
                        serial += 1;
                        words[2 + place].store(serial.into(), Ordering::Relaxed);
                    }
                    // SAFETY: sleeps.
                    unsafe { libc::usleep(2000) };
                }
            })?);
            workers.push(Worker::new(*cpu, move || {
                let mut serial = 0;
                while words[0].load(Ordering::Relaxed) == 0 {
                    if words[1].load(Ordering::Relaxed) != 0 {
                        // SAFETY: sleeps.
                        unsafe { libc::usleep(100_000) };
                        continue;
                    }
                    for _ in 0..500 {
                        rename(TAGS[2], serial);
                        serial = serial.wrapping_add(1);
                        // SAFETY: gives the CPU to who waits for it.
                        unsafe { libc::sched_yield() };
                    }
                    // SAFETY: sleeps.
                    unsafe { libc::usleep(50) };
                }
            })?);
        }
        Ok(workers)
    }

    fn put(&mut self, pack: usize, variant: usize) -> anyhow::Result<()> {
        self.variants[pack] = variant;
        match pack {
            0 => self.bed.put("load.lkst", &load_rules(variant))?,
            _ => self.bed.put("count.lkst", &count_rules(variant))?,
        }
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.bed.start()?;
        self.bed.said("rules in force", 1)
    }

    /// Something that happens to an agent.
    fn act(&mut self) -> anyhow::Result<()> {
        let cpu = self.cpus[self.random.below(self.cpus.len() as u64) as usize];
        match self.random.below(12) {
            0..=1 => {
                let pack = self.random.below(2) as usize;
                let variant = (self.variants[pack] + 1 + self.random.below(3) as usize) % 4;
                self.put(pack, variant)?;
                self.done.reloads += 1;
            }
            2..=6 => {
                name_once(cpu, TAGS[1], self.random.below(2) as u32)?;
                self.done.triggers += 1;
            }
            7..=8 => {
                name_once(cpu, TAGS[3], self.done.triggers as u32)?;
                self.done.triggers += 1;
            }
            9 => {
                let buffer = ["main", "away"][self.random.below(2) as usize];
                // Refused while the buffer waits to be saved, and by nobody while the agent is dead.
                self.bed.ask("switch", &["count", buffer])?;
                self.done.orders += 1;
            }
            10 => {
                self.bed.ask("save", &["load"])?;
                self.done.orders += 1;
            }
            _ => {
                self.bed.signal(libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(self.random.below(300)));
                self.bed.signal(libc::SIGCONT);
                self.done.stops += 1;
            }
        }
        if ENDED.load(Ordering::Relaxed) {
            bail!("ended by a signal");
        }
        Ok(())
    }

    /// Killed again and again, in the middle of things.
    fn killed(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < self.plan.kills {
            for _ in 0..=self.random.below(3) {
                self.act()?;
            }
            let pause = Duration::from_micros(self.random.below(700_000));
            self.watched.sample_for(pause, self.bed.pid());
            self.bed.kill()?;
            self.done.kills += 1;
            std::thread::sleep(Duration::from_micros(self.random.below(100_000)));
            self.start()?;
        }
        Ok(())
    }

    /// The same agent through all of it.
    fn lived(&mut self) -> anyhow::Result<()> {
        // What it takes once, and keeps, is no leak.
        self.acts_for(self.plan.lives / 3)?;
        let first = self.rest()?;
        self.acts_for(self.plan.lives * 2 / 3)?;
        let last = self.rest()?;
        self.watched.lived(&first, &last);
        Ok(())
    }

    /// Things happen to it for so long.
    fn acts_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.act()?;
            let pause = Duration::from_micros(200_000 + self.random.below(400_000));
            self.watched.sample_for(pause, self.bed.pid());
        }
        Ok(())
    }

    /// The first rules again, nothing kept, nobody away: what an agent has then must always be the same.
    fn rest(&mut self) -> anyhow::Result<Resting> {
        self.put(0, 0)?;
        self.put(1, 0)?;
        // Beyond the settling of the folder.
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        self.bed.until("an agent at rest", |bed| {
            let Ok(Some(status)) = bed.status() else {
                return false;
            };
            let at_rest = |name: &str, set: &str| {
                status.packs.iter().any(|pack| {
                    pack.name == name
                        && pack.error.is_none()
                        && pack.sets.iter().any(|found| found.name == set)
                        && pack.buffers.iter().all(|buffer| !buffer.kept)
                })
            };
            // What `load` has opened is closed within some seconds.
            at_rest("load", "always")
                && at_rest("count", "numbered_0")
                && begun.elapsed() > Duration::from_secs(4)
        })?;
        Resting::of(self.bed.pid().context("an agent runs")?, self.bed.pins())
    }

    /// Nothing fires: the agent is to sleep. Then what it has saved is looked at.
    fn still(&mut self, cycle: u32) -> anyhow::Result<()> {
        self.words[1].store(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(1));
        let before = self.rest()?;
        let pid = self.bed.pid().context("an agent runs")?;
        let usage = Usage::of(pid)?;
        let begun = Instant::now();
        while begun.elapsed() < self.plan.still {
            std::thread::sleep(Duration::from_millis(500));
            if ENDED.load(Ordering::Relaxed) {
                bail!("ended by a signal");
            }
        }
        self.watched
            .still(&usage.until(&Usage::of(pid)?, begun.elapsed()), &before);
        self.found.look(&self.bed, cycle < self.plan.cycles)?;
        self.words[1].store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Takes everything down, and fills in the table.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.bed.end()?;
        self.bed.stop_tracing()?;
        self.found.look(&self.bed, false)?;
        let made: Vec<u32> = (0..self.cpus.len())
            .map(|place| self.words[2 + place].load(Ordering::Relaxed) as u32)
            .collect();
        let watched = &self.watched;
        let table = &mut self.table;
        let done = &self.done;
        table.note("kill -9", done.kills);
        table.note("triggers", done.triggers);
        table.note("reloads", done.reloads);
        table.note("orders by the socket", done.orders);
        table.note("SIGSTOP, SIGCONT", done.stops);
        table.at_least("events attached", EVENTS as f64, watched.events as f64, "");
        table.bytes("VmRSS at rest", REST_BYTES, watched.rest.rss);
        table.bytes("RssAnon at rest", REST_BYTES, watched.rest.anon);
        table.bytes("RssAnon under load", PEAK_BYTES, watched.seen.anon);
        table.note("VmHWM with rings mapped, KiB", watched.peak >> 10);
        table.bytes("RssAnon, growth in a life", GROWTH_BYTES, watched.growth);
        table.at_most("descriptors leaked", 0.0, watched.descriptors_leaked(), "");
        table.at_most("names in the bpffs leaked", 0.0, watched.pins_leaked(), "");
        table.at_most("threads leaked", 0.0, watched.threads_leaked(), "");
        table.at_most("wake-ups a second, still", WAKES_PER_S, watched.wakes_per_s, "");
        table.at_most("CPU, still", IDLE_PERCENT, watched.cpu_percent, "%");
        let left = self.bed.pins().len();
        table.at_most("names left at the end", 0.0, left as f64, "");
        self.found.tell(&self.cpus, &made, table);
        Ok(())
    }
}
