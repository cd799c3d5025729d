//! The arguments of tracepoints, by BTF.
//!
//! In: BTF and a tracepoint's name. Out: names and types of its arguments.
//!
//! Names are those of the parameters of the function `__probestub_X` (6.4 and later) or `__traceiter_X`; the typedef
//! `btf_trace_X` has types only. The first parameter is always `void *__data`, which no program sees.

use lkst_rules::schema::Argument;

use super::btf::{Btf, Id, Kind};

/// Arguments that may be no pointer to their structure: (tracepoint, argument). From `raw_tp_null_args` of
/// kernel/bpf/btf.c, 6.14, whose kernels refuse a plain load through them, and from TP_fast_assign where that tests for
/// null or, as for signals, for small numbers. Kernels without that table take such a load, and fault.
const UNTRUSTED: &str = include_str!("untrusted_arguments.txt");

/// An argument of a tracepoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedArgument {
    /// Its name; `arg0`, `arg1`, … where only types are known.
    pub name: String,
    /// Its type.
    pub ty: Id,
    /// False where it may be null, an error or a small number instead of a pointer.
    pub trusted: bool,
}

/// The arguments of a tracepoint, in order. `None` where BTF does not know it.
#[must_use]
pub fn of_tracepoint(btf: &Btf, tracepoint: &str) -> Option<Vec<TypedArgument>> {
    let function = |prefix: &str| btf.find(Kind::Func, &format!("{prefix}{tracepoint}"))?.target();
    let prototype = function("__probestub_")
        .or_else(|| function("__traceiter_"))
        .or_else(|| {
            let typedef = btf.find(Kind::Typedef, &format!("btf_trace_{tracepoint}"))?;
            typedef.target()?.strip()?.target()
        })?;
    if prototype.kind != Kind::FuncProto {
        return None;
    }
    let arguments = prototype
        .parameters()
        .skip(1)
        .enumerate()
        .map(|(index, (name, ty))| {
            // The kernel marks some parameters so, for the verifier.
            let plain = name.strip_suffix("__nullable").unwrap_or(name);
            TypedArgument {
                name: if plain.is_empty() {
                    format!("arg{index}")
                } else {
                    plain.to_owned()
                },
                ty,
                trusted: plain == name && !is_untrusted(tracepoint, name),
            }
        });
    Some(arguments.collect())
}

/// The arguments as a schema shows them.
#[must_use]
pub fn shown(btf: &Btf, arguments: &[TypedArgument]) -> Vec<Argument> {
    let declared = |ty| btf.ty(ty).map_or_else(|| "?".to_owned(), |ty| ty.declared());
    arguments
        .iter()
        .map(|a| Argument {
            name: a.name.clone(),
            declared: declared(a.ty),
        })
        .collect()
}

fn is_untrusted(tracepoint: &str, argument: &str) -> bool {
    UNTRUSTED
        .lines()
        .any(|line| line.split_once(' ') == Some((tracepoint, argument)))
}
