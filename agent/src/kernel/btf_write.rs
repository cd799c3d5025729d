//! BTF of our own: types in, the bytes that the kernel takes out.
//!
//! What the kernel has to know of a program's functions to verify each by itself: what their arguments are. The format:
//! Documentation/bpf/btf.rst of the kernel.

use lkst_probes::asm::Signature;

use super::btf::{Id, Kind};

/// Writes BTF, a type after another.
#[derive(Debug)]
pub(crate) struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl Writer {
    /// Without types.
    #[must_use]
    pub(crate) fn new() -> Writer {
        Writer {
            types: Vec::new(),
            strings: vec![0],
            count: 0,
        }
    }

    /// A name's place among the strings.
    pub(crate) fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    /// A type: `struct btf_type` and the words that follow it. `word` is its size or the type that it is about.
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        name: &str,
        vlen: usize,
        flag: bool,
        word: u32,
        rest: &[u32],
    ) -> Id {
        let name = self.name(name);
        let info = vlen as u32 | ((kind as u32) << 24) | (u32::from(flag) << 31);
        for value in [name, info, word].iter().chain(rest) {
            self.types.extend_from_slice(&value.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    /// An integer; `encoding` as `BTF_INT_SIGNED` and its kin.
    pub(crate) fn int(&mut self, name: &str, bytes: u32, encoding: u32) -> Id {
        let bits = (encoding << 24) | (bytes * 8);
        self.add(Kind::Int, name, 0, false, bytes, &[bits])
    }

    /// A pointer.
    pub(crate) fn pointer(&mut self, to: Id) -> Id {
        self.add(Kind::Ptr, "", 0, false, to, &[])
    }

    /// A function that anybody may call, so that the verifier takes its arguments for unknown. Returns an integer.
    pub(crate) fn function(&mut self, name: &str, returns: Id, parameters: &[(&str, Id)]) -> Id {
        /// `BTF_FUNC_GLOBAL`
        const GLOBAL: usize = 1;
        let mut words = Vec::new();
        for (name, ty) in parameters {
            words.extend([self.name(name), *ty]);
        }
        let prototype = self.add(Kind::FuncProto, "", parameters.len(), false, returns, &words);
        self.add(Kind::Func, name, GLOBAL, false, prototype, &[])
    }

    /// All of it.
    #[must_use]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&0xEB9Fu16.to_ne_bytes());
        out.extend_from_slice(&[1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}

/// The types of a program's functions, and for each where it begins and its type, as `struct bpf_func_info` has it; first
/// the main one, named `main`.
#[must_use]
pub(crate) fn of_functions(main: &str, functions: &[(usize, Signature)]) -> (Vec<u8>, Vec<[u32; 2]>) {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let mut types = Writer::new();
    let number = types.int("u64", 8, 0);
    let context = types.pointer(0);
    let mut info = vec![[0, types.function(main, number, &[("ctx", context)])]];
    for (at, signature) in functions {
        let mut parameters = Vec::new();
        for bytes in signature.memory {
            let memory = types.add(Kind::Struct, "lkst_memory", 0, false, *bytes, &[]);
            parameters.push(types.pointer(memory));
        }
        parameters.resize(parameters.len() + signature.numbers, number);
        let parameters: Vec<(&str, Id)> = NAMES.into_iter().zip(parameters).collect();
        info.push([*at as u32, types.function(signature.name, number, &parameters)]);
    }
    (types.bytes(), info)
}

#[cfg(test)]
mod tests {
    use super::super::btf::{Btf, Type};
    use super::*;

    #[test]
    fn functions_are_described_as_the_kernel_reads_them() -> anyhow::Result<()> {
        let takes = Signature {
            name: "takes",
            memory: &[64, 8],
            numbers: 1,
        };
        let (bytes, info) = of_functions("first", &[(7, takes)]);
        let btf = Btf::parse(bytes)?;
        assert_eq!(info.iter().map(|[at, _]| *at).collect::<Vec<_>>(), [0, 7]);
        let expected = [
            ("first", "void *"),
            ("takes", "struct lkst_memory *, struct lkst_memory *, u64"),
        ];
        for ([_, id], (name, arguments)) in info.iter().zip(expected) {
            let function = btf.ty(*id).filter(|ty| ty.kind == Kind::Func && ty.name == name);
            let prototype = function
                .and_then(|ty| ty.target())
                .ok_or_else(|| anyhow::anyhow!("no function {name}"))?;
            let declared = prototype
                .parameters()
                .filter_map(|(_, ty)| btf.ty(ty).map(Type::declared));
            assert_eq!(declared.collect::<Vec<_>>().join(", "), arguments);
        }
        let sizes: Vec<_> = btf
            .types()
            .filter(|ty| ty.kind == Kind::Struct)
            .map(Type::size)
            .collect();
        assert_eq!(sizes, [Some(64), Some(8)]);
        Ok(())
    }
}
