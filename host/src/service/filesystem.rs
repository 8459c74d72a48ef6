// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Writes, reads and lists files in environments, with the rights of the sandbox user.

use std::sync::Arc;

use super::{
    environments::Environments,
    execution::{await_guest, check_size},
    fault::Fault,
};
use crate::domain::{
    environment::EnvironmentId,
    guest_path::GuestPath,
    ports::{FileContent, FileRange, Listing, Writing},
    principal::Principal,
};

/// The largest file that one call writes or reads.
pub const FILE_BYTES_MAX: usize = 10 * 1024 * 1024;

/// More entries than this are of no use to a client, and their names would fill megabytes.
pub const ENTRIES_MAX: u32 = 10_000;

/// The files of these environments.
#[derive(Debug)]
pub struct Filesystem {
    environments: Arc<Environments>,
}

impl Filesystem {
    /// The files of these environments.
    #[must_use]
    pub fn new(environments: Arc<Environments>) -> Self {
        Self { environments }
    }

    /// Writes a file, or adds to one, making the folders above it; returns the bytes written.
    ///
    /// # Errors
    /// Content above [`FILE_BYTES_MAX`], and what the guest says against it.
    pub async fn write(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        content: &[u8],
        how: Writing,
    ) -> Result<u64, Fault> {
        let in_parts = "; write it in parts with append, or make it with execute";
        check_size("content", content.len(), FILE_BYTES_MAX, in_parts)?;
        let call = self.environments.begin(owner, id).await?;
        let answer = call.machine.write_file(path, content, how);
        await_guest(&self.environments, owner, &call, "write the file", answer).await
    }

    /// Reads a whole file of at most [`FILE_BYTES_MAX`], or such a part of one.
    ///
    /// # Errors
    /// What the guest says against it: no such file, a folder, too large.
    pub async fn read(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        range: Option<FileRange>,
    ) -> Result<FileContent, Fault> {
        let call = self.environments.begin(owner, id).await?;
        let answer = call.machine.read_file(path, range, FILE_BYTES_MAX as u64);
        await_guest(&self.environments, owner, &call, "read the file", answer).await
    }

    /// Lists a folder, or with `recursive` all that is below it: at most [`ENTRIES_MAX`] entries by name.
    ///
    /// # Errors
    /// What the guest says against it.
    pub async fn list(
        &self,
        owner: &Principal,
        id: EnvironmentId,
        path: &GuestPath,
        recursive: bool,
    ) -> Result<Listing, Fault> {
        let call = self.environments.begin(owner, id).await?;
        let answer = call.machine.list_files(path, ENTRIES_MAX, recursive);
        await_guest(&self.environments, owner, &call, "list the folder", answer).await
    }
}
