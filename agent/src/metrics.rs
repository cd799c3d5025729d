//! What Prometheus scrapes: a [`Status`] in, its text format out.
//!
//! The format: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Every number is one of `lkst status`;
//! docs/control.md lists them.
//!
//! INVARIANT: names of packs, sets, buffers, rules and events are the only labels, so their number is bounded by the language.

use std::fmt::Write as _;

use crate::status::{BufferStatus, EventStatus, PackPhase, PackStatus, RuleStatus, Status};

/// The format's media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A family of samples.
struct Family<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl<'t> Family<'t> {
    fn new(text: &'t mut String, kind: &str, name: &'static str, help: &str) -> Family<'t> {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP lkst_{name} {help}\n# TYPE lkst_{name} {kind}");
        Family { text, name }
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.text, "lkst_{}", self.name);
        for (place, (label, value)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Seconds, as Prometheus has all times.
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Metrics of the agent as a whole.
fn whole(text: &mut String, status: &Status) {
    let mut info = Family::new(text, "gauge", "info", "The agent, its version and its kernel.");
    info.sample(&[("version", &status.version), ("kernel", &status.kernel)], 1);
    let gauges: [(&str, &str, f64); 7] = [
        (
            "start_time_seconds",
            "When the agent started.",
            seconds(status.started_unix_ns),
        ),
        (
            "troubles",
            "Things that are wrong with the agent as a whole.",
            status.troubles.len() as f64,
        ),
        (
            "memory_bytes",
            "Memory of buffers and maps.",
            status.memory.used_bytes as f64,
        ),
        (
            "memory_limit_bytes",
            "The most memory that they may have.",
            status.memory.max_bytes as f64,
        ),
        (
            "last_reload_time_seconds",
            "When other rules last came into force.",
            status
                .last_reload
                .as_ref()
                .map_or(0.0, |reload| seconds(reload.at_unix_ns)),
        ),
        (
            "last_reload_duration_seconds",
            "How long that took.",
            status
                .last_reload
                .as_ref()
                .map_or(0.0, |reload| seconds(reload.took_ns)),
        ),
        (
            "packs",
            "Packs that the rules folder has.",
            status.packs.len() as f64,
        ),
    ];
    for (name, help, value) in gauges {
        Family::new(text, "gauge", name, help).sample(&[], value);
    }
    let mut generation = Family::new(
        text,
        "counter",
        "generation_total",
        "How often rules came into force.",
    );
    generation.sample(&[], status.generation);
}

/// A number of a pack.
type OfPack = (&'static str, &'static str, &'static str, fn(&PackStatus) -> f64);
/// A number of a stream buffer.
type OfStream = (&'static str, &'static str, &'static str, fn(&BufferStatus) -> u64);
/// A count of a rule.
type OfRule = (&'static str, &'static str, fn(&RuleStatus) -> u64);
/// A count of an event.
type OfEvent = (&'static str, &'static str, fn(&EventStatus) -> u64);

const PACKS: [OfPack; 9] = [
    (
        "gauge",
        "pack_in_force",
        "Rules of the pack are in force.",
        |pack| f64::from(u8::from(pack.hash.is_some())),
    ),
    (
        "gauge",
        "pack_error",
        "The pack's newest text is not in force.",
        |pack| f64::from(u8::from(pack.error.is_some())),
    ),
    (
        "gauge",
        "pack_stopped",
        "The pack has stopped, until `lkst reset`.",
        |pack| f64::from(u8::from(pack.phase == PackPhase::Stopped)),
    ),
    (
        "gauge",
        "pack_over_budget",
        "The pack was taken down for what it costs.",
        |pack| f64::from(u8::from(pack.phase == PackPhase::OverBudget)),
    ),
    (
        "counter",
        "pack_traces_saved_total",
        "Traces that were written.",
        |pack| pack.incidents.saved as f64,
    ),
    (
        "gauge",
        "pack_save_error",
        "The last try to save failed.",
        |pack| f64::from(u8::from(pack.incidents.error.is_some())),
    ),
    (
        "gauge",
        "pack_buffers_kept",
        "Buffers that wait to be saved.",
        |pack| pack.buffers.iter().filter(|buffer| buffer.kept).count() as f64,
    ),
    (
        "gauge",
        "pack_hits_per_second",
        "Hits of the pack's events, lately.",
        |pack| pack.cost.hits_per_s,
    ),
    (
        "gauge",
        "pack_cpu_percent",
        "What the pack costs, in percent of one CPU, estimated.",
        |pack| pack.cost.cpu_percent,
    ),
];

const STREAMS: [OfStream; 3] = [
    (
        "counter",
        "stream_written_bytes_total",
        "What a stream buffer has written to disk.",
        |buffer| buffer.written_bytes,
    ),
    (
        "counter",
        "stream_lost_total",
        "Records of a stream buffer that found no room, since the disk or the agent were too slow.",
        |buffer| buffer.lost,
    ),
    (
        "gauge",
        "stream_error",
        "A stream buffer cannot be written now.",
        |buffer| u64::from(buffer.error.is_some()),
    ),
];

const RULES: [OfRule; 4] = [
    ("rule_fired_total", "Firings.", |rule| rule.fired),
    (
        "rule_limited_total",
        "Firings that the rule's limit held back.",
        |rule| rule.limited,
    ),
    (
        "rule_refused_total",
        "Switches to a buffer that was kept.",
        |rule| rule.refused,
    ),
    (
        "rule_given_up_total",
        "Firings whose change of state was given up.",
        |rule| rule.given_up,
    ),
];

const EVENTS: [OfEvent; 6] = [
    ("event_recorded_total", "Records.", |event| event.recorded),
    ("event_lost_total", "Records that found no room.", |event| {
        event.lost
    }),
    ("event_capped_total", "Hits over a set's max.", |event| {
        event.capped
    }),
    (
        "event_over_budget_total",
        "Hits dropped over the budget.",
        |event| event.over_budget,
    ),
    (
        "event_unreadable_total",
        "Texts that could not be read.",
        |event| event.unreadable,
    ),
    ("event_skipped_total", "Hits that the kernel skipped.", |event| {
        event.skipped.unwrap_or(0)
    }),
];

/// The whole text.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    whole(&mut text, status);
    for (kind, name, help, value) in PACKS {
        let mut family = Family::new(&mut text, kind, name, help);
        for pack in &status.packs {
            family.sample(&[("pack", &pack.name)], value(pack));
        }
    }
    let mut sets = Family::new(&mut text, "gauge", "set_enabled", "The set is enabled.");
    for pack in &status.packs {
        for set in &pack.sets {
            sets.sample(&[("pack", &pack.name), ("set", &set.name)], u8::from(set.enabled));
        }
    }
    let mut overwritten = Family::new(
        &mut text,
        "gauge",
        "buffer_overwritten_bytes",
        "What newer records have overwritten since the buffer was last saved.",
    );
    for pack in &status.packs {
        for buffer in pack.buffers.iter().filter(|buffer| !buffer.stream) {
            overwritten.sample(
                &[("pack", &pack.name), ("buffer", &buffer.name)],
                buffer.overwritten_bytes,
            );
        }
    }
    for (kind, name, help, value) in STREAMS {
        let mut family = Family::new(&mut text, kind, name, help);
        for pack in &status.packs {
            for buffer in pack.buffers.iter().filter(|buffer| buffer.stream) {
                family.sample(&[("pack", &pack.name), ("buffer", &buffer.name)], value(buffer));
            }
        }
    }
    for (name, help, value) in RULES {
        let mut family = Family::new(&mut text, "counter", name, help);
        for pack in &status.packs {
            for rule in &pack.rules {
                family.sample(&[("pack", &pack.name), ("rule", &rule.name)], value(rule));
            }
        }
    }
    for (name, help, value) in EVENTS {
        let mut family = Family::new(&mut text, "counter", name, help);
        for pack in &status.packs {
            for event in &pack.events {
                // A count that the kernel does not keep is not a count of zero.
                if name != "event_skipped_total" || event.skipped.is_some() {
                    family.sample(&[("pack", &pack.name), ("event", &event.name)], value(event));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_sample_or_says_what_follows() {
        let status = Status {
            version: "0.1 \"x\"\\\n".to_owned(),
            packs: vec![PackStatus {
                name: "p".to_owned(),
                rules: vec![RuleStatus {
                    name: "r".to_owned(),
                    fired: 3,
                    ..RuleStatus::default()
                }],
                events: vec![EventStatus {
                    name: "a:b".to_owned(),
                    recorded: 7,
                    ..EventStatus::default()
                }],
                ..PackStatus::default()
            }],
            ..Status::default()
        };
        let text = render(&status);
        assert!(
            text.contains("lkst_rule_fired_total{pack=\"p\",rule=\"r\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("lkst_event_recorded_total{pack=\"p\",event=\"a:b\"} 7\n"),
            "{text}"
        );
        assert!(!text.contains("lkst_event_skipped_total{"), "{text}");
        let mut announced = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                announced = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap_or_default();
                assert_eq!(name.split('{').next(), Some(announced.as_str()), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
