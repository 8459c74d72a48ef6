// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The note in the first result after a suspended environment came back.

use schemars::JsonSchema;
use serde::Serialize;

use crate::service::resume_note::Resumed;

const WITH_MEMORY: &str = "the environment was suspended and has come back with its memory: its programs go on, but \
                           its connections to the network are closed";

const WITHOUT_MEMORY: &str = "the environment was suspended and has come back with its files only: the programs \
                              that ran have ended, so start again what must run";

/// The keys of the note; both are absent in most results.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub(super) struct ResumedNote {
    /// Whether the programs of a suspended environment went on when it came back for a call; absent if it was not
    /// suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<bool>,
    /// A note on the return of a suspended environment; absent if it was not suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed: Option<&'static str>,
}

impl From<Option<Resumed>> for ResumedNote {
    fn from(resumed: Option<Resumed>) -> Self {
        let memory = resumed.map(|resumed| resumed.memory);
        Self { memory, resumed: memory.map(|memory| if memory { WITH_MEMORY } else { WITHOUT_MEMORY }) }
    }
}
