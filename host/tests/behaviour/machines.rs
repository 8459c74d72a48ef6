// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Simulated machines: each is the real guest agent on an in-memory pipe, with a temporary folder as its root.

use std::{
    error::Error,
    fs, io,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use guest_agent::{Guest, Mode, dial::SingleStream};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use waggle::{
    agent::{self, AgentClient, Timeouts},
    domain::{
        machine::{
            Afterwards, Agent, Machine, MachineSource, MachineSpec, Machines, PortFuture, Snapshot, SnapshotFault,
            StartFault,
        },
        stage::Stage,
        start_reason::StartReason,
    },
};
use waggle_link::Past;
use waggle_protocol::Origin;

/// An image that fails to start.
pub(crate) const BROKEN: &str = "oci:/broken";

/// An image that never finishes booting.
pub(crate) const ENDLESS: &str = "oci:/endless";

/// The console output of every machine in these tests.
pub(crate) const CONSOLE: &str = "a console's line";

/// Buffer size of a pipe, in bytes: smaller than a large file.
const PIPE_BYTES: usize = 64 * 1024;

/// Starts agents, and counts those that are still running.
#[derive(Debug, Default)]
pub(crate) struct InProcess {
    pub(crate) alive: Arc<AtomicUsize>,
    /// The number of machines that were started.
    pub(crate) starts: Arc<AtomicUsize>,
    /// While a test holds this lock, a machine whose start was cancelled does not end.
    pub(crate) may_end: Arc<tokio::sync::Mutex<()>>,
    /// While a test holds this lock, a machine whose snapshot is taken stands still.
    pub(crate) may_go_on: Arc<tokio::sync::Mutex<()>>,
    pub(crate) faults: Arc<Faults>,
}

/// Faults of the next call, set by a test.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The call panics, as if the host had a defect.
    pub(crate) panics: AtomicBool,
    /// The machine ends, as if its kernel had crashed.
    pub(crate) crashes: AtomicBool,
    /// The next snapshot is not taken.
    pub(crate) no_snapshot: AtomicBool,
    /// The next snapshot cannot be written.
    pub(crate) disk_full: AtomicBool,
    /// The next machine that starts from a snapshot does not start.
    pub(crate) no_restore: AtomicBool,
}

impl Faults {
    /// Returns the fault if the test has set this flag, and unsets the flag.
    fn occurs(flag: &AtomicBool) -> Result<(), SnapshotFault> {
        match flag.swap(false, Ordering::SeqCst) {
            true => Err(SnapshotFault::Failed { source: "a simulated fault".into() }),
            false => Ok(()),
        }
    }
}

/// Counts one machine until all resources of the machine are released.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Machines for InProcess {
    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        stages: &'a (dyn Fn(Stage) + Send + Sync),
        cancelled: PortFuture<'a, ()>,
    ) -> PortFuture<'a, Result<Arc<dyn Machine>, StartFault>> {
        Box::pin(async move {
            let alive = Alive::new(&self.alive);
            self.starts.fetch_add(1, Ordering::SeqCst);
            stages(Stage::Image);
            if spec.image.to_string() == BROKEN {
                let source = io::Error::other("blob sha256:00 is missing");
                let console = vec![CONSOLE.to_owned()];
                return Err(StartFault {
                    stage: Stage::Image,
                    reason: StartReason::ImageInvalid,
                    agent_message: None,
                    console,
                    source: source.into(),
                });
            }
            stages(Stage::Disks);
            let root = tempfile::tempdir().unwrap();
            if let MachineSource::Snapshot(snapshot) = &spec.source {
                Faults::occurs(&self.faults.no_restore).map_err(|fault| start_fault(fault.into()))?;
                let archive = tempfile::tempdir().unwrap();
                snapshot.write(archive.path()).await.unwrap();
                tar(&["--extract"], archive.path(), root.path()).unwrap();
            }
            for folder in ["home/sandbox", "tmp", "usr"] {
                fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            // The agent looks for interpreters below its root.
            let _ = symlink("/usr/bin", root.path().join("usr/bin"));
            stages(Stage::Boot);
            if spec.image.to_string() == ENDLESS {
                cancelled.await;
                let _end = self.may_end.lock().await;
                let source = io::Error::other("cancelled");
                return Err(start_fault(source.into()));
            }
            let guest = Guest {
                origin: Origin::Host,
                root: root.path().to_owned(),
                mode: Mode::Caller,
                env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
                working_directory: None,
            };
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let serving = tokio::spawn(async move {
                // The result is ignored, because the host's side of the link observes the end.
                let _ = guest_agent::serve(SingleStream::new(far), guest, || {}).await;
            });
            let agent = agent::connect(near, Past::None, "machine", Timeouts::default())
                .await
                .map_err(|source| start_fault(source.into()))?;
            let faults = Arc::clone(&self.faults);
            let may_go_on = Arc::clone(&self.may_go_on);
            Ok(Arc::new(InProcessMachine { agent, serving, faults, may_go_on, root, _alive: alive })
                as Arc<dyn Machine>)
        })
    }

    fn read_snapshot<'a>(&'a self, folder: &'a Path) -> PortFuture<'a, Result<Arc<dyn Snapshot>, SnapshotFault>> {
        Box::pin(async move {
            let archive = Archive::read(folder, Arc::clone(&self.faults));
            let archive = archive.map_err(|source| SnapshotFault::Damaged { source: source.into() })?;
            Ok(Arc::new(archive) as Arc<dyn Snapshot>)
        })
    }
}

