//! Takes the debug sections out of an object.

use anyhow::{Context, Result};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// The object without DWARF. BTF stays: it describes the maps, and gives the verifier's log its source lines.
pub(super) fn debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        // LLVM keeps the names of sections with those of symbols; the writer wants a section for each.
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    builder.delete_orphan_symbols();
    builder.delete_orphan_relocations();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("the stripped object")?;
    Ok(stripped)
}
