// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The queue of the installations in an environment: package managers cannot run at the same time.
//!
//! Installations get their turns in the order in which they asked. The queue also remembers the installations that were
//! killed and have not been repaired, for each kind of packages, because each package manager repairs only its own.
//! Queued installations occupy no place among the environment's concurrent calls. The limits of running calls, of each
//! caller and of the server, limit the queue.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use waggle_shared::mutex::lock;

use crate::domain::runtime::{ByRuntime, KilledInstallation, PackageKind};

/// Number of installations that run at the same time.
const TURNS: usize = 1;

/// The killed installations of an environment that have not been repaired.
pub(super) type KilledInstallations = ByRuntime<Option<KilledInstallation>>;

#[derive(Debug)]
pub(super) struct InstallationQueue {
    turns: Arc<Semaphore>,
    killed: Mutex<KilledInstallations>,
}

impl Default for InstallationQueue {
    fn default() -> Self {
        Self::after(KilledInstallations::default())
    }
}

impl InstallationQueue {
    /// Creates the queue of an environment in which these installations were killed.
    pub(super) fn after(killed: KilledInstallations) -> Self {
        Self { turns: Arc::new(Semaphore::new(TURNS)), killed: Mutex::new(killed) }
    }

    /// Returns the killed installations, for a fork of the environment.
    pub(super) fn all_killed(&self) -> KilledInstallations {
        lock(&self.killed).clone()
    }

    /// Waits for a turn. Returns `None` if the environment takes no more calls.
    pub(super) async fn turn(self: Arc<Self>) -> Option<Turn> {
        let permit = Arc::clone(&self.turns).acquire_owned().await.ok()?;
        Some(Turn { queue: self, _permit: permit })
    }

    /// Ends all waiting, because the environment takes no more calls.
    pub(super) fn close(&self) {
        self.turns.close();
    }
}

/// The turn of one installation. The next installation gets its turn when this one is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    queue: Arc<InstallationQueue>,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// Returns the killed installation of such packages, if there is one that has not been repaired.
    pub(super) fn killed(&self, kind: PackageKind) -> Option<KilledInstallation> {
        *lock(&self.queue.killed).of(kind.runtime())
    }

    /// Sets the killed installation of such packages.
    pub(super) fn set_killed(&self, kind: PackageKind, killed: Option<KilledInstallation>) {
        *lock(&self.queue.killed).of_mut(kind.runtime()) = killed;
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::domain::runtime::Runtime;

    fn queue() -> Arc<InstallationQueue> {
        Arc::default()
    }

    #[test]
    fn installations_get_their_turns_in_order() {
        let queue = queue();
        let first = Arc::clone(&queue).turn().now_or_never().flatten();
        assert!(first.is_some());
        let [mut second, mut third] = [(), ()].map(|()| Box::pin(Arc::clone(&queue).turn()));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.as_mut().now_or_never().flatten();
        assert!(second.is_some() && third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().flatten().is_some());
    }

    #[test]
    fn closed_queue_ends_all_waiting() {
        let queue = queue();
        let _running = Arc::clone(&queue).turn().now_or_never().flatten();
        let mut waiting = Box::pin(Arc::clone(&queue).turn());
        assert!(waiting.as_mut().now_or_never().is_none());
        queue.close();
        assert!(waiting.as_mut().now_or_never().is_some_and(|turn| turn.is_none()));
        assert!(queue.turn().now_or_never().is_some_and(|turn| turn.is_none()));
    }

    #[test]
    fn repaired_packages_of_one_kind_leave_those_of_another_to_repair() {
        let queue = queue();
        let turn = queue.turn().now_or_never().flatten().unwrap();
        let python = PackageKind::Runtime(Runtime::Python);
        let killed = Some(KilledInstallation { began: UNIX_EPOCH, ended: UNIX_EPOCH });
        turn.set_killed(python, killed);
        turn.set_killed(PackageKind::System, killed);
        turn.set_killed(PackageKind::System, None);
        assert_eq!([turn.killed(python), turn.killed(PackageKind::System)], [killed, None]);
        // The packages of the runtime shell are the system's.
        turn.set_killed(PackageKind::System, killed);
        assert_eq!(turn.killed(PackageKind::Runtime(Runtime::Shell)), killed);
    }
}
