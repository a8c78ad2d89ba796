//! How much memory this process is to use: what `--memory` says, measured against what it may use.
//!
//! It may use the machine's memory, or less where a memory cgroup that it lives in has a limit.
//! Groups are nested (a job of a batch system, a unit of systemd, a container in a pod), and every
//! one of them from the process's own up to the root counts: `memory.max` and `memory.high` of
//! version 2, `memory.limit_in_bytes` of version 1, and what version 1 says of groups that cannot
//! be seen from here (`hierarchical_memory_limit`). Which groups these are stands in
//! `/proc/self/cgroup` and `/proc/self/mountinfo`.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::output;

/// Of what may be used, in percent, where nothing is said.
const DEFAULT_PERCENT: u64 = 50;
/// Of what may be used, in percent, where more than that is asked for.
const LOWERED_PERCENT: u64 = 90;

/// What `--memory` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// So many bytes.
    Bytes(u64),
    /// A share of what this process may use.
    Percent(u8),
}

/// Reads `--memory`: `4GiB`, or `50%`.
pub(crate) fn parse(text: &str) -> Result<Size, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.trim().parse().ok().filter(|percent| (1..=100).contains(percent));
        return percent.map(Size::Percent).ok_or_else(|| "a share is 1% to 100%".to_owned());
    }
    let size: bytesize::ByteSize =
        text.parse().map_err(|e| format!("{e}; write it like 512MiB or 50%"))?;
    if size.0 == 0 { Err("must be greater than 0".to_owned()) } else { Ok(Size::Bytes(size.0)) }
}

/// What a process may use, and what says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Available {
    pub(crate) bytes: u64,
    by: Bound,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Bound {
    Machine,
    Group(PathBuf),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine's memory"),
            Self::Group(file) => write!(f, "the limit of the memory cgroup, {}", file.display()),
        }
    }
}

impl Available {
    /// Of this process, now.
    pub(crate) fn here() -> Self {
        let info = rustix::system::sysinfo();
        #[expect(clippy::useless_conversion, reason = "the field's type differs between platforms")]
        let machine = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let of_process = |name: &str| read(&Path::new("/proc/self").join(name)).unwrap_or_default();
        Self::of(machine, &of_process("cgroup"), &of_process("mountinfo"), read)
    }

    /// The least of the machine's memory and the limits of all groups.
    fn of(
        machine: u64,
        cgroup: &str,
        mountinfo: &str,
        read: impl Fn(&Path) -> Option<String>,
    ) -> Self {
        let mut least = Self { bytes: machine, by: Bound::Machine };
        for folder in folders(cgroup, mountinfo) {
            for file in
                ["memory.max", "memory.high", "memory.limit_in_bytes"].map(|name| folder.join(name))
            {
                let bytes = read(&file).and_then(|text| text.trim().parse().ok());
                least = least.or_less(bytes, file);
            }
            let file = folder.join("memory.stat");
            let hidden = read(&file).and_then(|text| {
                let line =
                    text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "));
                line.and_then(|bytes| bytes.trim().parse().ok())
            });
            least = least.or_less(hidden, file);
        }
        least
    }

    /// What it comes from, for people.
    pub(crate) fn by(&self) -> String {
        self.by.to_string()
    }

    fn or_less(self, bytes: Option<u64>, file: PathBuf) -> Self {
        match bytes.filter(|bytes| *bytes < self.bytes) {
            Some(bytes) => Self { bytes, by: Bound::Group(file) },
            None => self,
        }
    }

    fn percent(&self, percent: u64) -> u64 {
        self.bytes / 100 * percent + self.bytes % 100 * percent / 100
    }

    /// What is to be used of it, at least `least_bytes`, and a word to the user where that is not
    /// what was asked for.
    fn choose(
        &self,
        asked: Option<Size>,
        least_bytes: u64,
    ) -> Result<(u64, Option<String>), String> {
        let lowered = self.percent(LOWERED_PERCENT);
        let (bytes, word) = match asked {
            // A default is no reason to refuse what would just do.
            None => (self.percent(DEFAULT_PERCENT).max(least_bytes.min(lowered)), None),
            Some(Size::Percent(percent)) => (self.percent(u64::from(percent)), None),
            Some(Size::Bytes(bytes)) if bytes <= self.bytes => (bytes, None),
            Some(Size::Bytes(bytes)) => {
                let (asked, used, all) =
                    (output::bytes(bytes), output::bytes(lowered), output::bytes(self.bytes));
                (
                    lowered,
                    Some(format!(
                        "--memory {asked} is more than this process may use: {all} ({}); it works \
                            with {used}",
                        self.by
                    )),
                )
            }
        };
        if bytes < least_bytes {
            return Err(format!(
                "--memory must be at least {} MiB, not {}; this process may use {} ({})",
                least_bytes >> 20,
                output::bytes(bytes),
                output::bytes(self.bytes),
                self.by
            ));
        }
        Ok((bytes, word))
    }
}

