//! Child processes that cannot outlive us: each has its own process group and is killed when its `Process` is dropped, or by the
//! kernel when this process dies in another way. They get only a few variables of our environment.

use crate::{paths::RunDir, wait};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::watch;

/// The variables that a child inherits. No credentials, no proxies, no settings of a broker that already runs.
const HANDED_DOWN: [&str; 11] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "RAYON_NUM_THREADS",
    "EASEL_DEVICE",
    "EASEL_DTYPE",
];
/// How many lines of a log an error shows.
const TAIL: usize = 12;

/// What to start.
#[derive(Debug)]
pub struct Spec {
    name: String,
    command: Command,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    supervisor: Option<JoinHandle<()>>,
}

impl Spec {
    /// A program whose output goes to `name.log`.
    pub fn new(name: &str, program: impl AsRef<OsStr>) -> Self {
        // setpriv makes the kernel kill the program when the thread that started it ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).env_clear().process_group(0).stdin(Stdio::null());
        command.envs(HANDED_DOWN.iter().filter_map(|key| Some((key, std::env::var_os(key)?))));
        command.env("LANG", "C.UTF-8").env("NO_PROXY", "127.0.0.1,localhost");
        Self { name: name.to_string(), command }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.command.env(key, value.into());
        self
    }

    /// Sets several.
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        self.command.envs(vars);
        self
    }

    /// Sets the working folder.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Starts it. A second start under the same name adds to the same log.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(self, run: &RunDir) -> Result<Process> {
        let Self { name, mut command } = self;
        let log = run.path().join(format!("{name}.log"));
        let file =
            OpenOptions::new().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        command.stdout(file.try_clone()?).stderr(file);
        let (started, start) = mpsc::channel();
        let (exited, exit) = watch::channel(None);
        // One thread starts the child and waits for it, so that the thread the kernel watches lives as long as the child.
        let supervisor = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let child = command.spawn();
            drop(command);
            supervise(child, &started, &exited);
        })?;
        let pid = start.recv().context("the supervisor")?.with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name, log, pid, exit, supervisor: Some(supervisor) })
    }
}

fn supervise(
    child: std::io::Result<Child>,
    started: &mpsc::Sender<std::io::Result<Pid>>,
    exited: &watch::Sender<Option<ExitStatus>>,
) {
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return drop(started.send(Err(error))),
    };
    let pid = Pid::from_child(&child);
    // If the starting thread has gone nobody listens. Then this thread goes on and the child dies with us.
    drop(started.send(Ok(pid)));
    let status = child.wait();
    // Whatever it left behind in its group. An empty group is no error.
    let _ = kill_process_group(pid, Signal::KILL);
    exited.send_replace(Some(status.unwrap_or_else(|_| unknown_end())));
}

/// The exit status if it cannot be known: a failure.
fn unknown_end() -> ExitStatus {
    ExitStatus::from_raw(1 << 8)
}

impl Process {
    /// The process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// A value in KiB from the process's status in /proc, such as `VmRSS` or `VmHWM` (the most that it ever had).
    ///
    /// # Errors
    /// The process has ended, or there is no such value.
    pub fn memory_kib(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = value.with_context(|| format!("no {field} of {}", self.name))?;
        Ok(value.trim().trim_end_matches("kB").trim().parse()?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its log contains a text.
    ///
    /// # Errors
    /// It ended, or the text did not come in time.
    pub async fn logs(&self, text: &str, within: Duration) -> Result<()> {
        let what = format!("{text:?} in {}", self.log.display());
        let found = async || self.log_text().contains(text).then_some(());
        tokio::select! {
            error = self.died() => Err(error),
            found = wait::until(&what, within, found) => found,
        }
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Waits for its end.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|status| *status).unwrap_or_else(unknown_end)
    }

    /// Waits for its end and gives that as an error.
    pub async fn died(&self) -> anyhow::Error {
        let status = self.exited().await;
        self.error(&format!("ended ({status})"))
    }

    /// Waits until `probe` is true.
    ///
    /// # Errors
    /// It ended, or was not ready in time.
    pub async fn ready(&self, within: Duration, mut probe: impl AsyncFnMut() -> bool) -> Result<()> {
        tokio::select! {
            error = self.died() => Err(error),
            ready = wait::until("readiness", within, async || probe().await.then_some(())) => {
                ready.map_err(|_| self.error(&format!("was not ready within {within:?}")))
            }
        }
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            // It may have just ended.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// SIGTERM, then its exit status.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn terminate(&self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        match wait::at_most("end", within, self.exited()).await {
            Ok(status) => Ok(status),
            Err(_) => bail!(self.error(&format!("did not end within {within:?} of SIGTERM"))),
        }
    }

    /// SIGKILL; waits for its end.
    pub async fn kill(&self) {
        self.signal(Signal::KILL);
        self.exited().await;
    }

    /// An error that names its log and shows the last lines of it.
    pub fn error(&self, what: &str) -> anyhow::Error {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n    ");
        anyhow::anyhow!("{} {what}; its log is {}:\n    {tail}", self.name, self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(supervisor) = self.supervisor.take() {
            // A killed child ends at once. The result of a supervisor that panicked is not needed.
            let _ = supervisor.join();
        }
    }
}

/// Runs a program to its end; gives its exit status and all it wrote. The name must be new in this run.
///
/// # Errors
/// It cannot be started, or did not end in time.
pub async fn output(run: &RunDir, spec: Spec, within: Duration) -> Result<(ExitStatus, String)> {
    let process = spec.start(run)?;
    match wait::at_most("end", within, process.exited()).await {
        Ok(status) => Ok((status, process.log_text())),
        Err(_) => bail!(process.error(&format!("did not end within {within:?}"))),
    }
}
