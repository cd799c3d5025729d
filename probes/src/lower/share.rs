//! Values that several rules need and that are dear to load: loaded once, before the rules are judged.
//!
//! In: the triggers that no tree finds. Out: loads of such values, and where every condition then finds them.
//!
//! A value is loaded ahead only where some rule would load it at every hit anyway: what stands behind a cheaper condition
//! of every rule stays there. They are put into the frame, and not on the stack: of what lies there the verifier knows no
//! more after a condition than before, and so it need not follow every outcome of one into all others.

use lkst_rules::plan::{Expr, Load, Node, Trigger};
use lkst_rules::schema::Type;

use super::text::literal;
use super::{Emit, frame, slot};
use crate::asm::{Cond, Label, Reg, Size};

/// What must be saved, as [`Emit::price_of`] has it: a value that is shared is stored, and loaded by the frame's address.
const WORTH: usize = 60;

impl Emit<'_> {
    /// Loads what several of these triggers need, until [`Emit::share_no_more`].
    pub(super) fn share(&mut self, triggers: &[Trigger], alone: &[usize]) {
        let conditions: Vec<&Expr> = alone
            .iter()
            .filter_map(|index| triggers.get(*index)?.with.as_ref())
            .collect();
        let mut wanted: Vec<(Expr, usize)> = Vec::new();
        for condition in &conditions {
            for value in self.dear(condition) {
                match wanted.iter_mut().find(|(known, _)| *known == value) {
                    Some((_, rules)) => *rules += 1,
                    None => wanted.push((value, 1)),
                }
            }
        }
        wanted.retain(|(value, rules)| (rules - 1) * self.price_of(value) as usize >= WORTH);
        let always: Vec<Expr> = conditions
            .iter()
            .flat_map(|condition| self.dear(self.first_judged(condition)))
            .collect();
        wanted.retain(|(value, _)| always.contains(value));
        if wanted.is_empty() {
            return;
        }
        wanted.sort_by_key(|(_, rules)| std::cmp::Reverse(*rules));
        wanted.truncate(frame::SHARED_MAX);
        // The values of this hit may be parts of one another: all are loaded before any is found where it was put.
        self.frame_in_r1();
        self.asm.store(Size::B8, Reg::R10, slot::FRAME, Reg::R1);
        for (place, (value, rules)) in wanted.iter().enumerate() {
            self.asm.note(format!("a value for {rules} rules"));
            self.load_shared(value, place);
        }
        self.shared = wanted.into_iter().map(|(value, _)| value).collect();
    }

    /// From here on every value is loaded where it is needed.
    pub(super) fn share_no_more(&mut self) {
        self.shared.clear();
    }

    fn load_shared(&mut self, value: &Expr, place: usize) {
        if !matches!(value.ty, Type::Text { .. }) {
            self.value(value);
            self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::FRAME);
            self.asm.store(Size::B8, Reg::R2, shared_at(place), Reg::R1);
            return;
        }
        let [unreadable, done] = std::array::from_fn(|_| self.asm.label());
        self.read_for_condition(value, text_of(place), unreadable);
        self.asm.jump(done);
        self.asm.bind(unreadable);
        self.asm.mov(Reg::R0, -1);
        self.asm.bind(done);
        self.asm.load(Size::B8, Reg::R2, Reg::R10, slot::FRAME);
        self.asm.store(Size::B8, Reg::R2, shared_at(place), Reg::R0);
    }

    /// R1 = a value of the hit, where it is shared. Returns whether it is.
    pub(super) fn shared_value(&mut self, load: &Load, ty: Type) -> bool {
        let same = |value: &Expr| value.ty == ty && matches!(&value.node, Node::Load(of) if of == load);
        let Some(place) = self.shared.iter().position(same) else {
            return false;
        };
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm.load(Size::B8, Reg::R1, Reg::R1, shared_at(place));
        true
    }

    /// R0 = the length of a text with its NUL, where it is shared: it lies in the text slot that is returned. Uses R1.
    pub(super) fn shared_text(&mut self, expr: &Expr, unreadable: Label) -> Option<usize> {
        if self.shared.is_empty() {
            return None;
        }
        let expr = expr.without_spans();
        let place = self.shared.iter().position(|value| *value == expr)?;
        self.asm.load(Size::B8, Reg::R1, Reg::R10, slot::FRAME);
        self.asm.load(Size::B8, Reg::R0, Reg::R1, shared_at(place));
        self.asm.branch(Cond::Slt, Reg::R0, 0, unreadable);
        Some(text_of(place))
    }

    /// The values in a condition of which each takes a helper's call or more to load.
    fn dear(&self, expr: &Expr) -> Vec<Expr> {
        let mut found = Vec::new();
        self.add_dear(expr, &mut found);
        found
    }

    fn add_dear(&self, expr: &Expr, found: &mut Vec<Expr>) {
        match &expr.node {
            // The clock is read once as it is, and two texts that are both read at the hit are read side by side.
            Node::Load(Load::Time) => {}
            Node::TextEqual { left, right, .. } if literal(left).is_none() && literal(right).is_none() => {}
            Node::Load(_) | Node::Str { .. } => {
                let value = expr.without_spans();
                if self.calls_to_load(expr) && !found.contains(&value) {
                    found.push(value);
                }
            }
            _ => {
                for child in expr.children() {
                    self.add_dear(child, found);
                }
            }
        }
    }

    /// The part of a condition that is judged at every hit.
    fn first_judged<'e>(&self, expr: &'e Expr) -> &'e Expr {
        let all = match &expr.node {
            Node::Not(inner) => return self.first_judged(inner),
            Node::And(..) | Node::Or(..) => self.in_order(expr),
            _ => return expr,
        };
        all.first().map_or(expr, |first| self.first_judged(first))
    }
}

/// Where a shared integer is, or the length of a shared text.
fn shared_at(place: usize) -> i16 {
    frame::SHARED + 8 * place as i16
}

/// The text slot of the frame where a shared text lies: one of the last, which the record has for its texts only later.
fn text_of(place: usize) -> usize {
    frame::TEXTS_MAX - 1 - place
}
