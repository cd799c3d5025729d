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
use super::loaded::Loaded;
use super::schema::KernelSchema;

/// Calls in a batch.
const BATCH: u32 = 250;
/// Batches.
const BATCHES: usize = 16;
/// How often all is measured: a machine that was slow for a moment would make one thing dear, or another cheap.
const PASSES: usize = 3;
/// How much more things cost elsewhere than in our loop, where all that they touch is in the cache: as measured from outside
/// under loads of another kind, for a budget must rather hold too much back than too little.
const ELSEWHERE: f64 = 1.25;
/// Comparisons in the condition that prices an instruction. Of a field that is one load away: for each pointer on the way
/// to one the kernel's verifier looks through the names of all types, which takes it milliseconds.
const COMPARISONS: i32 = 100;
/// Beyond all of them: `PID_MAX_LIMIT` of include/linux/threads.h.
const NO_PID: i32 = 4 << 20;

/// Measures. It takes about a third of a second, and nothing of it stays in the kernel.
///
/// # Errors
/// Where the kernel lacks the events, or does not take the programs.
pub fn measure(schema: &KernelSchema, env: &Environment<'_>) -> anyhow::Result<Costs> {
    let plan = |rules: &str| -> anyhow::Result<Arc<Plan>> {
        let pack = Pack {
            name: "costs".to_owned(),
            sources: vec![Source {
                name: "costs.lkst".to_owned(),
                text: format!("budget 100% {rules}"),
            }],
        };
        let (plan, said) = compile(&pack, &Options::default(), schema);
        let first = said.list.first().map(|diagnostic| diagnostic.message.clone());
        plan.map(Arc::new).context(first.unwrap_or_default())
    };
    let comparisons: Vec<String> = (0..COMPARISONS)
        .map(|number| format!("pid == {}", NO_PID + number))
        .collect();
    let renames = |with: &str| plan(&format!("set s {{ task:task_rename {with} }} start with s"));
    let plans = Plans {
        unwanted: plan("set s { task:task_rename }")?,
        recorded: renames("")?,
        compared: renames(&format!("with {}", comparisons.join(" or ")))?,
        text: renames("with newcomm like \"*never a name*\"")?,
        judged: plan(
            "set s { task:task_rename } rule r { when task:task_rename then enable s for 1ns limit 1 per 1h }",
        )?,
        calls: plan("set s { syscalls:sys_enter_getppid syscalls:sys_exit_getppid }")?,
    };

    let _other = Companion::start();
    let mut times = Times::default();
    for _ in 0..PASSES {
        times.pass(&plans, env)?;
    }
    let Times {
        rename,
        call,
        unwanted,
        traced_call,
        ..
    } = times;
    let more = |ns: f64| ns - unwanted;
    let compare_ns = more(times.compared) / times.longer.max(1.0);

    let clamp = |ns: f64, least: u32, most: u32| ((ns * ELSEWHERE).round() as u32).clamp(least, most);
    let costs = Costs {
        hit_ns: clamp(unwanted - rename, 15, 1000),
        syscall_hit_ns: clamp((traced_call - call) / 2.0, 15, 1000),
        judge_ns: clamp(more(times.judged), 10, 1000),
        record_ns: clamp(more(times.recorded), 40, 5000),
        helper_ns: clamp(more(times.text), 5, 500),
        instruction_ps: clamp(compare_ns * 1000.0, 50, 5000),
    };
    tracing::debug!(?costs, ?times, "measured");
    Ok(costs)
}

/// What is priced.
struct Plans {
    unwanted: Arc<Plan>,
    recorded: Arc<Plan>,
    compared: Arc<Plan>,
    text: Arc<Plan>,
    judged: Arc<Plan>,
    calls: Arc<Plan>,
}

/// Nanoseconds of a call that hits what is priced, the fastest so far.
#[derive(Debug)]
struct Times {
    /// Of the call that is `task:task_rename`, with no program there.
    rename: f64,
    /// Of a system call, with no program there.
    call: f64,
    unwanted: f64,
    recorded: f64,
    compared: f64,
    text: f64,
    judged: f64,
    traced_call: f64,
    /// Instructions that `compared` has more than `recorded`.
    longer: f64,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            rename: f64::INFINITY,
            call: f64::INFINITY,
            unwanted: f64::INFINITY,
            recorded: f64::INFINITY,
            compared: f64::INFINITY,
            text: f64::INFINITY,
            judged: f64::INFINITY,
            traced_call: f64::INFINITY,
            longer: 0.0,
        }
    }
}

impl Times {
    fn pass(&mut self, plans: &Plans, env: &Environment<'_>) -> anyhow::Result<()> {
        fastest(rename, &mut self.rename);
        fastest(ask_for_parent, &mut self.call);
        let mut loaded = load(std::slice::from_ref(&plans.unwanted), env)?;
        // Our own hits are what is measured.
        if let Some(control) = loaded.control.first() {
            control
                .u32(control::SELF_TGID as usize)
                .store(0, Ordering::Relaxed);
        }
        loaded.start();
        fastest(rename, &mut self.unwanted);
        let mut with = |plan: &Arc<Plan>, call: fn(), best: &mut f64| -> anyhow::Result<f64> {
            loaded.reload(std::slice::from_ref(plan), env)?;
            fastest(call, best);
            Ok(instructions(&loaded))
        };
        let plain = with(&plans.recorded, rename, &mut self.recorded)?;
        self.longer = with(&plans.compared, rename, &mut self.compared)? - plain;
        with(&plans.text, rename, &mut self.text)?;
        with(&plans.judged, rename, &mut self.judged)?;
        with(&plans.calls, ask_for_parent, &mut self.traced_call)?;
        Ok(())
    }
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

/// Instructions of the only program.
fn instructions(loaded: &Loaded) -> f64 {
    let programs = loaded.image.programs.iter();
    programs.map(|program| program.instructions as f64).sum()
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

/// Calls in batches; `best` becomes the nanoseconds of one in the fastest of them, where that is less.
fn fastest(call: fn(), best: &mut f64) {
    for _ in 0..BATCHES {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| call());
        *best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
}
