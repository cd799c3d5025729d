//! A [`Status`] as people read it: what is wrong first, then each pack.

use std::io::{self, Write};

use crate::status::{EventStatus, PackPhase, PackStatus, RuleStatus, Status};
use crate::trace::escape::visible;

/// Escape sequences, or nothing where there is no terminal.
struct Paint(bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        match self.0 {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn bad(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn strong(&self, text: &str) -> String {
        self.with("1", text)
    }
}

/// Writes it.
///
/// # Errors
/// Where `out` cannot be written.
pub fn show(status: &Status, colour: bool, out: &mut dyn Write) -> io::Result<()> {
    let paint = Paint(colour);
    let now_ns = now_unix_ns();
    writeln!(
        out,
        "lkst {} on {}, process {}, up {}, generation {}, memory {} of {}",
        visible(&status.version),
        visible(&status.host),
        status.pid,
        age(now_ns, status.started_unix_ns),
        status.generation,
        size(status.memory.used_bytes),
        size(status.memory.max_bytes),
    )?;
    if let Some(reload) = &status.last_reload {
        writeln!(
            out,
            "rules of {} in force since {} (took {}, {})",
            visible(&status.rules_dir.display().to_string()),
            clock(reload.at_unix_ns),
            duration(reload.took_ns),
            crate::session::counted(reload.programs_loaded as u64, "program")
        )?;
    }
    for trouble in &status.troubles {
        block(out, &paint.bad("wrong: "), trouble)?;
    }
    if status.packs.is_empty() {
        writeln!(
            out,
            "\nno packs: put `NAME.lkst` files into {}",
            visible(&status.rules_dir.display().to_string())
        )?;
    }
    for pack in &status.packs {
        writeln!(out)?;
        show_pack(pack, &paint, now_ns, out)?;
    }
    Ok(())
}

fn show_pack(pack: &PackStatus, paint: &Paint, now_ns: u64, out: &mut dyn Write) -> io::Result<()> {
    let phase = match pack.phase {
        PackPhase::Active => paint.good("active"),
        PackPhase::Observe => paint.good("observe"),
        PackPhase::Stopped => paint.bad("stopped"),
        PackPhase::OverBudget => paint.bad("over budget"),
        PackPhase::Off => paint.bad("off"),
    };
    write!(out, "{}  {phase}", paint.strong(&visible(&pack.name).to_string()))?;
    if let (Some(hash), Some(since)) = (&pack.hash, pack.since_unix_ns) {
        let short: String = hash.chars().take(12).collect();
        write!(out, "  {short}  since {}", clock(since))?;
    }
    if let Some(budget) = pack.cost.budget_percent {
        write!(out, "  {:.2}% CPU of {budget}%", pack.cost.cpu_percent)?;
    }
    if pack.cost.hits_per_s > 0.0 {
        write!(out, "  {:.0} hits/s", pack.cost.hits_per_s)?;
    }
    writeln!(out, "  {}", visible(&pack.path.display().to_string()))?;
    if let Some(error) = &pack.error {
        let goes_on = match pack.hash {
            Some(_) => "the text in the rules folder is wrong; the one before stays in force: ",
            None => "nothing of it is in force: ",
        };
        block(out, &format!("  {}", paint.bad(goes_on)), error)?;
    }
    if let Some(error) = &pack.incidents.error {
        block(out, &format!("  {}", paint.bad("not saved: ")), error)?;
    }
    for buffer in &pack.buffers {
        if let Some(error) = &buffer.error {
            let word = format!("buffer {} is not written: ", visible(&buffer.name));
            block(out, &format!("  {}", paint.bad(&word)), error)?;
        }
    }
    if let Some(warnings) = &pack.warnings {
        block(out, "  warned: ", warnings)?;
    }
    let left = |left: Option<u64>| left.map_or_else(String::new, |ns| format!(" {} left", duration(ns)));
    let sets: Vec<String> = pack
        .sets
        .iter()
        .map(|set| match set.enabled {
            true => format!(
                "{}{}",
                paint.good(&visible(&set.name).to_string()),
                left(set.left_ns)
            ),
            false => format!("({})", visible(&set.name)),
        })
        .collect();
    if !sets.is_empty() {
        writeln!(out, "  sets     {}", sets.join("  "))?;
    }
    let buffers: Vec<String> = pack
        .buffers
        .iter()
        .map(|buffer| {
            let state = match (buffer.current, buffer.kept) {
                (true, _) => format!(" current{}", left(buffer.left_ns)),
                (false, true) => paint.bad(" kept, not saved yet"),
                (false, false) => String::new(),
            };
            let stream = match (buffer.stream, buffer.lost) {
                (false, _) => String::new(),
                (true, 0) => format!(" stream, {} written", size(buffer.written_bytes)),
                (true, lost) => format!(
                    " stream, {} written, {}",
                    size(buffer.written_bytes),
                    paint.bad(&format!("{} lost", crate::session::counted(lost, "record")))
                ),
            };
            format!(
                "{} {}{stream}{state}",
                visible(&buffer.name),
                size(buffer.size_bytes)
            )
        })
        .collect();
    if !buffers.is_empty() {
        writeln!(out, "  buffers  {}", buffers.join("  "))?;
    }
    if pack.incidents.saved > 0
        && let Some(last) = &pack.incidents.last
    {
        let traces = crate::session::counted(pack.incidents.saved, "trace");
        writeln!(
            out,
            "  saved    {traces}, the last {}",
            visible(&last.display().to_string())
        )?;
    }
    for rule in &pack.rules {
        show_rule(rule, now_ns, out)?;
    }
    let mut quiet = 0_u64;
    for event in &pack.events {
        if event.recorded + losses(event) == 0 {
            quiet += 1;
            continue;
        }
        show_event(event, paint, out)?;
    }
    if quiet > 0 {
        writeln!(
            out,
            "  {:>12} {}",
            "",
            crate::session::counted(quiet, "more event")
        )?;
    }
    Ok(())
}

fn show_rule(rule: &RuleStatus, now_ns: u64, out: &mut dyn Write) -> io::Result<()> {
    let firings = if rule.fired == 1 { "firing" } else { "firings" };
    write!(out, "  {:>12} {firings} of {}", rule.fired, visible(&rule.name))?;
    let more = [
        (rule.limited, "held back by its limit"),
        (rule.refused, "of a switch refused"),
        (rule.given_up, "given up"),
    ];
    for (count, what) in more.iter().filter(|(count, _)| *count > 0) {
        write!(out, ", {count} {what}")?;
    }
    if let Some(last) = &rule.last {
        write!(
            out,
            "; {} ago: {}",
            age(now_ns, last.at_unix_ns),
            visible(&last.message)
        )?;
    }
    writeln!(out)
}

fn losses(event: &EventStatus) -> u64 {
    event.lost + event.capped + event.over_budget + event.unreadable + event.skipped.unwrap_or(0)
}

fn show_event(event: &EventStatus, paint: &Paint, out: &mut dyn Write) -> io::Result<()> {
    write!(
        out,
        "  {:>12} records of {}",
        event.recorded,
        visible(&event.name)
    )?;
    let counts = [
        (event.lost, "lost"),
        (event.over_budget, "over budget"),
        (event.capped, "over `max`"),
        (event.unreadable, "unreadable"),
        (event.skipped.unwrap_or(0), "skipped by the kernel"),
    ];
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        write!(out, ", {}", paint.bad(&format!("{count} {what}")))?;
    }
    writeln!(out)
}

/// Text of several lines behind a word, each further one indented.
fn block(out: &mut dyn Write, word: &str, text: &str) -> io::Result<()> {
    let mut lines = text.trim_end().lines();
    writeln!(out, "{word}{}", visible(lines.next().unwrap_or_default()))?;
    for line in lines {
        writeln!(out, "    {}", visible(line))?;
    }
    Ok(())
}

fn now_unix_ns() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn age(now_ns: u64, then_ns: u64) -> String {
    duration(now_ns.saturating_sub(then_ns))
}

/// To two digits or so: `3.2ms`, `45s`, `2h 5m`, `12d 3h`.
fn duration(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    match s {
        0 => format!("{:.1}ms", ns as f64 / 1e6),
        1..60 => format!("{:.1}s", ns as f64 / 1e9),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3600 % 24),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{}KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1}MiB", bytes as f64 / 1_048_576.0).replace(".0MiB", "MiB"),
    }
}