/// The snapshot of a machine: an archive of its guest's root folder. The guest's processes are not in it.
#[derive(Debug)]
struct Archive {
    folder: TempDir,
    faults: Arc<Faults>,
}

/// The name of the archive in a folder.
const ARCHIVE: &str = "disk.tar";

impl Archive {
    /// Archives a root folder.
    fn of(root: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        tar(&["--create", "--warning=none"], folder.path(), root)?;
        Ok(Self { folder, faults })
    }

    /// Reads a folder that `write` wrote.
    fn read(from: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::copy(from.join(ARCHIVE), folder.path().join(ARCHIVE))?;
        Ok(Self { folder, faults })
    }
}

impl Snapshot for Archive {
    fn has_memory(&self) -> bool {
        false
    }

    fn write<'a>(&'a self, folder: &'a Path) -> PortFuture<'a, Result<(), SnapshotFault>> {
        Box::pin(async move {
            Faults::occurs(&self.faults.disk_full).map_err(|_| {
                let source = io::Error::from(io::ErrorKind::StorageFull).into();
                SnapshotFault::Failed { source }
            })?;
            let copied = fs::copy(self.folder.path().join(ARCHIVE), folder.join(ARCHIVE));
            copied.map(drop).map_err(|source| SnapshotFault::Failed { source: source.into() })
        })
    }
}

/// Runs tar with an archive in one folder and the files of another.
fn tar(arguments: &[&str], archive: &Path, root: &Path) -> io::Result<()> {
    let mut command = Command::new("tar");
    command.args(arguments).arg("--file").arg(archive.join(ARCHIVE)).arg("--directory").arg(root);
    let command = if arguments.contains(&"--create") { command.arg(".") } else { &mut command };
    // 1: a file changed meanwhile, because a background process goes on.
    match command.status()?.code() {
        Some(0 | 1) => Ok(()),
        code => Err(io::Error::other(format!("tar ended with {code:?}"))),
    }
}

fn start_fault(source: Box<dyn Error + Send + Sync>) -> StartFault {
    StartFault { stage: Stage::Boot, reason: StartReason::Other, agent_message: None, console: Vec::new(), source }
}

struct InProcessMachine {
    agent: AgentClient,
    serving: JoinHandle<()>,
    faults: Arc<Faults>,
    may_go_on: Arc<tokio::sync::Mutex<()>>,
    root: TempDir,
    _alive: Alive,
}

impl Drop for InProcessMachine {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Machine for InProcessMachine {
    fn agent(&self) -> &dyn Agent {
        assert!(!self.faults.panics.swap(false, Ordering::SeqCst), "a simulated defect of the host");
        if self.faults.crashes.swap(false, Ordering::SeqCst) {
            self.serving.abort();
        }
        &self.agent
    }

    fn console(&self) -> Vec<String> {
        vec![CONSOLE.to_owned()]
    }

    fn has_resumed(&self) -> bool {
        false
    }

    fn snapshot(&self, afterwards: Afterwards) -> PortFuture<'_, Result<Arc<dyn Snapshot>, SnapshotFault>> {
        Box::pin(async move {
            let _standing_still = self.may_go_on.lock().await;
            Faults::occurs(&self.faults.no_snapshot)?;
            let archive = Archive::of(self.root.path(), Arc::clone(&self.faults));
            let archive = archive.map_err(|source| SnapshotFault::Failed { source: source.into() })?;
            if afterwards == Afterwards::End {
                self.stop().await;
            }
            Ok(Arc::new(archive) as Arc<dyn Snapshot>)
        })
    }

    fn gone(&self) -> PortFuture<'_, String> {
        Box::pin(self.agent.closed())
    }

    fn stop(&self) -> PortFuture<'_, ()> {
        Box::pin(async move {
            self.agent.power_off().await;
            self.serving.abort();
        })
    }
}
