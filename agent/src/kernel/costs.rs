//! What a hit, a record, a helper and an instruction cost on this host: rules in, nanoseconds out.
//!
//! It is measured with what is to be priced: small packs on `task:task_rename`, compiled and loaded as any, and this thread
//! giving itself the name `lkst`. Of several batches the fastest counts: what else the machine does meanwhile only ever adds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lkst_probes::features::Costs;
use lkst_probes::layout::control;
use lkst_rules::plan::Plan;
use lkst_rules::source::Source;
use lkst_rules::{Options, Pack, compile};

use super::generation::load;
use super::load::Environment;
use super::schema::KernelSchema;

/// Calls in a batch.
const BATCH: u32 = 250;
/// Batches.
const BATCHES: usize = 16;
/// How often all is measured at most. A machine that was slow for a moment would make one thing dear, or another cheap, so
/// that it is measured again until nothing was much faster than before; but rules wait for it, 0.1 s for each.
const PASSES_MAX: usize = 3;
/// By what part something has to be faster to be much faster.
const MUCH: f64 = 0.1;
/// How much more things cost elsewhere than in our loop, where all that they touch is in the cache: as measured from outside
/// under loads of another kind, for a budget must rather hold too much back than too little.
const ELSEWHERE: f64 = 1.25;
/// Comparisons in the condition that prices an instruction. Of a field that is one load away: for each pointer on the way
/// to one the kernel's verifier looks through the names of all types, which takes it milliseconds.
const COMPARISONS: i32 = 100;
/// Beyond all of them: `PID_MAX_LIMIT` of include/linux/threads.h.
const NO_PID: i32 = 4 << 20;

/// Measures. It takes about a quarter of a second, and nothing of it stays in the kernel.
///
/// # Errors
/// Where the kernel lacks the events, or does not take the programs.
pub fn measure(schema: &KernelSchema, env: &Environment<'_>) -> anyhow::Result<Costs> {
    let priced = |rules: &str, call: fn()| -> anyhow::Result<Priced> {
        let pack = Pack {
            name: "costs".to_owned(),
            sources: vec![Source {
                name: "costs.lkst".to_owned(),
                text: format!("budget 100% {rules}"),
            }],
        };
        let (plan, said) = compile(&pack, &Options::default(), schema);
        let first = said.list.first().map(|diagnostic| diagnostic.message.clone());
        Ok(Priced {
            plan: plan.map(Arc::new).context(first.unwrap_or_default())?,
            call,
            best: f64::INFINITY,
            instructions: 0.0,
        })
    };
    let renames = |with: &str| {
        let rules = format!("set s {{ task:task_rename {with} }} start with s");
        priced(&rules, rename)
    };
    let comparisons: Vec<String> = (0..COMPARISONS)
        .map(|number| format!("pid == {}", NO_PID + number))
        .collect();
    let firing = "rule r { when task:task_rename then enable s for 1ns limit 1 per 1h }";
    let calls = "set s { syscalls:sys_enter_getppid syscalls:sys_exit_getppid }";
    let mut all = [
        priced("set s { task:task_rename }", rename)?,
        renames("")?,
        renames(&format!("with {}", comparisons.join(" or ")))?,
        renames("with newcomm like \"*never a name*\"")?,
        priced(&format!("set s {{ task:task_rename }} {firing}"), rename)?,
        priced(calls, ask_for_parent)?,
    ];

    let _other = Companion::start();
    let mut bare = [rename, ask_for_parent].map(|call: fn()| (call, f64::INFINITY));
    for _ in 0..PASSES_MAX {
        let mut faster = false;
        for (call, best) in &mut bare {
            faster |= fastest(*call, best);
        }
        faster |= pass(&mut all, env)?;
        if !faster {
            break;
        }
    }
    let longer = all[2].instructions - all[1].instructions;
    let [unwanted, recorded, compared, text, judged, traced_call] = all.map(|priced| priced.best);
    let [rename, call] = bare.map(|(_, best)| best);
    let more = |ns: f64| ns - unwanted;
    let compare_ns = more(compared) / longer.max(1.0);

    let clamp = |ns: f64, least: u32, most: u32| ((ns * ELSEWHERE).round() as u32).clamp(least, most);
    let costs = Costs {
        hit_ns: clamp(unwanted - rename, 15, 1000),
        syscall_hit_ns: clamp((traced_call - call) / 2.0, 15, 1000),
        judge_ns: clamp(more(judged), 10, 1000),
        record_ns: clamp(more(recorded), 40, 5000),
        helper_ns: clamp(more(text), 5, 500),
        instruction_ps: clamp(compare_ns * 1000.0, 50, 5000),
    };
    tracing::debug!(
        ?costs,
        rename,
        call,
        unwanted,
        recorded,
        compared,
        text,
        judged,
        traced_call,
        "measured"
    );
    Ok(costs)
}

/// What is priced.
struct Priced {
    plan: Arc<Plan>,
    /// What hits it.
    call: fn(),
    /// Nanoseconds of such a call, the fastest so far.
    best: f64,
    /// How many its program has.
    instructions: f64,
}

/// Measures each once, one after another. Whether one was much faster than ever before.
fn pass(priced: &mut [Priced], env: &Environment<'_>) -> anyhow::Result<bool> {
    let first = priced.first().context("nothing is priced")?;
    let mut loaded = load(std::slice::from_ref(&first.plan), env)?;
    // Our own hits are what is measured.
    if let Some(control) = loaded.control.first() {
        control
            .u32(control::SELF_TGID as usize)
            .store(0, Ordering::Relaxed);
    }
    loaded.start();
    let mut faster = false;
    for (index, priced) in priced.iter_mut().enumerate() {
        // The first runs already; to put it there again would wait for a grace period.
        if index > 0 {
            loaded.reload(std::slice::from_ref(&priced.plan), env)?;
        }
        faster |= fastest(priced.call, &mut priced.best);
        let programs = loaded.image.programs.iter();
        priced.instructions = programs.map(|program| program.instructions as f64).sum();
    }
    Ok(faster)
}

/// A thread that does the same meanwhile: two that share a core are slower than one, and a budget matters where
/// everybody is busy.
struct Companion {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Companion {
    fn start() -> Companion {
        let [ends, runs] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (seen, tells) = (ends.clone(), runs.clone());
        let work = move || {
            while !seen.load(Ordering::Relaxed) {
                (0..1000).for_each(|_| rename());
                tells.store(true, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("lkst".to_owned()).spawn(work);
        // What is measured before it runs could not be compared with the rest.
        for _ in 0..100 {
            if runs.load(Ordering::Relaxed) || thread.is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Companion {
            ends,
            thread: thread.ok(),
        }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

/// Gives this thread the name that the agent's threads have.
fn rename() {
    // SAFETY: a name that ends in a NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"lkst".as_ptr()) };
}

fn ask_for_parent() {
    // SAFETY: it has no arguments.
    unsafe { libc::getppid() };
}

/// Calls in batches; `best` becomes the nanoseconds of one in the fastest of them, where that is less. Whether it is much less.
fn fastest(call: fn(), best: &mut f64) -> bool {
    let before = *best;
    for _ in 0..BATCHES {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| call());
        *best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    *best < before * (1.0 - MUCH)
}
