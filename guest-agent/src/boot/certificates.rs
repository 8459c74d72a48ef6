// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Makes programs in the machine trust the operator's certificates in addition to the image's certificates.
//!
//! The operator's certificates are added to the image's certificate store, and to the folders from which the image's
//! tools rebuild the store. Environment variables make programs with a separate store use the image's store instead.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::replace::replace;
use crate::step::{StepFault, WithStep};

/// The certificate stores of the distributions. Each store is one file with all certificates. If the image has no
/// store, a store is created at the first path.
const STORES: [&str; 5] = [
    // Debian, Alpine, Arch.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, Red Hat.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // SUSE.
    "/etc/ssl/ca-bundle.pem",
    // OpenSSL's default on some distributions.
    "/etc/ssl/cert.pem",
];

/// A file with only the operator's certificates, for programs that add a file to their own store.
const OWN: &str = "/etc/ssl/waggle-ca-bundle.pem";

/// The folder from which the tool of Debian and Alpine reads certificates, one per file.
const DEBIAN_ANCHORS: &str = "/usr/local/share/ca-certificates";

/// The folders from which the tools of Fedora and SUSE read certificates.
const OTHER_ANCHORS: [&str; 2] = ["/etc/pki/ca-trust/source/anchors", "/etc/pki/trust/anchors"];

/// Variables that replace the certificate store of OpenSSL, requests, pip, curl and git.
const STORE_VARIABLES: [&str; 5] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

/// The variable that adds certificates to Node's store.
const ADDED_VARIABLE: &str = "NODE_EXTRA_CA_CERTS";

/// Adds the PEM bundle to the image, and returns the variables that programs need. An empty bundle changes nothing.
pub(super) fn trust(bundle: &str) -> Result<Vec<(String, String)>, StepFault> {
    if bundle.is_empty() {
        return Ok(Vec::new());
    }
    let stores: Vec<_> = STORES.into_iter().filter(|store| is_file(store)).collect();
    let store = *stores.first().unwrap_or(&STORES[0]);
    replace(OWN, bundle)?;
    if stores.is_empty() {
        replace(store, "")?;
    }
    // Several stores may be links to the same file.
    let found: BTreeSet<PathBuf> = STORES.into_iter().filter_map(|store| fs::canonicalize(store).ok()).collect();
    for path in found.iter().filter(|path| path.is_file()) {
        append(path, bundle).step(|| format!("add certificates to {}", path.display()))?;
    }
    for (number, certificate) in (1..).zip(certificates(bundle)) {
        replace(&format!("{DEBIAN_ANCHORS}/waggle-{number}.crt"), certificate)?;
    }
    for folder in OTHER_ANCHORS.into_iter().filter(|folder| Path::new(folder).is_dir()) {
        replace(&format!("{folder}/waggle.pem"), bundle)?;
    }
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut variables: Vec<_> = STORE_VARIABLES.into_iter().map(|name| variable(name, store)).collect();
    variables.push(variable(ADDED_VARIABLE, OWN));
    Ok(variables)
}

/// Returns whether the path is a regular file. Opening a pipe would block the boot.
fn is_file(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file())
}

fn append(path: &Path, bundle: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    // Some stores do not end with a line break.
    file.write_all(format!("\n{}\n", bundle.trim_end()).as_bytes())
}

/// Returns the certificates of a bundle, without the comments between them.
fn certificates(bundle: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----\n";
    bundle.match_indices(BEGIN).filter_map(|(at, _)| {
        let rest = bundle.get(at..)?;
        let length = rest.find(END.trim_end())?;
        Some(rest.get(..length + END.len()).unwrap_or(rest))
    })
}

#[cfg(test)]
mod tests {
    use super::certificates;

    #[test]
    fn bundle_is_split_into_certificates() {
        let first = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        let second = "-----BEGIN CERTIFICATE-----\nBB\n-----END CERTIFICATE-----";
        let bundle = format!("# one\n{first}\n# two\n{second}");
        assert_eq!(certificates(&bundle).collect::<Vec<_>>(), [first, second]);
        assert_eq!(certificates("nothing").count(), 0);
        assert_eq!(certificates("-----BEGIN CERTIFICATE-----\nAA\n").count(), 0);
    }
}
