// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes, reads and lists files in environments, with the rights of the sandbox user.

use std::{sync::Arc, time::Duration};

use super::{
    environments::Environments,
    fault::{ArgumentFault, Fault},
    guest_answer::await_guest,
};
use crate::domain::{
    environment_id::EnvironmentId,
    file::{FileContent, FileRange, ListOptions, Listing, NAME_TEXT_BYTES_MAX, Writing},
    guest_path::GuestPath,
    principal::Principal,
};

/// Maximum bytes that one call writes.
pub const FILE_BYTES_MAX: usize = 10 * 1024 * 1024;

/// Maximum number of entries of one listing. More entries never fit into one result.
pub const ENTRIES_MAX: u32 = 5000;

/// Maximum time that a call waits for a place among the environment's concurrent calls. Many clients wait no longer
/// than a minute for a result.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(45);

/// The file operations in environments.
#[derive(Debug)]
pub struct Filesystem {
    environments: Arc<Environments>,
}

impl Filesystem {
    #[must_use]
    pub fn new(environments: Arc<Environments>) -> Self {
        Self { environments }
    }

    /// Writes or appends to a file, and creates its parent folders. Returns the number of bytes written.
    ///
    /// # Errors
    /// Content above [`FILE_BYTES_MAX`], and the guest's refusal.
    pub async fn write(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        content: &[u8],
        how: Writing,
    ) -> Result<u64, Fault> {
        let advice = "; write the file in parts with append, or create it with execute";
        ArgumentFault::check_size("content", content.len(), FILE_BYTES_MAX, advice)?;
        let call = self.environments.begin(owner, id, PLACE_WAIT_MAX).await?;
        let answer = call.machine.agent().write_file(path, content, how);
        await_guest(&self.environments, owner, &call, "write the file", answer).await
    }

    /// Reads a part of a file.
    ///
    /// # Errors
    /// The guest's refusal, such as a missing file or a folder.
    pub async fn read(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        range: FileRange,
    ) -> Result<FileContent, Fault> {
        let call = self.environments.begin(owner, id, PLACE_WAIT_MAX).await?;
        let answer = call.machine.agent().read_file(path, Some(range), FILE_BYTES_MAX as u64);
        await_guest(&self.environments, owner, &call, "read the file", answer).await
    }

    /// Lists a page of at most [`ENTRIES_MAX`] entries of a folder, sorted by name; with `recursive`, also those of
    /// subfolders. The page begins after the name `after`, or with the first entry if `after` is empty.
    ///
    /// # Errors
    /// A longer `after` than any name, and the guest's refusal.
    pub async fn list(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        after: String,
        recursive: bool,
    ) -> Result<Listing, Fault> {
        ArgumentFault::check_size("after", after.len(), NAME_TEXT_BYTES_MAX, "; pass \"next\" of the last result")?;
        let options = ListOptions { after, entries_max: ENTRIES_MAX, recursive };
        let call = self.environments.begin(owner, id, PLACE_WAIT_MAX).await?;
        let answer = call.machine.agent().list_files(path, &options);
        await_guest(&self.environments, owner, &call, "list the folder", answer).await
    }
}
