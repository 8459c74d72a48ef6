// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The number of callers that the operator has configured, which may change when the tokens are read again.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::domain::tokens::Tokens;

/// The callers of the server. All clones see the same number.
#[derive(Clone, Debug, Default)]
pub struct Callers(Arc<OnceLock<watch::Receiver<Arc<Tokens>>>>);

impl Callers {
    /// Counts the names in these tokens from now on. A second call has no effect.
    pub fn count_in(&self, tokens: watch::Receiver<Arc<Tokens>>) {
        let _ = self.0.set(tokens);
    }

    /// Returns the number of names with tokens; 1 on a server without tokens.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.get().map_or(1, |tokens| tokens.borrow().names())
    }
}
