//! What is traced: processes of our own that do one thing over and over, pinned to a CPU, and time themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use lkst_tests::shared::{WORDS, words};
use lkst_tests::worker::{Worker, cpus, rename};

use crate::rounds::{Sample, median};

/// A run of hits that is timed as one.
const CHUNKS: usize = 40;
const RENAMES_A_CHUNK: u32 = 5_000;
const TRIPS_A_CHUNK: u32 = 500;

/// The last CPU: interrupts like the first.
fn cpu() -> Result<usize> {
    cpus().last().copied().context("there is a CPU")
}

fn shared() -> Result<&'static [AtomicU64; WORDS]> {
    static WORDS_OF_US: std::sync::OnceLock<&'static [AtomicU64; WORDS]> = std::sync::OnceLock::new();
    if let Some(known) = WORDS_OF_US.get() {
        return Ok(known);
    }
    let made = words()?;
    Ok(WORDS_OF_US.get_or_init(|| made))
}

/// Times chunks of `hits` calls each; the first is not counted, for caches.
fn chunks(words: &[AtomicU64], hits: u32, mut hit: impl FnMut(u32)) {
    for word in &words[..=CHUNKS] {
        let start = Instant::now();
        (0..hits).for_each(&mut hit);
        word.store(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

fn sample(words: &[AtomicU64], hits: u32, hits_a_call: u64) -> Sample {
    let ns = |word: &AtomicU64| word.load(Ordering::Relaxed) as f64 / f64::from(hits);
    let ns: Vec<f64> = words[1..=CHUNKS].iter().map(ns).collect();
    Sample {
        ns: median(&ns),
        hits: u64::from(hits) * (CHUNKS as u64 + 1) * hits_a_call,
    }
}

/// A process that renames itself: a `task:task_rename` each.
///
/// # Errors
/// No process can be made.
pub(crate) fn renames() -> Result<Sample> {
    let words = shared()?;
    let worker = Worker::new(cpu()?, || {
        chunks(words, RENAMES_A_CHUNK, |serial| rename(b'B', serial))
    })?;
    worker.join()?;
    Ok(sample(words, RENAMES_A_CHUNK, 1))
}

/// Two processes on one CPU that wait for each other by turns, through two pipes: two `sched:sched_switch` each.
///
/// # Errors
/// No pipe or process can be made.
pub(crate) fn ping_pong() -> Result<Sample> {
    let words = shared()?;
    let mut ends = [[0_i32; 2]; 2];
    for pipe in &mut ends {
        // SAFETY: two descriptors are written to the array.
        if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    let [[read_there, write_here], [read_here, write_there]] = ends;
    let pass = |write: i32, read: i32| {
        let mut byte = 0_u8;
        // SAFETY: a byte of our own, and descriptors that stay open until both have ended.
        unsafe {
            libc::write(write, (&raw const byte).cast(), 1);
            libc::read(read, (&raw mut byte).cast(), 1);
        }
    };
    let trips = TRIPS_A_CHUNK * (CHUNKS as u32 + 1);
    let mut other = Worker::new(cpu()?, || {
        let mut byte = 0_u8;
        // SAFETY: as above.
        unsafe { libc::read(read_there, (&raw mut byte).cast(), 1) };
        (1..trips).for_each(|_| pass(write_there, read_there));
        // SAFETY: as above.
        unsafe { libc::write(write_there, (&raw const byte).cast(), 1) };
    })?;
    other.go();
    let one = Worker::new(cpu()?, || {
        chunks(words, TRIPS_A_CHUNK, |_| pass(write_here, read_here));
    })?;
    one.join()?;
    other.join()?;
    for end in ends.iter().flatten() {
        // SAFETY: ours, and nobody uses it any more.
        unsafe { libc::close(*end) };
    }
    Ok(sample(words, TRIPS_A_CHUNK, 2))
}

/// Processes on the first `on` CPUs that rename themselves for as long as each other: renames a second, of all
/// together.
///
/// # Errors
/// No process can be made.
pub(crate) fn renames_a_second(on: usize) -> Result<f64> {
    const MILLISECONDS: u64 = 150;
    let words = shared()?;
    let cpus = cpus();
    anyhow::ensure!(cpus.len() >= on, "{on} CPUs are needed");
    let mut workers = Vec::new();
    for (place, cpu) in cpus.iter().take(on).enumerate() {
        workers.push(Worker::new(*cpu, move || {
            let start = Instant::now();
            let mut made = 0;
            loop {
                (0..500).for_each(|serial| rename(b'B', serial));
                made += 500;
                let ns = start.elapsed().as_nanos() as u64;
                if ns >= MILLISECONDS * 1_000_000 {
                    words[2 * place].store(made, Ordering::Relaxed);
                    words[2 * place + 1].store(ns, Ordering::Relaxed);
                    return;
                }
            }
        })?);
    }
    workers.iter_mut().for_each(Worker::go);
    for worker in workers {
        worker.join()?;
    }
    let word = |place: usize| words[place].load(Ordering::Relaxed) as f64;
    Ok((0..on)
        .map(|place| word(2 * place) / word(2 * place + 1) * 1e9)
        .sum())
}

/// Renames on every CPU, so many on each, as fast as they go.
///
/// # Errors
/// No process can be made.
pub(crate) fn storm(renames_each: u32) -> Result<u64> {
    let mut workers = Vec::new();
    for cpu in cpus() {
        workers.push(Worker::new(cpu, move || {
            (0..renames_each).for_each(|serial| rename(b'S', serial));
        })?);
    }
    workers.iter_mut().for_each(Worker::go);
    let made = u64::from(renames_each) * workers.len() as u64;
    for worker in workers {
        worker.join()?;
    }
    Ok(made)
}
