// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The return of a suspended environment, which the next result tells its owner once.

use std::sync::Mutex;

use waggle_shared::mutex::lock;

/// The return of a suspended environment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resumed {
    /// Whether the memory came back, and so the programs that ran. Without it, only the files did.
    pub memory: bool,
}

/// The last return of which no result has told.
#[derive(Debug, Default)]
pub(super) struct ResumeNote(Mutex<Option<Resumed>>);

impl ResumeNote {
    /// Sets the note. Programs that have ended remain worth telling, even if the environment has come back again since.
    pub(super) fn set(&self, resumed: Resumed) {
        let mut note = lock(&self.0);
        let memory = resumed.memory && note.is_none_or(|earlier| earlier.memory);
        *note = Some(Resumed { memory });
    }

    /// Returns the note, and removes it.
    pub(super) fn take(&self) -> Option<Resumed> {
        lock(&self.0).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_memory_is_told_once_even_after_another_return() {
        let note = ResumeNote::default();
        assert_eq!(note.take(), None);
        note.set(Resumed { memory: false });
        note.set(Resumed { memory: true });
        assert_eq!((note.take(), note.take()), (Some(Resumed { memory: false }), None));
        note.set(Resumed { memory: true });
        assert_eq!(note.take(), Some(Resumed { memory: true }));
    }
}
