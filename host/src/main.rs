// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The `waggle` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = waggle::infra::vmm::run_if_runner() {
        return code;
    }
    ExitCode::SUCCESS
}
