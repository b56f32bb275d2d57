//! cgroups as rules name them (a directory, a pattern, a unit of systemd, a container) and as the kernel does (an id and a
//! depth).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use tproxy_common::{
    abi::Unrestricted,
    rule::{RuleSet, SetId},
};

use super::Sets;
use crate::pattern;

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
    /// Too little of a container's id.
    #[error(
        "cgroup '{0}' needs at least {CONTAINER_ID} characters of the container's id, as `docker ps` shows"
    )]
    ShortId(PathBuf),
    /// Cannot be read.
    #[error("cgroup '{0}': {1}")]
    Unreadable(PathBuf, #[source] io::Error),
}

/// What there is at the moment of what a rule names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundCgroups {
    /// The cgroups; none may be there yet.
    pub cgroups: Vec<Cgroup>,
    /// The directories in which others may appear, or these disappear.
    pub looked_in: BTreeSet<PathBuf>,
}

/// How rules name cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sought<'a> {
    /// A path from the root, whose components may be patterns.
    Path(Vec<&'a str>),
    /// `unit:NAME`: whatever is called so, wherever systemd has it.
    Unit(&'a str),
    /// `container:ID`: whatever has the id, or its beginning, in its name, as Docker, containerd, CRI-O and Podman have it.
    Container(&'a str),
}

/// Shortest beginning of a container's id, which is what `docker ps` shows.
const CONTAINER_ID: usize = 12;

impl<'a> Sought<'a> {
    fn of(text: &'a str) -> Self {
        if let Some(unit) = text.strip_prefix("unit:") {
            return Self::Unit(unit);
        }
        match text.strip_prefix("container:") {
            Some(id) => Self::Container(id),
            None => Self::Path(text.split('/').filter(|component| !component.is_empty()).collect()),
        }
    }

    /// Whether a cgroup at this depth below the root, counted from 1, is it, and whether one below may be.
    fn judge(&self, name: &str, depth: usize) -> (bool, bool) {
        match self {
            Self::Path(components) => {
                let fits = components.get(depth - 1).is_some_and(|wanted| pattern::matches(wanted, name));
                (fits && depth == components.len(), fits && depth < components.len())
            }
            Self::Unit(unit) => (pattern::matches(unit, name), true),
            Self::Container(id) => {
                let stem = name.strip_suffix(".scope").unwrap_or(name);
                let last = stem.rsplit(['-', ':']).next().unwrap_or(stem);
                (id.len() >= CONTAINER_ID && last.starts_with(id), true)
            }
        }
    }
}

impl Cgroup {
    /// All that `named` says: a directory, absolute or relative to the root of the hierarchy, with `*` and `?`;
    /// `unit:NAME`; or `container:ID`.
    ///
    /// # Errors
    /// [`CgroupError`] for what can never be one.
    pub fn find(named: &Path) -> Result<FoundCgroups, CgroupError> {
        let mount = mount_point().ok_or(CgroupError::NotMounted)?;
        let below = named.strip_prefix(&mount).unwrap_or(named);
        let text = below.to_string_lossy();
        let sought = Sought::of(&text);
        match &sought {
            Sought::Path(components) if components.is_empty() => {
                return Err(CgroupError::Root(named.to_owned()));
            }
            Sought::Path(components) if components.len() > MAX_DEPTH => {
                return Err(CgroupError::TooDeep(named.to_owned()));
            }
            Sought::Path(components) if components.contains(&"..") => {
                return Err(CgroupError::Outside { path: named.to_owned(), mount });
            }
            Sought::Container(id) if id.len() < CONTAINER_ID => {
                return Err(CgroupError::ShortId(named.to_owned()));
            }
            _ => {}
        }
        let mut found = FoundCgroups::default();
        search(&mount, &mut Vec::new(), &sought, &mut found);
        found.cgroups.sort_unstable();
        Ok(found)
    }

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

    /// The cgroup that the kernel knows by this id and those above it, from the deepest up; none of them for that of the
    /// root. `None` where it is gone by now, or not to be seen by this process.
    pub(crate) fn lineage_of(id: u64) -> Option<Vec<Self>> {
        let mount = mount_point()?;
        if fs::metadata(&mount).ok()?.ino() == id {
            return Some(Vec::new());
        }
        let mut path = Vec::new();
        leads_to(&mount, id, &mut path).then(|| Self { path }.lineage().collect())
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

    /// The levels below the root at which it may be, a bit each: it is as deep as it looks, unless the root that this process
    /// sees is that of a cgroup namespace, which does not tell how deep it is itself.
    #[must_use]
    pub fn depths(&self) -> u32 {
        let visible = 1 << self.path.len();
        if in_namespace() { u32::MAX << self.path.len() } else { visible }
    }
}

/// Looks below a cgroup, whose ids are `path`. What vanishes meanwhile is not there.
fn search(directory: &Path, path: &mut Vec<u64>, sought: &Sought<'_>, found: &mut FoundCgroups) {
    if path.len() == MAX_DEPTH {
        return;
    }
    found.looked_in.insert(directory.to_owned());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let (is_it, go_on) = sought.judge(&entry.file_name().to_string_lossy(), path.len() + 1);
        if !is_it && !go_on {
            continue;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        // The id that `bpf_skb_cgroup_id` gives is the directory's inode number (kernfs).
        path.push(metadata.ino());
        if is_it {
            found.cgroups.push(Cgroup { path: path.clone() });
        }
        // What is below one belongs to it.
        if go_on && !is_it {
            search(&entry.path(), path, sought, found);
        }
        path.pop();
    }
}

/// Whether a cgroup is below this one, whose ids are `path`; it ends with its own then.
fn leads_to(directory: &Path, id: u64, path: &mut Vec<u64>) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if path.len() == MAX_DEPTH || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        path.push(metadata.ino());
        if metadata.ino() == id || leads_to(&entry.path(), id, path) {
            return true;
        }
        path.pop();
    }
    false
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

/// Whether this process is in a cgroup namespace other than the first one.
fn in_namespace() -> bool {
    /// `PROC_CGROUP_INIT_INO` of linux/proc_ns.h
    const FIRST: u64 = 0xEFFF_FFFB;
    static OTHER: LazyLock<bool> = LazyLock::new(|| {
        fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() != FIRST)
    });
    *OTHER
}

fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| match fields[..] {
        [_, mount, "cgroup2", ..] => Some(PathBuf::from(mount)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(named: &str, name: &str, depth: usize) -> (bool, bool) {
        Sought::of(named).judge(name, depth)
    }

    #[test]
    fn a_path_is_followed_component_by_component() {
        assert_eq!(judge("/a/b*", "a", 1), (false, true));
        assert_eq!(judge("/a/b*", "b.scope", 2), (true, false));
        assert_eq!(judge("a/b*", "c", 2), (false, false));
        assert_eq!(judge("/a/b*", "b", 1), (false, false));
    }

    #[test]
    fn units_and_containers_are_found_at_any_depth() {
        for depth in [1, 7] {
            assert_eq!(judge("unit:nginx.service", "nginx.service", depth), (true, true));
            assert_eq!(judge("unit:app-*.service", "app-1.service", depth), (true, true));
            assert_eq!(judge("unit:nginx.service", "nginx.service.d", depth), (false, true));
            let id = "0123456789abcdef";
            for name in [id.to_owned(), format!("docker-{id}.scope"), format!("cri-containerd:{id}")] {
                assert_eq!(judge("container:0123456789ab", &name, depth), (true, true), "{name}");
            }
            assert_eq!(judge("container:0123456789ab", "docker-ffff.scope", depth), (false, true));
        }
    }

    #[test]
    fn what_is_known_by_its_id_is_found_with_those_above() {
        let Some(mount) = mount_point() else { return };
        let above = format!("tproxy-{}", std::process::id());
        let below = mount.join(&above).join("below");
        fs::create_dir_all(&below).unwrap();
        let cgroup = Cgroup::resolve(&below).unwrap();
        let found = Cgroup::lineage_of(cgroup.id());
        fs::remove_dir(&below).unwrap();
        fs::remove_dir(mount.join(&above)).unwrap();
        assert_eq!(found, Some(cgroup.lineage().collect()));
        assert_eq!(Cgroup::lineage_of(cgroup.id()), None, "it is gone");
        assert_eq!(Cgroup::lineage_of(fs::metadata(mount).unwrap().ino()), Some(Vec::new()));
    }

    #[test]
    fn what_can_never_be_a_cgroup_is_refused() {
        if mount_point().is_none() {
            assert!(matches!(Cgroup::find("/x".as_ref()), Err(CgroupError::NotMounted)));
            return;
        }
        let deep = "a/".repeat(MAX_DEPTH + 1);
        for (named, says) in [
            ("/", "root"),
            ("a/../..", "not below"),
            (deep.as_str(), "levels deep"),
            ("container:ab", "12 characters"),
        ] {
            let error = Cgroup::find(named.as_ref()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(Cgroup::find("/nothing-is-called-so".as_ref()).unwrap().cgroups, []);
    }
}
