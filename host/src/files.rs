// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The server's own files: private folders, files that appear only once they are complete, files that hold
//! secrets.

pub(crate) mod draft;
pub(crate) mod private_folder;
pub mod secret_file;
pub mod token_file;
