//! Rules that ask for equality on the same value: the value is loaded once and looked for in a search tree.
//!
//! In: the triggers of a section. Out: a tree of immediates for each value that enough of them ask for, and the triggers
//! that are left.

use std::collections::BTreeMap;

use lkst_rules::ast::CompareOp;
use lkst_rules::plan::{Expr, Node, Trigger};

use super::Emit;
use super::condition::operands;
use super::section::Firing;
use super::value::constant;
use crate::asm::{Label, Reg};

/// So many different constants make a tree.
const CONSTANTS_MIN: usize = 4;
/// A list that is longer has a tree of its own, where its rule is judged.
const LIST_MAX: usize = 64;

/// A trigger in a tree.
struct Entry<'p> {
    trigger: usize,
    /// The constants to one of which the tree's value must be equal.
    constants: Vec<u64>,
    /// What else must hold.
    rest: Vec<&'p Expr>,
}

/// A value of the hit that must be equal to one of some constants.
fn equality(expr: &Expr) -> Option<(Expr, Vec<u64>)> {
    let (value, constants) = match &expr.node {
        Node::Compare {
            op: CompareOp::Equal,
            left,
            right,
            ..
        } => match (constant(left), constant(right)) {
            (None, Some(right)) => (left, vec![right]),
            (Some(left), None) => (right, vec![left]),
            _ => return None,
        },
        Node::InInts {
            value,
            list,
            negated: false,
        } if list.len() <= LIST_MAX => (value, list.clone()),
        _ => return None,
    };
    matches!(value.node, Node::Load(_)).then(|| (value.without_spans(), constants))
}

/// The value that the most triggers among `left` ask for, by as many constants as make a tree.
fn most_asked<'p>(triggers: &'p [Trigger], left: &[usize]) -> Option<(Expr, Vec<Entry<'p>>)> {
    let mut asked: Vec<(Expr, Vec<Entry<'p>>)> = Vec::new();
    for index in left {
        let with = triggers.get(*index).and_then(|trigger| trigger.with.as_ref());
        let conjuncts = with.map_or_else(Vec::new, |with| operands(with, false));
        for (place, conjunct) in conjuncts.iter().enumerate() {
            let Some((value, constants)) = equality(conjunct) else {
                continue;
            };
            let rest = conjuncts.iter().enumerate().filter(|(other, _)| *other != place);
            let entry = Entry {
                trigger: *index,
                constants,
                rest: rest.map(|(_, conjunct)| *conjunct).collect(),
            };
            match asked.iter_mut().find(|(known, _)| *known == value) {
                // One that asks twice for the same value is in its tree once.
                Some((_, entries)) if entries.last().is_some_and(|last| last.trigger == *index) => {}
                Some((_, entries)) => entries.push(entry),
                None => asked.push((value, vec![entry])),
            }
        }
    }
    asked.retain(|(_, entries)| {
        entries.iter().map(|entry| entry.constants.len()).sum::<usize>() >= CONSTANTS_MIN && entries.len() > 1
    });
    asked.into_iter().max_by_key(|(_, entries)| entries.len())
}

impl Emit<'_> {
    /// Judges the triggers that trees can find. Returns those that are left. Needs what [`Emit::mark`] needs.
    pub(super) fn trees(&mut self, triggers: &[Trigger], firing: &Firing) -> Vec<usize> {
        let mut left: Vec<usize> = (0..triggers.len()).collect();
        while let Some((value, entries)) = most_asked(triggers, &left) {
            left.retain(|index| entries.iter().all(|entry| entry.trigger != *index));
            self.tree(&value, &entries, firing);
        }
        left
    }

    fn tree(&mut self, value: &Expr, entries: &[Entry<'_>], firing: &Firing) {
        let mut by_constant: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (place, entry) in entries.iter().enumerate() {
            for constant in &entry.constants {
                by_constant.entry(*constant).or_default().push(place);
            }
        }
        // Constants that the same triggers ask for have the same leaf.
        let mut leaves: BTreeMap<&[usize], Label> = BTreeMap::new();
        for places in by_constant.values() {
            if !leaves.contains_key(places.as_slice()) {
                leaves.insert(places, self.asm.label());
            }
        }
        let targets: Vec<(u64, Label)> = by_constant
            .iter()
            .filter_map(|(constant, places)| Some((*constant, *leaves.get(places.as_slice())?)))
            .collect();
        let end = self.asm.label();
        self.asm.note(format!("{} rules by one value", entries.len()));
        let from = self.asm.len();
        self.value(value);
        let loaded = self.way_since(from);
        self.way.add(loaded);
        self.search(&targets, end);
        // A hit goes down the tree, and mostly to none of its leaves.
        self.way.instructions += 2 * u64::from(targets.len().ilog2() + 1);
        // Most leaves end in the marking of one trigger, by the same instructions.
        let mark_last = self.asm.label();
        for (places, label) in leaves {
            self.asm.bind(label);
            for (turn, entry) in (1..).zip(places.iter().filter_map(|place| entries.get(*place))) {
                let is_last = turn == places.len();
                let next = if is_last { end } else { self.asm.label() };
                let mut rest = entry.rest.clone();
                rest.sort_by_key(|condition| self.price_of(condition));
                for condition in rest {
                    self.branch_if(condition, false, next);
                }
                self.asm.mov(Reg::R1, entry.trigger as i32);
                if is_last {
                    self.asm.jump(mark_last);
                } else {
                    self.mark(firing);
                    self.asm.bind(next);
                }
            }
        }
        self.asm.bind(mark_last);
        self.mark(firing);
        self.asm.bind(end);
        self.paths_meet();
    }
}
