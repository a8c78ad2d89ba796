//! Who this process is, and whether another one of this system is still there: Linux's `/proc`,
//! read and nothing else.

use std::fs;

use crate::claim::judge::{self, Known};
use crate::claim::{Owner, Process};

/// This process as an owner of claims. What the system does not say stays empty: then nobody can
/// look for it, and its claim is watched instead.
pub fn own(run_here: bool, mark: Option<u32>) -> Owner {
    let text = |path: &str| {
        fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let pid = std::process::id();
    let namespace =
        fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned());
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect();
    let process = match (start_of(pid), namespace) {
        (Some(start), Ok(namespace)) => {
            Process { pid, start, boot: text("/proc/sys/kernel/random/boot_id"), namespace }
        }
        _ => Process { pid, ..Process::default() },
    };
    let mark = mark.map(|mark| format!("{mark:08x}"));
    Owner { host, process, run_here, program: env!("CARGO_PKG_VERSION").to_owned(), mark }
}

/// What this system says of a process that a claim names.
pub fn look(own: &Process, other: &Process) -> Known {
    judge::known(own, other, |process| {
        // Without a look at oneself, somebody else's absence means nothing (`hidepid`, no `/proc`).
        start_of(own.pid)?;
        match fs::read_to_string(format!("/proc/{}/stat", process.pid)) {
            Ok(stat) => Some(
                parse(&stat)
                    .is_some_and(|(state, start)| start == process.start && !"ZXx".contains(state)),
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(hidden(process.pid)),
            Err(_) => None,
        }
    })
}

/// A process of somebody else that `/proc` does not show is there all the same, and a signal to it
/// is refused.
fn hidden(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let probe = pid.map(rustix::process::test_kill_process);
    matches!(probe, Some(Ok(()) | Err(rustix::io::Errno::PERM)))
}

fn start_of(pid: u32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).map(|(_, start)| start)
}

/// State and start of a line of `/proc/PID/stat`. The second field is a name in brackets, which may
/// hold anything.
fn parse(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is the third field, the start the twenty-second.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_there_until_it_is_gone() {
        let me = own(true, Some(0xa1));
        assert!(
            me.process.start > 0 && !me.process.boot.is_empty() && !me.host.is_empty(),
            "{me:?}"
        );
        assert_eq!(me.mark.as_deref(), Some("000000a1"));
        assert_eq!(look(&me.process, &me.process), Known::There);
        let earlier = Process { start: me.process.start - 1, ..me.process.clone() };
        assert_eq!(
            look(&me.process, &earlier),
            Known::Gone,
            "its number was given to another process"
        );
        for elsewhere in [
            Process { boot: "another".to_owned(), ..me.process.clone() },
            Process { namespace: "pid:[1]".to_owned(), ..me.process.clone() },
        ] {
            assert_eq!(look(&me.process, &elsewhere), Known::Unknown);
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a child");
        let start = start_of(child.id()).expect("its start");
        let other = Process { pid: child.id(), start, ..me.process.clone() };
        assert_eq!(look(&me.process, &other), Known::There);
        child.kill().expect("kill");
        while start_of(child.id()).is_some() && look(&me.process, &other) == Known::There {
            std::thread::yield_now();
        }
        assert_eq!(look(&me.process, &other), Known::Gone, "dead, if not yet buried");
        child.wait().expect("wait");
        assert_eq!(look(&me.process, &other), Known::Gone);
    }

    #[test]
    fn odd_names_of_processes_are_no_trap() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse(&format!("12 (a) b ( c)) {fields}")), Some(('S', 4711)));
        for broken in ["", "12", "12 (a", "12 (a) S", "12 (a) S 1 2 x"] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }
}
