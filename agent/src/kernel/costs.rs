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
const BATCH: u32 = 1000;
/// Batches.
const BATCHES: usize = 16;
/// How much more things cost elsewhere than in our loop, where all that they touch is in the cache: as measured from outside
/// under loads of another kind, for a budget must rather hold too much back than too little.
const ELSEWHERE: f64 = 1.25;
/// Comparisons in the condition that prices an instruction.
const COMPARISONS: i32 = 100;

/// Measures. It takes about a fifth of a second, and nothing of it stays in the kernel.
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
        .map(|number| format!("oom_score_adj == {}", 2000 + number))
        .collect();
    let renames = |with: &str| plan(&format!("set s {{ task:task_rename {with} }} start with s"));
    let unwanted = plan("set s { task:task_rename }")?;
    let recorded = renames("")?;
    let compared = renames(&format!("with {}", comparisons.join(" or ")))?;
    let text = renames("with newcomm like \"*never a name*\"")?;
    let judged = plan(
        "set s { task:task_rename } rule r { when task:task_rename then enable s for 1ns limit 1 per 1h }",
    )?;
    let calls = plan("set s { syscalls:sys_enter_getppid syscalls:sys_exit_getppid }")?;

    let _other = Companion::start();
    let (rename_ns, call_ns) = (fastest(rename), fastest(ask_for_parent));
    let mut loaded = load(std::slice::from_ref(&unwanted), env)?;
    // Our own hits are what is measured.
    if let Some(control) = loaded.control.first() {
        control
            .u32(control::SELF_TGID as usize)
            .store(0, Ordering::Relaxed);
    }
    loaded.start();
    let hit_ns = fastest(rename) - rename_ns;
    let mut with = |plan: &Arc<Plan>| -> anyhow::Result<(f64, f64)> {
        loaded.reload(std::slice::from_ref(plan), env)?;
        Ok((fastest(rename) - rename_ns - hit_ns, instructions(&loaded)))
    };
    let (record_ns, plain) = with(&recorded)?;
    let (compare_ns, long) = with(&compared)?;
    let (helper_ns, _) = with(&text)?;
    let (judge_ns, _) = with(&judged)?;
    loaded.reload(std::slice::from_ref(&calls), env)?;
    let syscall_hit_ns = (fastest(ask_for_parent) - call_ns) / 2.0;

    let clamp = |ns: f64, least: u32, most: u32| ((ns * ELSEWHERE).round() as u32).clamp(least, most);
    let costs = Costs {
        hit_ns: clamp(hit_ns, 15, 1000),
        syscall_hit_ns: clamp(syscall_hit_ns, 15, 1000),
        judge_ns: clamp(judge_ns, 10, 1000),
        record_ns: clamp(record_ns, 40, 5000),
        helper_ns: clamp(helper_ns, 5, 500),
        instruction_ps: clamp(compare_ns * 1000.0 / (long - plain).max(1.0), 50, 5000),
    };
    tracing::debug!(?costs, rename_ns, call_ns, "measured");
    Ok(costs)
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

/// Nanoseconds of a call, by the fastest batch.
fn fastest(call: fn()) -> f64 {
    let batch = || {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| call());
        begun.elapsed().as_nanos() as f64 / f64::from(BATCH)
    };
    (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min)
}
