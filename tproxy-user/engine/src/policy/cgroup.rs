//! cgroups as rules name them (a directory) and as the kernel does (an id and a depth).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tproxy_common::{
    abi::Unrestricted,
    rule::{RuleSet, SetId},
};

use super::Sets;

/// Deepest cgroup that a rule may name; the datapath asks for each depth that occurs.
const MAX_DEPTH: usize = 31;

/// A cgroup of the v2 hierarchy: the ids from the root's child down to itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    path: Vec<u64>,
}

/// Why a path is no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The v2 hierarchy is not mounted.
    #[error(
        "a rule names a cgroup, and the cgroup v2 hierarchy is not mounted: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NotMounted,
    /// Not below the mount point.
    #[error("cgroup '{path}' is not below {mount}, where the cgroup v2 hierarchy is mounted")]
    Outside {
        /// What the user wrote.
        path: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
    /// The root, in which every process is.
    #[error("cgroup '{0}' is the root of the hierarchy, which holds every process; leave it out")]
    Root(PathBuf),
    /// Deeper than the datapath looks.
    #[error("cgroup '{0}' is more than {MAX_DEPTH} levels deep")]
    TooDeep(PathBuf),
    /// Cannot be read.
    #[error("cgroup '{0}': {1}")]
    Unreadable(PathBuf, #[source] io::Error),
}

impl Cgroup {
    /// Resolves a directory, absolute or relative to the root of the hierarchy.
    ///
    /// # Errors
    /// [`CgroupError`], which names the path.
    pub fn resolve(path: &Path) -> Result<Self, CgroupError> {
        let mount = mount_point().ok_or(CgroupError::NotMounted)?;
        let absolute = below(&mount, path);
        let unreadable = |error| CgroupError::Unreadable(path.to_owned(), error);
        let absolute = absolute.canonicalize().map_err(unreadable)?;
        let below = absolute
            .strip_prefix(&mount)
            .map_err(|_| CgroupError::Outside { path: path.to_owned(), mount: mount.clone() })?;
        let mut directory = mount.clone();
        let mut ids = Vec::new();
        for name in below {
            directory.push(name);
            // The id that `bpf_skb_cgroup_id` gives is the directory's inode number (kernfs).
            ids.push(fs::metadata(&directory).map_err(unreadable)?.ino());
        }
        if ids.len() > MAX_DEPTH {
            return Err(CgroupError::TooDeep(path.to_owned()));
        }
        if ids.is_empty() {
            return Err(CgroupError::Root(path.to_owned()));
        }
        Ok(Self { path: ids })
    }

    /// This cgroup and those above it, from the deepest up.
    pub fn lineage(&self) -> impl Iterator<Item = Self> {
        (1..=self.path.len()).rev().map(|depth| Self { path: self.path[..depth].to_vec() })
    }

    /// The cgroup that the calling process is in; none, if that is the root.
    ///
    /// # Errors
    /// [`CgroupError`], when the hierarchy cannot be read.
    pub fn of_this_process() -> Result<Option<Self>, CgroupError> {
        let own = Path::new("/proc/self/cgroup");
        let text = fs::read_to_string(own).map_err(|error| CgroupError::Unreadable(own.to_owned(), error))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        match Self::resolve(Path::new(path)) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(CgroupError::Root(_) | CgroupError::NotMounted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the calling process a member of the cgroup at `path`, absolute or relative to the root of the hierarchy.
    ///
    /// # Errors
    /// [`CgroupError`], which names the path.
    pub fn join(path: &Path) -> Result<(), CgroupError> {
        let mount = mount_point().ok_or(CgroupError::NotMounted)?;
        fs::write(below(&mount, path).join("cgroup.procs"), std::process::id().to_string())
            .map_err(|error| CgroupError::Unreadable(path.to_owned(), error))
    }

    /// The cgroup with these ids from the root's child down.
    #[cfg(test)]
    pub(super) fn of(path: &[u64]) -> Self {
        Self { path: path.to_vec() }
    }

    /// The kernel's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.path[self.path.len() - 1]
    }

    /// Levels below the root.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.path.len() as u32
    }
}

/// The table of cgroups: a deeper one's set includes the rules of those above it, since the deepest match decides.
pub(super) fn compile(rules: &[Vec<Cgroup>], sets: &mut Sets) -> BTreeMap<Cgroup, SetId> {
    let mut named: BTreeMap<&[u64], RuleSet> = BTreeMap::new();
    for (rule, cgroups) in (0..).zip(rules) {
        for cgroup in cgroups {
            named.entry(&cgroup.path).or_insert(RuleSet::EMPTY).insert(rule);
        }
    }
    let base = *sets.get(Unrestricted::Cgroup as SetId);
    let with_those_above = |path: &[u64]| {
        let mut set = base;
        (1..=path.len()).filter_map(|depth| named.get(&path[..depth])).for_each(|above| set.extend(above));
        set
    };
    let compiled =
        named.keys().map(|path| (Cgroup { path: path.to_vec() }, sets.intern(with_those_above(path))));
    compiled.collect()
}

/// A path as users write it: absolute, or relative to the root of the hierarchy, with or without the slash.
fn below(mount: &Path, path: &Path) -> PathBuf {
    if path.starts_with(mount) { path.to_owned() } else { mount.join(path.strip_prefix("/").unwrap_or(path)) }
}

fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| match fields[..] {
        [_, mount, "cgroup2", ..] => Some(PathBuf::from(mount)),
        _ => None,
    })
}
