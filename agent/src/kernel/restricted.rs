//! The kernel as rules of this host may see it: without what `never_capture` in lkst.toml forbids.
//!
//! In: any schema, patterns. Out: a schema in which a forbidden event cannot be attached to and a forbidden field cannot
//! be read, so that globs and records of all fields leave them out and whoever names one is told why.

use std::sync::Arc;

use lkst_rules::schema::{Event, PathError, PathStep, Resolved, Schema};

use crate::config::NeverCapture;

/// A schema, restricted.
pub struct Restricted<'a> {
    /// What there is.
    pub schema: &'a dyn Schema,
    /// What is forbidden.
    pub never: &'a NeverCapture,
}

impl Schema for Restricted<'_> {
    fn events(&self) -> Vec<(&str, &str)> {
        self.schema.events()
    }

    fn event(&self, system: &str, name: &str) -> Option<Arc<Event>> {
        let event = self.schema.event(system, name)?;
        let is_forbidden = |field: &str| self.never.forbids_field(system, name, field);
        if !event.fields.iter().any(|field| is_forbidden(&field.name)) {
            return Some(event);
        }
        let mut event = (*event).clone();
        for field in event.fields.iter_mut().filter(|field| is_forbidden(&field.name)) {
            field.place = None;
            field.recipe = None;
        }
        Some(Arc::new(event))
    }

    fn unattachable(&self, system: &str, name: &str) -> Option<&str> {
        match self.never.forbids_event(system, name) {
            true => Some("`never_capture` in lkst.toml forbids it"),
            false => self.schema.unattachable(system, name),
        }
    }

    fn forbids(&self, (system, name): (&str, &str), field: Option<&str>) -> bool {
        match field {
            None => self.never.forbids_event(system, name),
            Some(field) => self.never.forbids_field(system, name, field),
        }
    }

    fn argument(&self, event: &Event, steps: &[PathStep]) -> Result<Resolved, PathError> {
        self.schema.argument(event, steps)
    }

    fn task_member(&self, path: &[&str]) -> Option<Resolved> {
        self.schema.task_member(path)
    }

    fn enumerator(&self, name: &str) -> Vec<(String, i64)> {
        self.schema.enumerator(name)
    }

    fn syscall_number(&self, name: &str) -> Option<u32> {
        self.schema.syscall_number(name)
    }

    fn syscall_names(&self) -> Vec<&str> {
        self.schema.syscall_names()
    }

    fn hz(&self) -> Option<u64> {
        self.schema.hz()
    }

    fn architecture(&self) -> &str {
        self.schema.architecture()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use lkst_rules::source::Source;
    use lkst_rules::testing::Fixture;
    use lkst_rules::{Options, Pack, compile};

    use super::*;
    use crate::config::Config;

    fn said(rules: &str) -> (Vec<String>, String) {
        let fixture = Fixture::default();
        let text = "[never_capture]\nevents = [\"block:block_rq_*\"]\nfields = [\"newcomm\", \"net:*.args.skb.*\"]\n";
        let config = Config::parse("lkst.toml".as_ref(), text).unwrap();
        let schema = Restricted {
            schema: &fixture,
            never: &config.never_capture,
        };
        let pack = Pack {
            name: "p".to_owned(),
            sources: vec![Source {
                name: "p.lkst".to_owned(),
                text: rules.to_owned(),
            }],
        };
        let (plan, diagnostics) = compile(&pack, &Options::default(), &schema);
        let codes = diagnostics.list.iter().map(|said| said.code.to_owned()).collect();
        (codes, plan.map(|plan| plan.to_string()).unwrap_or_default())
    }

    #[test]
    fn what_is_named_is_refused_and_what_is_implied_left_out() {
        let named =
            "set s { task:task_rename with newcomm == \"a\" record pid block:block_rq_issue }\nstart with s";
        assert_eq!(said(named).0, ["E118", "E118"]);
        let path = "set s { net:net_dev_queue record args.skb.len }\nstart with s";
        assert_eq!(said(path).0, ["E118"]);
        let (codes, plan) = said("set s { task:* block:* }\nstart with s");
        assert_eq!(codes, Vec::<String>::new());
        assert!(
            plan.contains("block_touch_buffer") && !plan.contains("block_rq_issue"),
            "{plan}"
        );
        assert!(plan.contains("oldcomm"), "{plan}");
    }
}
