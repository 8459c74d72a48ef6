// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The error of a step of the boot or of the sandbox's setup. It contains the failed step and the kernel's error.

use std::io;

#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub(crate) struct StepFault {
    /// The operation with its operands.
    step: String,
    source: io::Error,
}

/// Adds the failed step to an I/O error.
pub(crate) trait WithStep<T> {
    /// Adds the step. The error's text is "failed to" followed by the step.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepFault>;
}

impl<T, E: Into<io::Error>> WithStep<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepFault> {
        self.map_err(|source| StepFault { step: step(), source: source.into() })
    }
}
