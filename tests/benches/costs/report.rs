//! The tables, and where they stand in the documentation.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::rounds::{Rounds, median, quantile};

/// What a row is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Not more than this.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
    /// It stands there for comparison.
    None,
}

impl Target {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Target::AtMost(most) => Some(value <= most),
            Target::AtLeast(least) => Some(value >= least),
            Target::None => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(most) => write!(f, "≤ {most}"),
            Target::AtLeast(least) => write!(f, "≥ {least}"),
            Target::None => Ok(()),
        }
    }
}

/// A row of the first table.
#[derive(Debug)]
struct Row {
    what: String,
    median: f64,
    quartiles: [f64; 2],
    rounds: usize,
    unit: &'static str,
    target: Target,
}

/// What a run has found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    /// A table each: its title, and (name, nanoseconds).
    costs: Vec<(String, Vec<(String, f64)>)>,
}

/// Width of the longest bar.
const BAR: f64 = 40.0;
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

impl Report {
    /// Adds a row of ratios.
    pub(crate) fn ratio(&mut self, what: &str, ratios: &[f64], target: Target) {
        self.row(what, ratios, "", target);
    }

    /// Adds a row of numbers with a unit.
    pub(crate) fn row(&mut self, what: &str, samples: &[f64], unit: &'static str, target: Target) {
        self.rows.push(Row {
            what: what.to_owned(),
            median: median(samples),
            quartiles: [quantile(samples, 0.25), quantile(samples, 0.75)],
            rounds: samples.len(),
            unit,
            target,
        });
    }

    /// Adds a plot of what the contestants' hits cost.
    pub(crate) fn costs(&mut self, title: &str, rounds: &Rounds) {
        let first = ("(the load itself)".to_owned(), median(rounds.first()));
        let others = rounds
            .names()
            .iter()
            .map(|name| ((*name).to_owned(), median(&rounds.over_first(name))));
        self.costs
            .push((title.to_owned(), std::iter::once(first).chain(others).collect()));
    }

    /// Puts the tables into the documentation, between its two marks.
    ///
    /// # Errors
    /// The file or its marks are not there.
    pub(crate) fn write(&self) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let (before, rest) = text.split_once(BEGIN).context("no mark where it begins")?;
        let (_, after) = rest.split_once(END).context("no mark where it ends")?;
        fs::write(&path, format!("{before}{BEGIN}\n\n{self}\n{END}{after}"))?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | median | quartiles | target | |")?;
        writeln!(f, "|---|--:|--:|--:|---|")?;
        for row in &self.rows {
            let verdict = match row.target.is_met(row.median) {
                Some(true) => "met",
                Some(false) => "**missed**",
                None => "",
            };
            let number = |value: f64| match row.unit {
                "" => format!("{value:.3}"),
                unit => format!("{value:.1} {unit}"),
            };
            let spread = match row.rounds {
                1 => "one run".to_owned(),
                _ => format!("{} to {}", number(row.quartiles[0]), number(row.quartiles[1])),
            };
            writeln!(
                f,
                "| {} | {} | {spread} | {} | {verdict} |",
                row.what,
                number(row.median),
                row.target
            )?;
        }
        for (title, costs) in &self.costs {
            let longest = costs.iter().map(|(_, ns)| *ns).fold(1.0, f64::max);
            let width = costs
                .iter()
                .map(|(name, _)| name.chars().count())
                .max()
                .unwrap_or(0);
            writeln!(f, "\nNanoseconds for {title}:\n\n```text")?;
            for (name, ns) in costs {
                let bar = "█".repeat((ns.max(0.0) / longest * BAR).round() as usize);
                writeln!(f, "{name:<width$}  {ns:7.1}  {bar}")?;
            }
            writeln!(f, "```")?;
        }
        Ok(())
    }
}
