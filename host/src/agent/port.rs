// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Implements the domain's [`Agent`] for the client.

use super::AgentClient;
use crate::domain::{
    call_fault::CallFault,
    capabilities::Capabilities,
    command::{Command, Executed, OutputStream},
    file::{FileContent, FileRange, ListOptions, Listing, Writing},
    guest_path::GuestPath,
    machine::{Agent, PortFuture},
};

impl Agent for AgentClient {
    fn capabilities(&self) -> &Capabilities {
        self.capabilities()
    }

    fn background_memory_kills(&self) -> u64 {
        self.background_memory_kills()
    }

    fn exec<'a>(
        &'a self,
        command: Command,
        cancelled: PortFuture<'a, ()>,
        on_output: &'a mut (dyn FnMut(OutputStream, &[u8]) + Send),
    ) -> PortFuture<'a, Result<Executed, CallFault>> {
        Box::pin(self.exec(command, cancelled, on_output))
    }

    fn write_file<'a>(
        &'a self,
        path: &'a GuestPath,
        content: &'a [u8],
        how: Writing,
    ) -> PortFuture<'a, Result<u64, CallFault>> {
        Box::pin(self.write_file(path, content, how))
    }

    fn read_file<'a>(
        &'a self,
        path: &'a GuestPath,
        range: Option<FileRange>,
        bytes_max: u64,
    ) -> PortFuture<'a, Result<FileContent, CallFault>> {
        Box::pin(self.read_file(path, range, bytes_max))
    }

    fn list_files<'a>(
        &'a self,
        path: &'a GuestPath,
        options: &'a ListOptions,
    ) -> PortFuture<'a, Result<Listing, CallFault>> {
        Box::pin(self.list_files(path, options))
    }
}