/// The local time, with the day where it is not today.
fn clock(unix_ns: u64) -> String {
    let at = jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).unwrap_or_default();
    let at = at.to_zoned(jiff::tz::TimeZone::system());
    let today = jiff::Zoned::now().date() == at.date();
    at.strftime(if today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" })
        .to_string()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use crate::status::{IncidentStatus, LastFiring, SetStatus};

    fn shown(status: &Status) -> String {
        let mut out = Vec::new();
        show(status, false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_wrong_comes_first_and_nothing_reaches_the_terminal_raw() {
        let status = Status {
            troubles: vec!["the disk\x1b[2J is full\nfor sure".to_owned()],
            packs: vec![PackStatus {
                name: "io".to_owned(),
                phase: PackPhase::Off,
                error: Some("error[E101]: no\n --> io.lkst:1:1".to_owned()),
                sets: vec![SetStatus {
                    name: "detail".to_owned(),
                    enabled: true,
                    left_ns: Some(2_500_000_000),
                }],
                rules: vec![RuleStatus {
                    name: "slow".to_owned(),
                    fired: 1,
                    last: Some(LastFiring {
                        at_unix_ns: now_unix_ns(),
                        message: "\u{9b}31m".to_owned(),
                    }),
                    ..RuleStatus::default()
                }],
                incidents: IncidentStatus::default(),
                ..PackStatus::default()
            }],
            ..Status::default()
        };
        let text = shown(&status);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.find("wrong: the disk").unwrap() < text.find("io  off").unwrap());
        assert!(text.contains("nothing of it is in force: error[E101]"), "{text}");
        assert!(text.contains("detail 2.5s left"), "{text}");
        assert!(text.contains("1 firing of slow"), "{text}");
    }

    #[test]
    fn lengths_and_sizes_are_short() {
        assert_eq!(duration(3_210_000), "3.2ms");
        assert_eq!(duration(3_723_000_000_000), "1h 2m");
        assert_eq!(size(1 << 20), "1MiB");
        assert_eq!(size(4096), "4KiB");
    }
}
