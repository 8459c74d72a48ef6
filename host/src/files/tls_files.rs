// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the server's certificate and private key, and makes the settings of TLS from them: TLS 1.2 and 1.3, with the
//! library's default ciphers, for HTTP/1.1.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};
use secrecy::ExposeSecret as _;

use super::secret_file::{self, SecretFileFault};

/// Maximum size of either file in bytes: a long chain of certificates. A larger file is probably the wrong file.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The protocol that clients may choose during the handshake (ALPN, RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// The paths of a certificate and its private key.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads the files. The key's file must belong to the server's user or to root, and be private.
    ///
    /// # Errors
    /// [`TlsFilesFault`], which names the file and never shows the key.
    pub fn read(&self) -> Result<ServerConfig, TlsFilesFault> {
        let (chain, key) = (certificates(&self.certificate)?, private_key(&self.key)?);
        let fault =
            |source| TlsFilesFault::Pair { certificate: self.certificate.clone(), key: self.key.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(fault)?;
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(fault)?;
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFilesFault> {
    let fault = |source| TlsFilesFault::ReadCertificate { path: path.to_owned(), source };
    let content = |reason| TlsFilesFault::Certificate { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    File::open(path).map_err(fault)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(content("the file must have at most 256 KiB"));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|_fault| content("a certificate is not in PEM"))?;
    if found.is_empty() { Err(content("the file contains no certificate in PEM")) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFilesFault> {
    let text = secret_file::read(path, FILE_BYTES_MAX);
    let text = text.map_err(|source| TlsFilesFault::ReadKey { path: path.to_owned(), source })?;
    let key = PrivateKeyDer::from_pem_slice(text.expose_secret().as_bytes());
    // The library's error may quote the file, so it is dropped.
    key.map_err(|fault| {
        let reason = match matches!(fault, pem::Error::NoItemsFound) {
            true => "the file must contain a private key in PEM, without a passphrase",
            false => "the key is not in PEM",
        };
        TlsFilesFault::Key { path: path.to_owned(), reason }
    })
}

/// The certificate or the key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesFault {
    #[error("failed to read the certificate in {}", path.display())]
    ReadCertificate { path: PathBuf, source: io::Error },
    #[error("invalid certificate in {}: {reason}", path.display())]
    Certificate { path: PathBuf, reason: &'static str },
    /// The file is unreadable, or other users have access to it.
    #[error("failed to read the private key in {}", path.display())]
    ReadKey { path: PathBuf, source: SecretFileFault },
    #[error("invalid private key in {}: {reason}", path.display())]
    Key { path: PathBuf, reason: &'static str },
    /// Most often, the key belongs to another certificate.
    #[error("failed to use the key in {} with the certificate in {}", key.display(), certificate.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}