/// What this process is to use, at least `least_bytes`; says where that is less than was asked for.
pub(crate) fn resolve(asked: Option<Size>, least_bytes: u64) -> Result<u64, Exit> {
    let (bytes, word) = Available::here().choose(asked, least_bytes).map_err(Exit::usage)?;
    if let Some(word) = word {
        output::error_line(&format!("muster: {word}"));
    }
    Ok(bytes)
}

/// The folders of all memory groups that a process is in, of both versions, each from the process's
/// own up to where the hierarchy is mounted.
fn folders(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mountinfo.lines().filter_map(Mount::of_line) {
        let Some(path) = cgroup.lines().find_map(|line| mount.path_of_line(line)) else { continue };
        // Where a container sees its own groups alone, the mount begins at a group; the path may or
        // may not begin there, too.
        let below = path.strip_prefix(&mount.root).unwrap_or(path);
        let below: PathBuf = below
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        found.extend(
            mount
                .point
                .join(below)
                .ancestors()
                .take_while(|folder| folder.starts_with(&mount.point))
                .map(Path::to_owned),
        );
    }
    found
}

/// A mounted hierarchy of groups that has memory in it, or may.
struct Mount {
    /// The group at which it begins.
    root: PathBuf,
    point: PathBuf,
    is_v1: bool,
}

impl Mount {
    /// `36 35 98:0 ROOT POINT options [fields] - TYPE SOURCE OPTIONS`
    fn of_line(line: &str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        let is_v1 = kind == "cgroup" && options.split(',').any(|option| option == "memory");
        (is_v1 || kind == "cgroup2").then_some(Self { root, point, is_v1 })
    }

    /// The group of this hierarchy that a line of `/proc/self/cgroup` names: `0::PATH` in version
    /// 2, `N:CONTROLLERS:PATH` in version 1.
    fn path_of_line<'a>(&self, line: &'a str) -> Option<&'a Path> {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let named = match self.is_v1 {
            true => controllers.split(',').any(|controller| controller == "memory"),
            false => number == "0" && controllers.is_empty(),
        };
        named.then(|| Path::new(path))
    }
}

