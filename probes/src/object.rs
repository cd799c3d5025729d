//! A program → the ELF object that aya loads.
//!
//! In: instruction bytes with map file descriptors in place, and how the program attaches. Out: an object with the
//! sections `license` and the program's own, one symbol, no maps, no relocations.
//!
//! The licence string is the kernel's word for "may call GPL-only helpers"; it says nothing of lkst's own licence.

use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// The object of a program named `symbol` in the ELF section `section`, such as `tp_btf/sched_switch`.
///
/// # Errors
/// From the ELF writer.
pub fn object(section: &str, symbol: &str, text: &[u8]) -> Result<Vec<u8>, object::write::Error> {
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = elf.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    elf.append_section_data(license, b"GPL\0", 1);
    let id = elf.add_section(Vec::new(), section.as_bytes().to_vec(), SectionKind::Text);
    elf.append_section_data(id, text, 8);
    elf.add_symbol(Symbol {
        name: symbol.as_bytes().to_vec(),
        value: 0,
        size: text.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(id),
        flags: SymbolFlags::None,
    });
    elf.write()
}
