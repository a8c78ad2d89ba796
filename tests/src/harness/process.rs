//! Child processes that end with their test: on drop by their id, and by the kernel where the test
//! itself is killed.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::wait;

/// Bytes of a log that are printed when a test fails.
const LOG_TAIL_BYTES: usize = 16 << 10;

/// A running child with its output in files.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a command with its output in `<logs>/<name>.out` and `.err`, which are continued if
    /// they exist.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn spawn(name: &str, mut command: Command, logs: &Path) -> Self {
        let open = |suffix: &str| {
            let path = logs.join(format!("{name}.{suffix}"));
            let file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, file)
        };
        let ((stdout, out), (stderr, err)) = (open("out"), open("err"));
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        end_with_parent(&mut command);
        let child =
            command.spawn().unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        Self { name: name.to_owned(), child, ended: None, stdout, stderr }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it is called in logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has written to standard output.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it has written to standard error.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.poll().is_none() {
            let pid = Pid::from_child(&self.child);
            rustix::process::kill_process(pid, signal)
                .unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.name));
        }
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(wait::START_BOUND);
    }

    /// How it ended, if it has.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .unwrap_or_else(|e| panic!("cannot wait for {}: {e}", self.name));
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended within the bound.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let name = format!("the end of {} (process {})", self.name, self.id());
        wait::until(&name, bound, || self.poll())
    }

    /// Waits until its log (standard error) holds a text, once it is there; gives the line.
    ///
    /// # Panics
    /// When it does not within the bound.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str, bound: Duration) -> String {
        let name = format!("{:?} in the log of {} (process {})", text, self.name, self.id());
        wait::until(&name, bound, || {
            self.stderr().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Fails the test if it has ended, which it should not have.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.poll() {
            panic!("{} ended early ({status}):\n{}", self.name, self.stderr());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.poll().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            print_logs(&self.name, self.id(), &[&self.stdout, &self.stderr]);
        }
    }
}

/// Has the kernel kill the child when the thread that starts it ends, so that a test that is killed
/// leaves nothing behind.
pub fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let tie = move || {
        #[cfg(target_os = "linux")]
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the call above.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: between fork and exec only two system calls are made, which are safe there; nothing
    // is allocated or locked.
    unsafe { command.pre_exec(tie) };
}

/// Exit code in the manner of a shell: 128 and the signal's number where a signal ended it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Whether any process has `text` on its command line.
pub fn any_with_argument(text: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
        })
        .any(|entry| {
            fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
        })
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[expect(
    clippy::print_stderr,
    reason = "a failed test shows its logs there, and the runner keeps them apart"
)]
fn print_logs(name: &str, id: u32, logs: &[&Path]) {
    for path in logs {
        let text = read_lossy(path);
        if text.is_empty() {
            continue;
        }
        let mut begin = text.len().saturating_sub(LOG_TAIL_BYTES);
        while !text.is_char_boundary(begin) {
            begin += 1;
        }
        let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        eprintln!(
            "--- {name} (process {id}), {suffix}, last {} bytes ---\n{}",
            text.len() - begin,
            &text[begin..]
        );
    }
}
