//! Interleaved rounds: every contestant once a round, each round beginning with another one, so that whatever else the
//! machine does meets all of them alike.
//!
//! In: contestants that attach themselves, a load that says how long one of its hits took. Out: for each contestant one
//! sample a round; what is made of them are medians, and ratios of samples of one round.

use anyhow::{Context as _, Result};

/// A tracer at work. It stops when it is dropped.
pub(crate) trait Attached {
    /// Stops, and fails unless the tracer has seen these hits: a tracer that missed them was not measured.
    ///
    /// # Errors
    /// What was seen instead.
    fn finish(self: Box<Self>, hits: u64) -> Result<()>;
}

/// Nothing attached.
pub(crate) struct Nothing;

impl Attached for Nothing {
    fn finish(self: Box<Self>, _hits: u64) -> Result<()> {
        Ok(())
    }
}

/// What is attached in its turn.
pub(crate) struct Contestant<'c> {
    /// As it stands in the table.
    pub(crate) name: &'static str,
    /// Attaches it.
    pub(crate) attach: Box<dyn FnMut() -> Result<Box<dyn Attached + 'c>> + 'c>,
}

impl<'c> Contestant<'c> {
    /// From a function that attaches it.
    pub(crate) fn new<A: Attached + 'c>(
        name: &'static str,
        mut attach: impl FnMut() -> Result<A> + 'c,
    ) -> Self {
        Contestant {
            name,
            attach: Box::new(move || Ok(Box::new(attach()?))),
        }
    }
}

/// What a load has measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Nanoseconds, for each hit.
    pub(crate) ns: f64,
    /// How many hits there were.
    pub(crate) hits: u64,
}

/// The samples of all rounds, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Rounds {
    names: Vec<&'static str>,
    /// By contestant, then by round.
    ns: Vec<Vec<f64>>,
}

/// Runs so many rounds. The first contestant is what the others are held against: it runs at both ends of a round.
///
/// # Errors
/// A contestant that cannot be attached, or has missed hits.
pub(crate) fn run(
    title: &str,
    rounds: usize,
    contestants: &mut [Contestant<'_>],
    mut load: impl FnMut() -> Result<Sample>,
) -> Result<Rounds> {
    let mut result = Rounds {
        names: contestants.iter().map(|c| c.name).collect(),
        ns: vec![Vec::new(); contestants.len()],
    };
    for round in 0..rounds {
        eprint!("\r{title}: round {} of {rounds} ", round + 1);
        let mut measure = |place: usize| -> Result<f64> {
            let contestant = contestants.get_mut(place).context("a contestant")?;
            let mut once = || -> Result<f64> {
                let attached = (contestant.attach)()?;
                let sample = load()?;
                attached.finish(sample.hits)?;
                Ok(sample.ns)
            };
            once().with_context(|| format!("{title}: {}", contestant.name))
        };
        let before = measure(0)?;
        let others = result.names.len() - 1;
        let mut ns = vec![0.0; result.names.len()];
        for turn in 0..others {
            let place = 1 + (turn + round) % others;
            ns[place] = measure(place)?;
        }
        ns[0] = (before + measure(0)?) / 2.0;
        result.ns.iter_mut().zip(ns).for_each(|(all, ns)| all.push(ns));
    }
    eprintln!();
    Ok(result)
}

impl Rounds {
    fn of(&self, name: &str) -> &[f64] {
        let place = self.names.iter().position(|known| *known == name);
        place.map_or(&[], |place| &self.ns[place])
    }

    /// What a contestant's hits cost beyond the first contestant's, in each round.
    pub(crate) fn over_first(&self, name: &str) -> Vec<f64> {
        let of = self.of(name).iter().zip(&self.ns[0]);
        of.map(|(ns, first)| ns - first).collect()
    }

    /// What the hits of the first contestant take.
    pub(crate) fn first(&self) -> &[f64] {
        &self.ns[0]
    }

    /// All but the first.
    pub(crate) fn names(&self) -> &[&'static str] {
        &self.names[1..]
    }

    /// In each round the cost of one, divided by `parts`, over that of the other.
    pub(crate) fn ratios(&self, one: &str, parts: f64, other: &str) -> Vec<f64> {
        let (one, other) = (self.over_first(one), self.over_first(other));
        one.iter()
            .zip(&other)
            .map(|(one, other)| one / parts / other)
            .collect()
    }
}

/// The sample of this rank, from 0 for the smallest to 1 for the largest.
pub(crate) fn quantile(samples: &[f64], rank: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    sorted
        .get((rank * last).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The median.
pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}
