//! Rules that ask for equality on the same value: the value is loaded once and looked for in a search tree.
//!
//! In: the triggers of a section. Out: a tree of immediates for each value that enough of them ask for, and the triggers
//! that are left. What a leaf has found is looked for in a tree of its own where that pays.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use lkst_rules::ast::CompareOp;
use lkst_rules::plan::{Expr, Node, Trigger};

use super::Emit;
use super::budget::Way;
use super::condition::operands;
use super::section::Firing;
use super::text::literal;
use super::value::constant;
use crate::asm::{Label, Reg};

/// So many different constants make a tree.
const CONSTANTS_MIN: usize = 4;
/// A list that is longer has a tree of its own, where its rule is judged.
const LIST_MAX: usize = 64;

/// What a value may have to be equal to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Constant {
    Int(u64),
    Text(Vec<u8>),
}

/// A trigger that is to be judged.
#[derive(Debug, Clone)]
pub(super) struct Pending<'p> {
    pub(super) trigger: usize,
    /// What must hold, all of it.
    pub(super) conditions: Vec<&'p Expr>,
}

/// A trigger that a tree finds.
#[derive(Debug)]
struct Entry<'p> {
    /// The constants to one of which the tree's value must be equal.
    constants: Vec<Constant>,
    /// What is to be judged then.
    then: Pending<'p>,
}

/// Triggers that one value finds.
#[derive(Debug)]
struct Tree<'p> {
    value: Expr,
    entries: Vec<Entry<'p>>,
}

/// Where the judging of triggers goes on.
#[derive(Debug, Clone, Copy)]
struct Ways {
    /// One holds, whose number is in R1: it is marked, and then all is done.
    holds: Label,
    /// None holds any more.
    done: Label,
}

/// A value of the hit that must be equal to one of some constants.
fn equality(expr: &Expr) -> Option<(Expr, Vec<Constant>)> {
    let (value, constants) = match &expr.node {
        Node::Compare {
            op: CompareOp::Equal,
            left,
            right,
            ..
        } => match (constant(left), constant(right)) {
            (None, Some(right)) => (left, vec![Constant::Int(right)]),
            (Some(left), None) => (right, vec![Constant::Int(left)]),
            _ => return None,
        },
        Node::TextEqual {
            left,
            right,
            negated: false,
        } => match (literal(left), literal(right)) {
            (None, Some(right)) => (left, vec![Constant::Text(right.to_vec())]),
            (Some(left), None) => (right, vec![Constant::Text(left.to_vec())]),
            _ => return None,
        },
        Node::InInts {
            value,
            list,
            negated: false,
        } if list.len() <= LIST_MAX => (value, list.iter().copied().map(Constant::Int).collect()),
        Node::InTexts {
            value,
            list,
            negated: false,
        } if list.len() <= LIST_MAX && literal(value).is_none() => {
            (value, list.iter().cloned().map(Constant::Text).collect())
        }
        Node::Or(..) => return either(expr),
        _ => return None,
    };
    matches!(value.node, Node::Load(_) | Node::Str { .. }).then(|| (value.without_spans(), constants))
}

/// Equalities of one value, joined by `or`.
fn either(expr: &Expr) -> Option<(Expr, Vec<Constant>)> {
    let mut all = operands(expr, true).into_iter().map(equality);
    let (value, mut constants) = all.next()??;
    for other in all {
        let (other, more) = other?;
        if other != value || constants.len() + more.len() > LIST_MAX {
            return None;
        }
        constants.extend(more);
    }
    Some((value, constants))
}

