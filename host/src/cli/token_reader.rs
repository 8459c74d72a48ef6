// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the tokens from a file at the start, and again on SIGHUP. If a reload fails, the old tokens stay valid.

use std::{error::Error, path::PathBuf, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{domain::tokens::Tokens, files::token_file};

/// The reader of the tokens. Dropping the reader stops the reloads.
#[derive(Debug)]
pub(super) struct TokenReader {
    tokens: watch::Receiver<Arc<Tokens>>,
    reading: JoinHandle<()>,
}

impl TokenReader {
    /// Reads the file, and begins to watch for SIGHUP.
    ///
    /// # Errors
    /// The file's error.
    pub(super) fn open(file: PathBuf) -> Result<Self, Box<dyn Error>> {
        let (sender, tokens) = watch::channel(Arc::new(token_file::read(&file)?));
        let mut hangup = signal(SignalKind::hangup())?;
        let reading = tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                match token_file::read(&file) {
                    Ok(tokens) => {
                        tracing::info!(?tokens, "reloaded the tokens");
                        sender.send_replace(Arc::new(tokens));
                    }
                    Err(fault) => {
                        tracing::error!(error = &fault as &dyn Error, "failed to reload the tokens; the old ones stay")
                    }
                }
            }
        });
        Ok(Self { tokens, reading })
    }

    /// Returns a receiver of the current tokens.
    pub(super) fn current(&self) -> watch::Receiver<Arc<Tokens>> {
        self.tokens.clone()
    }
}

impl Drop for TokenReader {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