/// A path of mountinfo, in which space, tab, newline and backslash stand as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
    {
        plain = plain.replace(escaped, character);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;
    const MACHINE: u64 = 24 << 30;

    /// The least limit of a process, in MiB, and where it stands.
    fn check(
        what: &str,
        cgroup: &str,
        mountinfo: &str,
        files: &[(&str, &str)],
        mib: u64,
        by: &str,
    ) {
        let files: BTreeMap<&Path, &str> =
            files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        let found = Available::of(MACHINE, cgroup, mountinfo, |path| {
            files.get(path).map(|text| (*text).to_owned())
        });
        assert_eq!(found.bytes, mib * MIB, "{what}: {found:?}");
        assert!(found.by.to_string().contains(by), "{what}: {found:?}");
    }

    const V2: &str = "25 1 0:22 / /proc rw - proc proc rw\n\
        30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        36 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:14 - cgroup cgroup rw,memory\n\
        42 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn every_group_up_to_the_root_counts_in_version_2() {
        let group = "0::/system.slice/run-1.scope/inner\n";
        let file = |name| format!("/sys/fs/cgroup/system.slice/run-1.scope/{name}");
        check("none", group, V2, &[], 24 << 10, "the machine");
        check(
            "no limit",
            group,
            V2,
            &[(&file("memory.max"), "max\n"), (&file("memory.high"), "max")],
            24 << 10,
            "machine",
        );
        let above = file("memory.max");
        check(
            "a group above",
            group,
            V2,
            &[(&above, "536870912\n"), (&file("inner/memory.max"), "max\n")],
            512,
            &above,
        );
        let own = file("inner/memory.max");
        check(
            "the own is less",
            group,
            V2,
            &[(&above, "536870912"), (&own, "268435456")],
            256,
            &own,
        );
        check(
            "the one above is less",
            group,
            V2,
            &[(&above, "134217728"), (&own, "268435456")],
            128,
            &above,
        );
        let high = file("memory.high");
        check("throttled", group, V2, &[(&above, "536870912"), (&high, "314572800")], 300, &high);
        let root = "/sys/fs/cgroup/memory.max";
        check("in a container", "0::/\n", V2, &[(root, "1073741824")], 1024, root);
        check("outside of what is seen", "0::/../../x\n", V2, &[(root, "1073741824")], 1024, root);
        check(
            "more than there is",
            "0::/\n",
            V2,
            &[(root, "109951162777600")],
            24 << 10,
            "the machine",
        );
        check(
            "nonsense",
            "0::/\n",
            V2,
            &[(root, "-1"), ("/sys/fs/cgroup/memory.high", "")],
            24 << 10,
            "machine",
        );
    }

    #[test]
    fn every_group_up_to_the_root_counts_in_version_1() {
        let group = "12:cpu,cpuacct:/x\n\
                     4:memory:/slurm/uid_1000/job_7/step_0/task_0\n\
                     1:name=systemd:/\n\
                     0::/init.scope\n";
        let file = |name: &str| format!("/sys/fs/cgroup/memory/{name}memory.limit_in_bytes");
        let (root, job, task) =
            (file(""), file("slurm/uid_1000/job_7/"), file("slurm/uid_1000/job_7/step_0/task_0/"));
        let unlimited = "9223372036854771712\n";
        check(
            "no limit",
            group,
            V1,
            &[(&root, unlimited), (&job, unlimited), (&task, unlimited)],
            24 << 10,
            "machine",
        );
        check(
            "a batch job",
            group,
            V1,
            &[(&root, unlimited), (&job, "2147483648\n"), (&task, unlimited)],
            2048,
            &job,
        );
        check(
            "its task is less",
            group,
            V1,
            &[(&job, "2147483648"), (&task, "1073741824")],
            1024,
            &task,
        );
        let unified = "/sys/fs/cgroup/unified/init.scope/memory.max";
        check("hybrid", group, V1, &[(&job, "2147483648"), (unified, "1048576")], 1, unified);
        let stat = "/sys/fs/cgroup/memory/slurm/uid_1000/job_7/step_0/task_0/memory.stat";
        let hidden =
            [(stat, "cache 1\nhierarchical_memory_limit 104857600\nhierarchical_memsw_limit 1\n")];
        check("what cannot be seen", group, V1, &hidden, 100, stat);
    }

    #[test]
    fn a_mount_may_begin_at_a_group() {
        let mount = "9 8 0:7 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let root = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        let inner = "/sys/fs/cgroup/memory/inner/memory.limit_in_bytes";
        check("a container", "3:memory:/docker/abc\n", mount, &[(root, "209715200")], 200, root);
        check(
            "a group in it",
            "3:memory:/docker/abc/inner\n",
            mount,
            &[(root, "209715200"), (inner, "104857600")],
            100,
            inner,
        );
        check("named otherwise", "3:memory:/\n", mount, &[(root, "209715200")], 200, root);
        let odd = "9 8 0:7 / /mnt/my\\040groups ro - cgroup2 none rw\n";
        check(
            "a blank",
            "0::/a\n",
            odd,
            &[("/mnt/my groups/a/memory.max", "1048576")],
            1,
            "/mnt/my groups/a",
        );
        check("no group", "", mount, &[(root, "1")], 24 << 10, "machine");
        check("no mount", "0::/a\n", "", &[(root, "1")], 24 << 10, "machine");
        check("nonsense", "0\n::\n", "a - \n - cgroup2\n", &[(root, "1")], 24 << 10, "machine");
    }

    #[test]
    fn sizes_are_bytes_or_shares() {
        for (text, expected) in [
            ("512MiB", Some(Size::Bytes(512 * MIB))),
            ("1TB", Some(Size::Bytes(1_000_000_000_000))),
            ("50%", Some(Size::Percent(50))),
            ("100%", Some(Size::Percent(100))),
            ("0%", None),
            ("101%", None),
            ("-1%", None),
            ("%", None),
            ("0", None),
            ("lots", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_is_measured_against_what_there_is() {
        let check = |available_mib: u64,
                     asked: Option<&str>,
                     expected: Result<(u64, bool), &str>| {
            let available =
                Available { bytes: available_mib * MIB, by: Bound::Group("/g/memory.max".into()) };
            let asked = asked.map(|text| parse(text).expect(text));
            match (available.choose(asked, 128 * MIB), expected) {
                (Ok((bytes, word)), Ok((mib, says))) => {
                    assert_eq!(
                        (bytes / MIB, word.is_some()),
                        (mib, says),
                        "{available_mib} {asked:?} {word:?}"
                    );
                    assert!(word.is_none_or(
                        |word| word.contains("/g/memory.max") && word.contains("works with")
                    ));
                }
                (Err(why), Err(part)) => {
                    assert!(why.contains(part) && why.contains("/g/memory.max"), "{why}");
                }
                (found, expected) => {
                    panic!("{available_mib} {asked:?}: {found:?}, not {expected:?}")
                }
            }
        };
        check(1000, None, Ok((500, false)));
        check(1000, Some("25%"), Ok((250, false)));
        check(1000, Some("1000MiB"), Ok((1000, false)));
        check(1000, Some("1TB"), Ok((900, true)));
        check(1000, Some("1001MiB"), Ok((900, true)));
        // The least that works, rather than a refusal of what nobody asked for.
        check(200, None, Ok((128, false)));
        check(100, None, Err("at least 128 MiB"));
        check(1000, Some("10%"), Err("at least 128 MiB"));
        check(1000, Some("64MiB"), Err("at least 128 MiB"));
        check(100, Some("1TB"), Err("at least 128 MiB"));
    }
}
