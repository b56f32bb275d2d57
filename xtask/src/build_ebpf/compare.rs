//! Whether two objects give the kernel the same programs and maps.
//!
//! Compared are the sections that are loaded (instructions, constants, licence), their relocations and symbols, and
//! the maps as the loader understands them. Debug information is not: it tells of the compiler's machine.

use std::{collections::BTreeMap, ops::Range};

use anyhow::{Context, Result};
use object::{Object as _, ObjectSection, ObjectSymbol, RelocationTarget, SectionFlags, elf};

/// What differs between the two, a line each; none when they are the same to the kernel.
pub(super) fn differences(committed: &[u8], built: &[u8]) -> Result<Vec<String>> {
    let committed = Image::parse(committed).context("the committed object")?;
    let built = Image::parse(built).context("the object just built")?;
    let sections = pairs(&committed.sections, &built.sections).filter_map(|(name, committed, built)| {
        let difference = match (committed, built) {
            (Some(committed), Some(built)) => committed.difference(built)?,
            (committed, _) => only_in(committed.is_some()),
        };
        Some(format!("section {name}: {difference}"))
    });
    let maps =
        pairs(&committed.maps, &built.maps).filter_map(|(name, committed, built)| match (committed, built) {
            (Some(committed), Some(built)) if committed == built => None,
            (Some(committed), Some(built)) => Some(format!("map {name}: {committed}, now {built}")),
            (committed, _) => Some(format!("map {name}: {}", only_in(committed.is_some()))),
        });
    Ok(sections.chain(maps).collect())
}

fn only_in(committed: bool) -> String {
    format!("only in the {} object", if committed { "committed" } else { "new" })
}

/// All keys of both, with the values on either side.
fn pairs<'a, V>(
    left: &'a BTreeMap<String, V>,
    right: &'a BTreeMap<String, V>,
) -> impl Iterator<Item = (&'a String, Option<&'a V>, Option<&'a V>)> {
    let only_right = right.keys().filter(|key| !left.contains_key(*key));
    left.keys().chain(only_right).map(|key| (key, left.get(key), right.get(key)))
}

/// What the kernel is given.
struct Image {
    sections: BTreeMap<String, Section>,
    /// Type, sizes and flags in words, which is all that is done with them.
    maps: BTreeMap<String, String>,
}

#[derive(PartialEq)]
struct Section {
    bytes: Vec<u8>,
    /// By offset: the symbol or the place that is put in.
    relocations: BTreeMap<u64, String>,
    /// Programs, functions, maps and constants in this section.
    symbols: BTreeMap<String, Range<u64>>,
}

impl Image {
    fn parse(object: &[u8]) -> Result<Self> {
        let elf = object::read::elf::ElfFile64::<object::Endianness>::parse(object)?;
        let mut sections = BTreeMap::new();
        for section in elf.sections() {
            if let SectionFlags::Elf { sh_flags } = section.flags()
                && sh_flags & u64::from(elf::SHF_ALLOC) != 0
            {
                sections.insert(section.name()?.to_owned(), Section::parse(&elf, &section)?);
            }
        }
        let loaded = aya_obj::Object::parse(object)?;
        let maps = loaded.maps.iter().map(|(name, map)| {
            let (kind, key, value) = (map.map_type(), map.key_size(), map.value_size());
            let (entries, flags, pinning) = (map.max_entries(), map.map_flags(), map.pinning());
            let data = map.data().len();
            let words = format!(
                "type {kind}, key {key} B, value {value} B, {entries} entries, flags {flags:#x}, {pinning:?}, {data} B of data"
            );
            (name.clone(), words)
        });
        Ok(Self { sections, maps: maps.collect() })
    }
}

type Elf<'data> = object::read::elf::ElfFile64<'data, object::Endianness>;

impl Section {
    fn parse<'data>(elf: &Elf<'data>, section: &impl ObjectSection<'data>) -> Result<Self> {
        let symbols = elf.symbols().filter(|symbol| symbol.section_index() == Some(section.index()));
        let symbols = symbols.filter(|symbol| symbol.is_global()).map(|symbol| {
            Ok((symbol.name()?.to_owned(), symbol.address()..symbol.address() + symbol.size()))
        });
        let relocations = section.relocations().map(|(offset, relocation)| {
            let target = match relocation.target() {
                RelocationTarget::Symbol(index) => place(elf, index)?,
                other => format!("{other:?}"),
            };
            Ok((offset, format!("{target} {:?} {:#x}", relocation.flags(), relocation.addend())))
        });
        Ok(Self {
            bytes: section.data()?.to_vec(),
            relocations: relocations.collect::<Result<_>>()?,
            symbols: symbols.collect::<Result<_>>()?,
        })
    }

    /// Nothing when they are equal.
    fn difference(&self, other: &Self) -> Option<String> {
        if self == other {
            return None;
        }
        let culprits: Vec<_> = pairs(&self.symbols, &other.symbols)
            .filter(|(_, left, right)| match (left, right) {
                (Some(left), Some(right)) => self.part(left) != other.part(right),
                _ => true,
            })
            .map(|(name, ..)| name.as_str())
            .collect();
        let what = match (self.bytes.len(), other.bytes.len(), self.first_difference(other)) {
            (left, right, _) if left != right => format!("{left} bytes, now {right}"),
            (.., Some(offset)) => format!("differs at offset {offset:#x}"),
            (.., None) => "other symbols".to_owned(),
        };
        let culprits =
            if culprits.is_empty() { String::new() } else { format!(", in {}", culprits.join(", ")) };
        Some(what + &culprits)
    }

    /// Bytes of a symbol, and what is put into them, counted from its start.
    fn part(&self, range: &Range<u64>) -> (&[u8], Vec<(u64, &String)>) {
        let bytes = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let bytes = bytes.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or_default();
        let relocations = self.relocations.range(range.clone());
        (bytes, relocations.map(|(offset, target)| (offset - range.start, target)).collect())
    }

    fn first_difference(&self, other: &Self) -> Option<u64> {
        let byte = self.bytes.iter().zip(&other.bytes).position(|(left, right)| left != right);
        let places = self.relocations.keys().chain(other.relocations.keys());
        let relocation = places.filter(|at| self.relocations.get(at) != other.relocations.get(at)).min();
        byte.map(|at| at as u64).into_iter().chain(relocation.copied()).min()
    }
}

