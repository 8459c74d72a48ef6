// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Keeps the tokens of a file, and reads it again on SIGHUP. A file that does not do then leaves those that there were.

use std::{error::Error, path::PathBuf, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{causes::chain, domain::tokens::Tokens, files::token_file};

/// The tokens, for as long as it is held.
#[derive(Debug)]
pub(super) struct TokenReader {
    tokens: watch::Receiver<Arc<Tokens>>,
    reading: JoinHandle<()>,
}

impl TokenReader {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(file: PathBuf) -> Result<Self, Box<dyn Error>> {
        let (sender, tokens) = watch::channel(Arc::new(token_file::read(&file)?));
        let mut hangup = signal(SignalKind::hangup())?;
        let reading = tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                match token_file::read(&file) {
                    Ok(tokens) => {
                        tracing::info!(?tokens, "the tokens were read again");
                        sender.send_replace(Arc::new(tokens));
                    }
                    Err(fault) => tracing::error!(fault = chain(&fault), "the tokens stay as they were"),
                }
            }
        });
        Ok(Self { tokens, reading })
    }

    /// The tokens as they are at any time.
    pub(super) fn now(&self) -> watch::Receiver<Arc<Tokens>> {
        self.tokens.clone()
    }
}

impl Drop for TokenReader {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
