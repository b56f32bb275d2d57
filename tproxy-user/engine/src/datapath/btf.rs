//! Where the running kernel keeps what it knows of a packet's connection: programs read it there, and the kernel's own
//! description of its types (BTF, Documentation/bpf/btf.rst) says where that is.

use std::{fs, path::Path};

/// Offsets, in bytes; all 0 where they are not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ConnectionOffsets {
    /// Of the word in a packet that leads to its connection.
    pub(super) of_packet: u32,
    /// Of the word in a connection that tells what NAT does with it.
    pub(super) status: u32,
}

impl ConnectionOffsets {
    /// Of the running kernel.
    pub(super) fn of_this_kernel() -> Self {
        Self::find().unwrap_or_default()
    }

    fn find() -> Option<Self> {
        const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
        const MODULE: &str = "/sys/kernel/btf/nf_conntrack";
        if is_locked_down() {
            return None;
        }
        let bytes = fs::read(VMLINUX).ok()?;
        let kernel = Types::read(&bytes, None)?;
        let of_packet = kernel.offset("sk_buff", "_nfct")?;
        let connection = ("nf_conn", "status");
        let status = kernel.offset(connection.0, connection.1).or_else(|| {
            // Built as a module, it adds its own types to those of the kernel.
            let bytes = fs::read(Path::new(MODULE)).ok()?;
            Types::read(&bytes, Some(&kernel))?.offset(connection.0, connection.1)
        })?;
        Some(Self { of_packet, status })
    }
}

/// Whether programs must not read the kernel's memory, `kernel_lockdown(7)`: they would not be loaded.
fn is_locked_down() -> bool {
    fs::read_to_string("/sys/kernel/security/lockdown").is_ok_and(|mode| mode.contains("[confidentiality]"))
}

/// The types of the kernel, or of a module.
struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
    /// Of the kernel, where these are a module's; their offsets go on from there.
    base: Option<&'a [u8]>,
}

const STRUCT: u32 = 4;

impl<'a> Types<'a> {
    fn read(bytes: &'a [u8], base: Option<&'a Types<'_>>) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic: [u8; 2] = bytes.get(..2)?.try_into().ok()?;
        if u16::from_ne_bytes(magic) != MAGIC {
            return None;
        }
        let [header, types, types_length, names, names_length] =
            [4, 8, 12, 16, 20].map(|at| word(bytes, at).map(|word| word as usize));
        let section = |start: usize, length: usize| bytes.get(header? + start..header? + start + length);
        Some(Self {
            types: section(types?, types_length?)?,
            names: section(names?, names_length?)?,
            base: base.map(|base| base.names),
        })
    }

    /// Where a member of a structure begins that has members with names.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        const HEADER: usize = 12;
        const MEMBER: usize = 12;
        let mut at = 0;
        while at < self.types.len() {
            let [name, info] = [word(self.types, at)?, word(self.types, at + 4)?];
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let rest = at + HEADER;
            if kind == STRUCT && members > 0 && self.is_called(name, structure) {
                let found = (0..members)
                    .map(|number| rest + number * MEMBER)
                    .find(|at| word(self.types, *at).is_some_and(|name| self.is_called(name, member)))?;
                let bits = word(self.types, found + 8)?;
                // With bit-fields, the upper byte is how long they are.
                let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
                return Some(bits / 8);
            }
            at = rest + further(kind, members)?;
        }
        None
    }

    fn is_called(&self, offset: u32, name: &str) -> bool {
        let base = self.base.unwrap_or_default();
        let at = offset as usize;
        let from = if at < base.len() { base.get(at..) } else { self.names.get(at - base.len()..) };
        from.and_then(|from| from.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// How long what follows a type's header is.
const fn further(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => members * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => members * 8,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct a { u32 x; }` and `struct sk_buff { ...; _nfct at byte 40 }`, as the kernel writes them.
    fn described(names: &[u8], types: &[u32]) -> Vec<u8> {
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len() as u32, types.len() as u32, names.len() as u32];
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend(lengths.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn a_member_is_found_in_the_kernel_and_in_a_module() {
        let kernel = described(
            b"\0int\0sk_buff\0len\0_nfct\0",
            &[
                // An INT, then a declaration without members, then the structure, of which one member is a bit-field.
                1,
                1 << 24,
                4,
                32,
                5,
                4 << 24,
                0,
                5,
                1 << 31 | 4 << 24 | 2,
                48,
                13,
                1,
                3 << 24,
                17,
                1,
                320,
            ],
        );
        let kernel = Types::read(&kernel, None).unwrap();
        assert_eq!(kernel.offset("sk_buff", "_nfct"), Some(40));
        assert_eq!(kernel.offset("sk_buff", "status"), None);
        assert_eq!(kernel.offset("sk_buf", "_nfct"), None);
        let own = kernel.names.len() as u32;
        let module = described(b"nf_conn\0status\0", &[own, 4 << 24 | 1, 8, own + 8, 1, 1024]);
        let module = Types::read(&module, Some(&kernel)).unwrap();
        assert_eq!(module.offset("nf_conn", "status"), Some(128));
        assert!(Types::read(b"no types at all, but long enough", None).is_none());
    }

    #[test]
    fn this_kernel_says_where() {
        let found = ConnectionOffsets::of_this_kernel();
        assert!(found.of_packet > 0 && found.status > 0, "{found:?}");
    }
}
