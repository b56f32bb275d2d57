//! The digest of the sources that the committed eBPF object was built from.
//!
//! One file for two users: the build script, which checks it, and `xtask build-ebpf`, which writes it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Everything below these, and these, decides what the object holds.
pub(crate) const SOURCES: [&str; 4] =
    ["tproxy-common/Cargo.toml", "tproxy-common/src", "tproxy-ebpf/Cargo.toml", "tproxy-ebpf/src"];

/// Pins the versions of the crates that are compiled into the object.
pub(crate) const LOCK: &str = "Cargo.lock";

/// SHA-256, in hexadecimal, over path, length and content of every source and over the versions of the bpf crates.
///
/// # Errors
/// When a source cannot be read.
pub(crate) fn of_sources(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&workspace.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let content = fs::read(file)?;
        let path = file.strip_prefix(workspace).unwrap_or(file).to_string_lossy();
        add(&mut hash, path.as_bytes(), &content);
    }
    for (name, version) in bpf_crates(&fs::read_to_string(workspace.join(LOCK))?) {
        add(&mut hash, name.as_bytes(), version.as_bytes());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digest in the text of a digest file: `sources = HEX` on a line of its own.
pub(crate) fn recorded(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("sources = "))
}

/// Lengths go first, so that no two lists of files look alike to the hash.
fn add(hash: &mut Sha256, name: &[u8], content: &[u8]) {
    for part in [name, content] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else if !path.ends_with("tests.rs") {
        // Files of this name hold host tests, which never reach the object.
        files.push(path.to_owned());
    }
    Ok(())
}

/// Name and version of the crates in the object, in the lock file's order (which is that of their names).
fn bpf_crates(lock: &str) -> impl Iterator<Item = (&str, &str)> {
    lock.split("[[package]]").filter_map(|package| {
        let field = |name: &str| {
            package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'))
        };
        let (name, version) = (field("name")?, field("version")?);
        let in_object =
            ["aya-ebpf", "aya-log-common", "aya-log-ebpf"].iter().any(|start| name.starts_with(start));
        in_object.then_some((name, version))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace with one file a source, removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("tproxy-digest-{name}-{}", std::process::id()));
            let tree = Self(root);
            tree.write("tproxy-common/Cargo.toml", "a");
            tree.write("tproxy-common/src/lib.rs", "b");
            tree.write("tproxy-ebpf/Cargo.toml", "c");
            tree.write("tproxy-ebpf/src/main.rs", "d");
            tree.lock("aya-ebpf", "0.2.1");
            tree
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn lock(&self, name: &str, version: &str) {
            self.write(LOCK, &format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n"));
        }

        fn digest(&self) -> String {
            of_sources(&self.0).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_place_of_the_tree_does_not_matter() {
        let (here, there) = (Tree::new("here"), Tree::new("there"));
        assert_eq!(here.digest(), there.digest());
        assert_eq!(here.digest().len(), 64);
    }

    #[test]
    fn content_names_and_versions_matter() {
        let tree = Tree::new("change");
        let mut seen = vec![tree.digest()];
        tree.write("tproxy-ebpf/src/main.rs", "e");
        seen.push(tree.digest());
        tree.write("tproxy-ebpf/src/deep/er.rs", "");
        seen.push(tree.digest());
        fs::rename(tree.0.join("tproxy-ebpf/src/deep/er.rs"), tree.0.join("tproxy-ebpf/src/deep/est.rs"))
            .unwrap();
        seen.push(tree.digest());
        tree.lock("aya-ebpf", "0.2.2");
        seen.push(tree.digest());
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn host_tests_and_host_crates_do_not_matter() {
        let tree = Tree::new("same");
        tree.lock("tokio", "1.0.0");
        let before = tree.digest();
        tree.lock("tokio", "1.0.1");
        tree.write("tproxy-common/src/policy/tests.rs", "x");
        assert_eq!(tree.digest(), before);
    }

    #[test]
    fn bytes_moved_between_files_are_a_change() {
        let tree = Tree::new("moved");
        tree.write("tproxy-common/src/a.rs", "12");
        tree.write("tproxy-common/src/b.rs", "3");
        let before = tree.digest();
        tree.write("tproxy-common/src/a.rs", "1");
        tree.write("tproxy-common/src/b.rs", "23");
        assert_ne!(tree.digest(), before);
    }

    #[test]
    fn the_record_is_found_among_other_lines() {
        assert_eq!(recorded("compiler = rustc 1\nsources = ab\n"), Some("ab"));
        assert_eq!(recorded("garbage"), None);
    }
}