impl Emit<'_> {
    /// Takes the triggers out of `pending` that the most asked for value finds, by as many constants as make a tree.
    fn most_asked<'p>(&self, pending: &mut Vec<Pending<'p>>) -> Option<Tree<'p>> {
        let mut asked: Vec<Tree<'p>> = Vec::new();
        for one in &*pending {
            for (place, condition) in one.conditions.iter().enumerate() {
                let Some((value, constants)) = equality(condition) else {
                    continue;
                };
                let mut then = one.clone();
                then.conditions.remove(place);
                let entry = Entry { constants, then };
                match asked.iter_mut().find(|known| known.value == value) {
                    // One that asks twice for the same value is in its tree once.
                    Some(tree)
                        if tree
                            .entries
                            .last()
                            .is_some_and(|last| last.then.trigger == one.trigger) => {}
                    Some(tree) => tree.entries.push(entry),
                    None => asked.push(Tree {
                        value,
                        entries: vec![entry],
                    }),
                }
            }
        }
        let constants = |tree: &Tree<'_>| {
            tree.entries
                .iter()
                .map(|entry| entry.constants.len())
                .sum::<usize>()
        };
        asked.retain(|tree| tree.entries.len() > 1 && constants(tree) >= CONSTANTS_MIN);
        // Of two values for as many triggers, the cheaper one: what its leaves find, another tree may tell apart.
        let tree = asked.into_iter().max_by_key(|tree| {
            let different: BTreeSet<&Constant> =
                tree.entries.iter().flat_map(|entry| &entry.constants).collect();
            (
                tree.entries.len(),
                Reverse(self.price_of(&tree.value)),
                different.len(),
            )
        })?;
        pending.retain(|one| tree.entries.iter().all(|entry| entry.then.trigger != one.trigger));
        Some(tree)
    }

    /// Judges the triggers that trees can find. Returns those that are left. Needs what [`Emit::mark`] needs.
    pub(super) fn trees(&mut self, triggers: &[Trigger], firing: &Firing) -> Vec<usize> {
        let mut pending: Vec<Pending<'_>> = triggers
            .iter()
            .enumerate()
            .map(|(trigger, of)| Pending {
                trigger,
                conditions: of
                    .with
                    .as_ref()
                    .map_or_else(Vec::new, |with| operands(with, false)),
            })
            .collect();
        while let Some(tree) = self.most_asked(&mut pending) {
            let way = self.tree_and_mark(&tree, firing);
            self.way.add(way);
        }
        pending.into_iter().map(|one| one.trigger).collect()
    }

    /// A tree, and behind it the marking of what it found. Returns what most hits that come here pass of it.
    fn tree_and_mark(&mut self, tree: &Tree<'_>, firing: &Firing) -> Way {
        let ways = Ways {
            holds: self.asm.label(),
            done: self.asm.label(),
        };
        let way = self.tree(tree, firing, ways);
        self.asm.bind(ways.holds);
        self.mark(firing);
        self.asm.bind(ways.done);
        self.paths_meet();
        way
    }

    /// As [`Emit::tree_and_mark`], with the marking elsewhere.
    fn tree(&mut self, tree: &Tree<'_>, firing: &Firing, ways: Ways) -> Way {
        let mut by_constant: BTreeMap<&Constant, Vec<usize>> = BTreeMap::new();
        for (place, entry) in tree.entries.iter().enumerate() {
            for constant in &entry.constants {
                let places = by_constant.entry(constant).or_default();
                // One that names a constant twice is found by it once.
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
        // Constants that the same triggers ask for have the same leaf.
        let mut leaves: BTreeMap<&[usize], Label> = BTreeMap::new();
        for places in by_constant.values() {
            if !leaves.contains_key(places.as_slice()) {
                leaves.insert(places, self.asm.label());
            }
        }
        let targets: Vec<(&Constant, Label)> = by_constant
            .iter()
            .filter_map(|(constant, places)| Some((*constant, *leaves.get(places.as_slice())?)))
            .collect();
        self.asm
            .note(format!("{} rules by one value", tree.entries.len()));
        let way = self.descend(&tree.value, &targets, ways.done);
        let known = (self.clock, self.who);
        for (places, label) in leaves {
            self.asm.bind(label);
            // What another leaf has done was not done on the way to this one.
            (self.clock, self.who) = known;
            let found = places.iter().filter_map(|place| tree.entries.get(*place));
            self.leaf(found.map(|entry| entry.then.clone()).collect(), firing, ways);
        }
        way
    }

    /// Judges what a tree has found, which other trees may find further.
    fn leaf(&mut self, mut pending: Vec<Pending<'_>>, firing: &Firing, ways: Ways) {
        while let Some(tree) = self.most_asked(&mut pending) {
            if pending.is_empty() {
                self.tree(&tree, firing, ways);
                return;
            }
            self.tree_and_mark(&tree, firing);
        }
        // Most leaves end in the marking of one trigger, by the same instructions.
        let mut pending = pending.into_iter().peekable();
        while let Some(one) = pending.next() {
            let is_last = pending.peek().is_none();
            let next = if is_last { ways.done } else { self.asm.label() };
            let mut conditions = one.conditions;
            conditions.sort_by_key(|condition| self.price_of(condition));
            for condition in conditions {
                self.branch_if(condition, false, next);
            }
            self.asm.mov(Reg::R1, one.trigger as i32);
            if is_last {
                self.asm.jump(ways.holds);
            } else {
                self.mark(firing);
                self.asm.bind(next);
            }
        }
    }

    /// Goes where the value is found among the targets, otherwise to `miss`. Returns what most hits pass of it.
    fn descend(&mut self, value: &Expr, targets: &[(&Constant, Label)], miss: Label) -> Way {
        /// About what the first word of a text takes.
        const WORD: u64 = 20;
        let from = self.asm.len();
        let mut ints = Vec::new();
        let mut texts: Vec<(&[u8], Label)> = Vec::new();
        for (constant, label) in targets {
            match constant {
                Constant::Int(int) => ints.push((*int, *label)),
                Constant::Text(text) => texts.push((text, *label)),
            }
        }
        let mut way;
        if texts.is_empty() {
            self.value(value);
            way = self.way_since(from);
            self.search(&ints, miss);
        } else {
            let unreadable = self.asm.label();
            let held = self.hold(value, unreadable);
            way = self.way_since(from);
            way.instructions += WORD;
            self.search_text(held, &texts, miss);
            self.asm.bind(unreadable);
            self.count_unreadable();
            self.asm.jump(miss);
        }
        // A hit goes down the tree, and mostly to none of its leaves.
        way.instructions += 2 * u64::from(targets.len().checked_ilog2().unwrap_or(0) + 1);
        way
    }
}
