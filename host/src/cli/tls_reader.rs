// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the certificate and its key at the start, and again on SIGHUP, together with the tokens. If a reload fails,
//! the old pair stays in use. Open connections keep the pair of their handshake.

use std::{error::Error, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::files::tls_files::TlsFiles;

/// The reader of the certificate and its key. Dropping the reader stops the reloads.
#[derive(Debug)]
pub(super) struct TlsReader {
    config: watch::Receiver<Arc<ServerConfig>>,
    reading: JoinHandle<()>,
}

impl TlsReader {
    /// Reads the files, and begins to watch for SIGHUP.
    ///
    /// # Errors
    /// The error of either file.
    pub(super) fn open(files: TlsFiles) -> Result<Self, Box<dyn Error>> {
        let (sender, config) = watch::channel(Arc::new(files.read()?));
        let mut hangup = signal(SignalKind::hangup())?;
        let reading = tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                match files.read() {
                    Ok(config) => {
                        let certificate = files.certificate.display();
                        tracing::info!(%certificate, "reloaded the certificate and its key");
                        sender.send_replace(Arc::new(config));
                    }
                    Err(fault) => {
                        let error = &fault as &dyn Error;
                        tracing::error!(error, "failed to reload the certificate and its key; the old ones stay");
                    }
                }
            }
        });
        Ok(Self { config, reading })
    }

    /// Returns a receiver of the current settings.
    pub(super) fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.clone()
    }
}

impl Drop for TlsReader {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
