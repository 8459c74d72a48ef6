// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The user that calls run as, unless they request root.

/// The sandbox user's home, inside the root.
pub(crate) const HOME: &str = "/home/sandbox";

/// The user id and the group id of the sandbox user.
pub(crate) const SANDBOX_ID: u32 = 1000;

pub(crate) const SANDBOX_NAME: &str = "sandbox";
