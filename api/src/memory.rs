//! The available memory: the limit of the container, or what the machine has left.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// The number of bytes that this process can use; `None` if the system does not report it.
#[must_use]
pub fn limit() -> Option<u64> {
    let root = Path::new("/");
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    least(container(root), available(root))
}

/// The lowest limit of the control groups of this process.
fn container(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    mounts
        .lines()
        .filter_map(|line| Mount::parse(line, &groups))
        .flat_map(|mount| mount.limits(root))
        .min()
}

/// The memory that the kernel can provide without swapping.
fn available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024)
}

/// A mount of a control group hierarchy that limits memory.
struct Mount<'a> {
    point: &'a Path,
    /// The group of this process, relative to the mount point.
    group: PathBuf,
    file: &'static str,
}

impl<'a> Mount<'a> {
    /// Parses a line of mountinfo; `groups` is the content of `/proc/self/cgroup`.
    fn parse(line: &'a str, groups: &str) -> Option<Self> {
        // 36 35 0:31 /root /point options [fields] - type source options
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (top, point) = (place.next()?, Path::new(place.next()?));
        let mut kind = kind.split(' ');
        let (controller, file) = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => ("", "memory.max"),
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => {
                ("memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // 4:memory:/group in version 1; 0::/group in version 2
        let group = groups.lines().find_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            controllers
                .split(',')
                .any(|one| one == controller)
                .then_some(group)
        })?;
        // The mount may show only a part of the hierarchy, which contains the group or is the group itself.
        let group = Path::new(group)
            .strip_prefix(top)
            .ok()
            .filter(|group| {
                group
                    .components()
                    .all(|part| !matches!(part, Component::ParentDir))
            })
            .unwrap_or(Path::new(""));
        Some(Self {
            point,
            group: group.to_owned(),
            file,
        })
    }

    /// The limits of the group and its ancestors.
    fn limits(self, root: &Path) -> impl Iterator<Item = u64> {
        let point = root.join(self.point.strip_prefix("/").unwrap_or(self.point));
        self.group
            .ancestors()
            .filter_map(|group| {
                // `max` stands for no limit.
                let text = fs::read_to_string(point.join(group).join(self.file)).ok()?;
                text.trim().parse().ok()
            })
            .collect::<Vec<_>>()
            .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// A root directory with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn reads_the_limit_of_the_group_in_version_2() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", VERSION_2),
            ("sys/fs/cgroup/memory.max", "67108864\n"),
        ]);
        assert_eq!(container(root.path()), Some(64 << 20));
    }

    #[test]
    fn returns_the_lowest_limit_of_the_group_and_its_ancestors() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/pods/one\n"),
            ("proc/self/mountinfo", VERSION_2),
            ("sys/fs/cgroup/pods/memory.max", "1048576\n"),
            ("sys/fs/cgroup/pods/one/memory.max", "max\n"),
            ("sys/fs/cgroup/other/memory.max", "1\n"),
        ]);
        assert_eq!(container(root.path()), Some(1 << 20));
    }

    #[test]
    fn reads_the_group_of_the_memory_controller_in_version_1() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for group in ["/docker/abc", "/elsewhere", "/docker/abc/../.."] {
            let root = machine(&[
                (
                    "proc/self/cgroup",
                    &format!("5:cpu:/\n4:memory:{group}\n0::/\n"),
                ),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n"),
            ]);
            assert_eq!(container(root.path()), Some(64 << 20), "{group}");
        }
    }

    #[test]
    fn falls_back_to_the_available_memory_without_groups() {
        let root = machine(&[(
            "proc/meminfo",
            "MemTotal: 8000 kB\nMemAvailable:     4000 kB\n",
        )]);
        assert_eq!(container(root.path()), None);
        assert_eq!(available(root.path()), Some(4000 * 1024));
    }

    #[test]
    fn ignores_malformed_files() {
        let root = machine(&[
            ("proc/self/cgroup", "\n:\n0:\n"),
            ("proc/self/mountinfo", "\n - cgroup2\n1 2 - cgroup2 x y\n"),
            ("proc/meminfo", "MemAvailable: many\n"),
        ]);
        assert_eq!(container(root.path()), None);
        assert_eq!(available(root.path()), None);
    }
}
