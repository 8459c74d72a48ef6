// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Machines that are the real guest agent on an in-memory pipe, working in a temporary folder.

use std::{
    fs, io,
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use guest_agent::{Guest, Work};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use waggle::{
    agent::{self, AgentClient, Patience},
    domain::{
        guest_path::GuestPath,
        ports::{
            CallFault, Capabilities, Command, Ended, FileContent, FileRange, Listing, Machine, MachineSpec, Machines,
            OutputStream, PortFuture, Stage, StartFault, Writing,
        },
    },
};
use waggle_protocol::Origin;

/// An image that no machine starts from.
pub(crate) const BROKEN: &str = "oci:/broken";

/// An image whose machines boot for ever.
pub(crate) const ENDLESS: &str = "oci:/endless";

/// A file whose writing panics, as a defect of the host would.
pub(crate) const PANIC_FILE: &str = "/defect";

/// A file whose writing ends the machine, as a crash of its kernel would.
pub(crate) const CRASH_FILE: &str = "/crash";

/// What a machine without a console has on it.
pub(crate) const CONSOLE: &str = "a console's line";

/// A pipe's room; small enough that a file does not fit.
const PIPE_BYTES: usize = 64 * 1024;

/// Starts agents, and counts what is left of them.
#[derive(Debug, Default)]
pub(crate) struct InProcess {
    pub(crate) alive: Arc<AtomicUsize>,
    /// While this is held, a machine whose start was given up does not end.
    pub(crate) may_end: Arc<tokio::sync::Mutex<()>>,
}

/// Counts one machine for as long as anything of it is there.
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
            stages(Stage::Image);
            if spec.image.to_string() == BROKEN {
                let source = io::Error::other("blob sha256:00 is missing");
                let console = vec![CONSOLE.to_owned()];
                return Err(StartFault { stage: Stage::Image, console, source: source.into() });
            }
            stages(Stage::Disks);
            let root = tempfile::tempdir().unwrap();
            for folder in ["home/sandbox", "tmp", "usr"] {
                fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            // The agent looks for interpreters below its root.
            symlink("/usr/bin", root.path().join("usr/bin")).unwrap();
            stages(Stage::Boot);
            if spec.image.to_string() == ENDLESS {
                cancelled.await;
                let _end = self.may_end.lock().await;
                let source = io::Error::other("given up");
                return Err(StartFault { stage: Stage::Boot, console: Vec::new(), source: source.into() });
            }
            let guest = Guest {
                origin: Origin::Host,
                root: root.path().to_owned(),
                work: Work::Caller,
                env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
                working_directory: None,
            };
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let serving = tokio::spawn(async move {
                // How it ends is what the host's end of the link hears.
                let _ = guest_agent::serve(far, guest, || {}).await;
            });
            let agent = agent::connect(near, Patience::default()).await.map_err(|source| StartFault {
                stage: Stage::Boot,
                console: Vec::new(),
                source: source.into(),
            })?;
            Ok(Arc::new(InProcessMachine { agent, serving, _root: root, _alive: alive }) as Arc<dyn Machine>)
        })
    }
}

struct InProcessMachine {
    agent: AgentClient,
    serving: JoinHandle<()>,
    _root: TempDir,
    _alive: Alive,
}

impl Drop for InProcessMachine {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Machine for InProcessMachine {
    fn capabilities(&self) -> &Capabilities {
        self.agent.capabilities()
    }

    fn exec<'a>(
        &'a self,
        command: Command,
        cancelled: PortFuture<'a, ()>,
        on_output: &'a mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> PortFuture<'a, Result<Ended, CallFault>> {
        Box::pin(self.agent.exec(command, cancelled, on_output))
    }

    fn write_file<'a>(
        &'a self,
        path: &'a GuestPath,
        content: &'a [u8],
        how: Writing,
    ) -> PortFuture<'a, Result<u64, CallFault>> {
        Box::pin(async move {
            assert_ne!(path.as_str(), PANIC_FILE, "a defect, as asked for");
            if path.as_str() == CRASH_FILE {
                self.serving.abort();
            }
            self.agent.write_file(path, content, how).await
        })
    }

    fn read_file<'a>(
        &'a self,
        path: &'a GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> PortFuture<'a, Result<FileContent, CallFault>> {
        Box::pin(self.agent.read_file(path, range, bytes_max))
    }

    fn list_files<'a>(
        &'a self,
        path: &'a GuestPath,
        entries_max: u32,
        recursive: bool,
    ) -> PortFuture<'a, Result<Listing, CallFault>> {
        Box::pin(self.agent.list_files(path, entries_max, recursive))
    }

    fn console(&self) -> Vec<String> {
        vec![CONSOLE.to_owned()]
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
