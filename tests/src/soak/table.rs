//! What is allowed and what was seen, as a table for people.

use std::fmt;

/// One line.
#[derive(Debug)]
struct Row {
    what: String,
    allowed: String,
    seen: String,
    /// `None`: it is only told.
    good: Option<bool>,
}

/// All lines.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Whole numbers without a fraction, small ones with what matters.
fn number(value: f64, unit: &str) -> String {
    let digits = if value.fract() == 0.0 { 0 } else { 2 };
    format!("{value:.digits$}{unit}")
}

impl Table {
    /// Only to be told.
    pub fn note(&mut self, what: &str, count: u64) {
        self.rows.push(Row {
            what: what.to_owned(),
            allowed: String::new(),
            seen: count.to_string(),
            good: None,
        });
    }

    /// A size that may be so large.
    pub fn bytes(&mut self, what: &str, most: u64, seen: u64) {
        self.rows.push(Row {
            what: what.to_owned(),
            allowed: format!("<= {}", mebibytes(most)),
            seen: mebibytes(seen),
            good: Some(seen <= most),
        });
    }

    /// A number that may be so large.
    pub fn at_most(&mut self, what: &str, most: f64, seen: f64, unit: &str) {
        self.rows.push(Row {
            what: what.to_owned(),
            allowed: format!("<= {}", number(most, unit)),
            seen: number(seen, unit),
            good: Some(seen <= most),
        });
    }

    /// A number that must be so large.
    pub fn at_least(&mut self, what: &str, least: f64, seen: f64, unit: &str) {
        self.rows.push(Row {
            what: what.to_owned(),
            allowed: format!(">= {}", number(least, unit)),
            seen: number(seen, unit),
            good: Some(seen >= least),
        });
    }

    /// Whether all is as allowed, and something was looked at.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.rows.iter().any(|row| row.good.is_some()) && self.rows.iter().all(|row| row.good != Some(false))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:34} {:>14} {:>14}", "", "allowed", "seen")?;
        for row in &self.rows {
            let good = match row.good {
                None => "",
                Some(true) => "  good",
                Some(false) => "  NOT GOOD",
            };
            writeln!(f, "{:34} {:>14} {:>14}{good}", row.what, row.allowed, row.seen)?;
        }
        Ok(())
    }
}
