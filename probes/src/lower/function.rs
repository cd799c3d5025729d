//! Functions: what many firings of a part do in the same way, once in the program.
//!
//! In: calls of them. Out: their text behind the main function's. The verifier looks at a function once for a program and
//! not at every way to it: loops that race with other CPUs, a few hundred instructions to it at each of hundreds of rules,
//! would be most of what loading takes. They have no slots on the stack, and R6 to R9 are theirs.
//!
//! A hit that fires nothing calls nothing: where most hits pass, the same text lies in the way itself.

use super::{Emit, area};
use crate::asm::{Cond, Reg, Signature};
use crate::layout::{control, head};

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Function {
    /// Takes a place in a ring: `reserve.rs`.
    Claim,
    /// Takes one firing from a limit: `fire.rs`.
    Limit,
    /// Makes the change that an area holds, which has no switch: `act.rs`.
    Change,
    /// Makes the change that an area holds.
    ChangeOrSwitch,
}

impl Function {
    fn signature(self) -> Signature {
        match self {
            Function::Claim => Signature {
                name: "claim",
                memory: &[head::BYTES as u32],
                numbers: 3,
            },
            Function::Limit => Signature {
                name: "limit",
                memory: &[8],
                numbers: 3,
            },
            Function::Change | Function::ChangeOrSwitch => Signature {
                name: match self {
                    Function::Change => "change",
                    _ => "change_or_switch",
                },
                memory: &[area::HELD as u32, control::BLOCK_BYTES],
                numbers: 1,
            },
        }
    }
}

impl Emit<'_> {
    /// Calls a function: arguments in R1 to R5, the result in R0, R1 to R5 lost. 0 is what it returns where it has failed.
    pub(super) fn call_function(&mut self, function: Function) {
        let functions = self.functions.get_or_insert_default();
        let label = *functions.entry(function).or_insert_with(|| self.asm.label());
        self.asm.call_function(label);
    }

    /// Behind the main function: those that it calls.
    pub(super) fn functions(&mut self) {
        for (function, label) in self.functions.take().unwrap_or_default() {
            let signature = function.signature();
            self.asm.function(label, signature);
            let failed = self.asm.label();
            for pointer in [Reg::R1, Reg::R2].into_iter().take(signature.memory.len()) {
                self.asm.branch(Cond::Eq, pointer, 0, failed);
            }
            match function {
                Function::Claim => self.claim_function(failed),
                Function::Limit => self.limit_function(failed),
                Function::Change => self.change_function(false, failed),
                Function::ChangeOrSwitch => self.change_function(true, failed),
            }
            self.asm.bind(failed);
            self.asm.mov(Reg::R0, 0);
            self.asm.exit();
        }
    }
}