/// A symbol by its section and address: names of local symbols carry hashes.
fn place(elf: &Elf<'_>, index: object::SymbolIndex) -> Result<String> {
    let symbol = elf.symbol_by_index(index)?;
    let section = match symbol.section_index() {
        Some(index) => elf.section_by_index(index)?.name()?.to_owned(),
        None => format!("undefined {}", symbol.name()?),
    };
    Ok(format!("{section}+{:#x}", symbol.address()))
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
        SymbolScope,
        write::{Object, Relocation, StandardSegment, Symbol, SymbolSection},
    };

    use super::*;

    /// Two instructions a program: `r0 = N; exit`.
    fn program(value: u8) -> [u8; 16] {
        [0xb7, 0, 0, 0, value, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]
    }

    /// An object with a map, a program for each of `programs`, and a reference to the map from the first.
    fn object(programs: &[(&str, u8)], map_entries: u32, debug: &[u8]) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let add = |object: &mut Object<'_>, section, name: &str, kind, content: &[u8]| {
            let value = object.append_section_data(section, content, 8);
            object.add_symbol(Symbol {
                name: name.into(),
                value,
                size: content.len() as u64,
                kind,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            })
        };
        let segment = object.segment_name(StandardSegment::Data).to_vec();
        let maps = object.add_section(segment.clone(), b"maps".to_vec(), SectionKind::Data);
        // Type hash, key and value of four bytes, no flags, no id, not pinned.
        let definition: Vec<u8> =
            [1, 4, 4, map_entries, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        let map = add(&mut object, maps, "MAP", SymbolKind::Data, &definition);
        let classifier = object.add_section(segment.clone(), b"classifier".to_vec(), SectionKind::Text);
        for (name, value) in programs {
            add(&mut object, classifier, name, SymbolKind::Text, &program(*value));
        }
        let flags = RelocationFlags::Elf { r_type: elf::R_BPF_64_64 };
        object.add_relocation(classifier, Relocation { offset: 0, symbol: map, addend: 0, flags }).unwrap();
        let info = object.add_section(segment, b".debug_info".to_vec(), SectionKind::Debug);
        object.append_section_data(info, debug, 1);
        object.write().unwrap()
    }

    fn compared(left: &[u8], right: &[u8]) -> Vec<String> {
        differences(left, right).unwrap()
    }

    #[test]
    fn debug_information_makes_no_difference() {
        let here = object(&[("ingress", 1)], 16, b"/home/a");
        let there = object(&[("ingress", 1)], 16, b"/somewhere/else");
        assert_ne!(here, there);
        assert_eq!(compared(&here, &there), [""; 0]);
    }

    #[test]
    fn stripping_takes_debug_sections_and_nothing_else() {
        let whole = object(&[("ingress", 1), ("egress", 2)], 16, b"/home/a");
        let stripped = super::super::strip::debug_sections(&whole).unwrap();
        assert_eq!(compared(&whole, &stripped), [""; 0]);
        let holds = |object: &[u8]| object.windows(7).any(|bytes| bytes == b"/home/a");
        assert!(holds(&whole) && !holds(&stripped));
    }

    #[test]
    fn a_changed_instruction_names_its_program() {
        let committed = object(&[("ingress", 1), ("egress", 2)], 16, b"");
        let built = object(&[("ingress", 1), ("egress", 3)], 16, b"");
        assert_eq!(compared(&committed, &built), ["section classifier: differs at offset 0x14, in egress"]);
    }

    #[test]
    fn a_further_program_is_named() {
        let committed = object(&[("ingress", 1)], 16, b"");
        let built = object(&[("ingress", 1), ("egress", 2)], 16, b"");
        assert_eq!(compared(&committed, &built), ["section classifier: 16 bytes, now 32, in egress"]);
    }

    #[test]
    fn a_renamed_program_is_named() {
        let committed = object(&[("ingress", 1)], 16, b"");
        let built = object(&[("ingresses", 1)], 16, b"");
        assert_eq!(
            compared(&committed, &built),
            ["section classifier: other symbols, in ingress, ingresses"]
        );
    }

    #[test]
    fn a_changed_map_is_told_in_words() {
        let differences = compared(&object(&[("ingress", 1)], 16, b""), &object(&[("ingress", 1)], 32, b""));
        assert_eq!(differences[0], "section maps: differs at offset 0xc, in MAP");
        assert!(
            differences[1].starts_with("map MAP: ") && differences[1].contains("32 entries"),
            "{differences:?}"
        );
    }

    #[test]
    fn a_relocation_is_part_of_its_program() {
        let committed = object(&[("ingress", 1)], 16, b"");
        let parse = |object: &[u8]| Image::parse(object).unwrap().sections.remove("classifier").unwrap();
        let (left, mut right) = (parse(&committed), parse(&committed));
        assert_eq!(left.difference(&right), None);
        right.relocations.insert(8, "elsewhere".into());
        assert_eq!(left.difference(&right).unwrap(), "differs at offset 0x8, in ingress");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(differences(b"", &object(&[], 16, b"")).is_err());
    }
}
