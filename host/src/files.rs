// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Files that hold secrets.

pub mod secret_file;
pub mod tls_files;
pub mod token_file;
