//! What no rule may record: patterns in, yes or no for an event or a field out.
//!
//! INVARIANT: a pattern that could match nothing is refused when it is read: it would protect nothing.

use serde::Deserialize;
use serde::de::Deserializer;

use super::values::text_value;
use crate::command::events::glob;

/// What no rule may record: `[never_capture]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeverCapture {
    /// Events that are not recorded at all.
    pub events: Vec<EventPattern>,
    /// Fields that are left out of records.
    pub fields: Vec<FieldPattern>,
}

/// `syscalls:sys_enter_read`, `net:*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPattern {
    /// A glob over systems.
    pub system: String,
    /// A glob over events.
    pub event: String,
}

/// `filename` of whatever event, or `sched:sched_switch.prev_comm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldPattern {
    /// The events whose field it is. `None`: all.
    pub of: Option<EventPattern>,
    /// A glob over fields.
    pub field: String,
}

impl NeverCapture {
    /// True where the event may not be recorded.
    #[must_use]
    pub fn forbids_event(&self, system: &str, event: &str) -> bool {
        self.events.iter().any(|pattern| pattern.matches(system, event))
    }

    /// True where this field of the event may not be recorded, or nothing of the event may.
    #[must_use]
    pub fn forbids_field(&self, system: &str, event: &str, field: &str) -> bool {
        let forbids = |pattern: &FieldPattern| {
            let of = pattern.of.as_ref();
            of.is_none_or(|of| of.matches(system, event)) && glob(&pattern.field, field)
        };
        self.forbids_event(system, event) || self.fields.iter().any(forbids)
    }
}

impl EventPattern {
    /// True for an event that is meant.
    #[must_use]
    pub fn matches(&self, system: &str, event: &str) -> bool {
        glob(&self.system, system) && glob(&self.event, event)
    }

    fn parse(text: &str) -> Option<EventPattern> {
        let (system, event) = text.split_once(':')?;
        (is_name(system, "-") && is_name(event, "-")).then(|| EventPattern {
            system: system.to_owned(),
            event: event.to_owned(),
        })
    }
}

impl FieldPattern {
    fn parse(text: &str) -> Option<FieldPattern> {
        let (of, field) = match text.split_once(':') {
            None => (None, text),
            Some((system, rest)) => {
                let (event, field) = rest.split_once('.')?;
                (Some(EventPattern::parse(&format!("{system}:{event}"))?), field)
            }
        };
        // A dot leads into an argument: `args.prev.comm`.
        is_name(field, ".").then(|| FieldPattern {
            of,
            field: field.to_owned(),
        })
    }
}

fn is_name(text: &str, also: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '*' || also.contains(c);
    !text.is_empty() && text.chars().all(good)
}

impl<'de> Deserialize<'de> for EventPattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<EventPattern, D::Error> {
        let rule = "an event such as \"syscalls:sys_enter_read\" or \"net:*\"";
        text_value(from, rule, |text| {
            EventPattern::parse(text).ok_or_else(|| format!("`{text}` is not an event\nwrite {rule}"))
        })
    }
}

impl<'de> Deserialize<'de> for FieldPattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<FieldPattern, D::Error> {
        let rule = "a field such as \"filename\" or \"sched:sched_switch.prev_comm\"";
        text_value(from, rule, |text| {
            FieldPattern::parse(text).ok_or_else(|| format!("`{text}` is not a field\nwrite {rule}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_fields_are_forbidden() {
        let never = NeverCapture {
            events: ["syscalls:sys_enter_read", "net:*"]
                .into_iter()
                .filter_map(EventPattern::parse)
                .collect(),
            fields: ["filename", "sched:sched_switch.prev_comm", "block:*.args.*"]
                .into_iter()
                .filter_map(FieldPattern::parse)
                .collect(),
        };
        assert!(never.forbids_event("syscalls", "sys_enter_read"));
        assert!(!never.forbids_event("syscalls", "sys_enter_readv"));
        assert!(never.forbids_event("net", "net_dev_xmit"));
        assert!(never.forbids_field("syscalls", "sys_enter_openat", "filename"));
        assert!(never.forbids_field("sched", "sched_switch", "prev_comm"));
        assert!(!never.forbids_field("sched", "sched_switch", "next_comm"));
        assert!(!never.forbids_field("sched", "sched_waking", "prev_comm"));
        assert!(never.forbids_field("block", "block_rq_issue", "args.rq.tag"));
        assert!(never.forbids_field("net", "net_dev_xmit", "len"));
    }

    #[test]
    fn what_could_match_nothing_is_no_pattern() {
        for text in ["", ":", "a:", ":b", "read", "a b:c", "a:b:c", "a:b.c"] {
            assert_eq!(EventPattern::parse(text), None, "{text:?}");
        }
        for text in ["", "a:b", "a:b.", "a:.c", "a b", ":.a"] {
            assert_eq!(FieldPattern::parse(text), None, "{text:?}");
        }
    }
}
