// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! An authority, and certificates that it signs, made with openssl.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tempfile::TempDir;
use waggle::files::tls_files::TlsFiles;

pub(crate) struct Authority {
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self { folder: tempfile::tempdir().unwrap() };
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=hive \
                           -keyout authority-key.pem -out authority.pem",
        );
        authority
    }

    fn openssl(&self, arguments: &str) {
        let command =
            Command::new("openssl").args(arguments.split_whitespace()).current_dir(self.folder.path()).output();
        let ended = command.expect("failed to run openssl: run ./setup test");
        assert!(ended.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Makes a certificate for 127.0.0.1 with this common name.
    pub(crate) fn issue(&self, name: &str) -> TlsFiles {
        fs::write(self.path("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}-key.pem \
             -out {name}-request.pem"
        ));
        self.openssl(&format!(
            "x509 -req -days 2 -CAcreateserial -extfile extensions -CA authority.pem -CAkey authority-key.pem \
             -in {name}-request.pem -out {name}.pem"
        ));
        let key = self.path(&format!("{name}-key.pem"));
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        TlsFiles { certificate: self.path(&format!("{name}.pem")), key }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the authority's own certificate.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("authority.pem")).unwrap()
    }
}
