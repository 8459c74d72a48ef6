// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Has programs in the machine trust the operator's certificates besides those that the image brings.
//!
//! They are added to the image's own store, wherever its distribution keeps that, and put where its tools look for them
//! when they make the store anew. Programs with a store of their own are told by variables to use that one.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{BootFault, Step};

/// The stores of the distributions, all certificates in one file; the first is made where the image has none.
const STORES: [&str; 5] = [
    // Debian, Alpine, Arch.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, Red Hat.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // SUSE.
    "/etc/ssl/ca-bundle.pem",
    // OpenSSL's own default on some of them.
    "/etc/ssl/cert.pem",
];

/// The operator's certificates alone, for programs that want only what is to be added.
const OWN: &str = "/etc/ssl/waggle-ca-bundle.pem";

/// Where Debian's and Alpine's tool takes certificates from, one a file.
const DEBIAN_ANCHORS: &str = "/usr/local/share/ca-certificates";

/// Where the tools of Fedora and SUSE do, where the image has them.
const OTHER_ANCHORS: [&str; 2] = ["/etc/pki/ca-trust/source/anchors", "/etc/pki/trust/anchors"];

/// Variables by which programs take another store than their own: OpenSSL, requests, pip, curl, git.
const STORE_VARIABLES: [&str; 5] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

/// The variable by which Node takes certificates besides its own.
const ADDED_VARIABLE: &str = "NODE_EXTRA_CA_CERTS";

/// Adds a bundle in PEM, and gives the variables that programs need. An empty bundle changes nothing.
pub(super) fn trust(bundle: &str) -> Result<Vec<(String, String)>, BootFault> {
    if bundle.is_empty() {
        return Ok(Vec::new());
    }
    let stores: Vec<_> = STORES.into_iter().filter(|store| is_file(store)).collect();
    let store = *stores.first().unwrap_or(&STORES[0]);
    write(Path::new(OWN), bundle)?;
    if stores.is_empty() {
        write(Path::new(store), "")?;
    }
    // Several of them are links to the same file.
    let found: BTreeSet<PathBuf> = STORES.into_iter().filter_map(|store| fs::canonicalize(store).ok()).collect();
    for path in found.iter().filter(|path| path.is_file()) {
        append(path, bundle).step(|| format!("add certificates to {}", path.display()))?;
    }
    for (number, certificate) in (1..).zip(certificates(bundle)) {
        write(&Path::new(DEBIAN_ANCHORS).join(format!("waggle-{number}.crt")), certificate)?;
    }
    for folder in OTHER_ANCHORS.into_iter().filter(|folder| Path::new(folder).is_dir()) {
        write(&Path::new(folder).join("waggle.pem"), bundle)?;
    }
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut variables: Vec<_> = STORE_VARIABLES.into_iter().map(|name| variable(name, store)).collect();
    variables.push(variable(ADDED_VARIABLE, OWN));
    Ok(variables)
}

/// Only a plain file: the image may have anything there, and to open a pipe would hold up the boot.
fn is_file(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file())
}

/// Puts a file there in place of whatever the image has.
fn write(path: &Path, text: &str) -> Result<(), BootFault> {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::remove_file(path) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
            Ok(()) | Err(_) => {}
        }
        fs::write(path, text)
    };
    write().step(|| format!("write {}", path.display()))
}

fn append(path: &Path, bundle: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    // The store's last line may lack its end.
    file.write_all(format!("\n{}\n", bundle.trim_end()).as_bytes())
}

/// The certificates of a bundle, one by one, without the comments between them.
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
    fn certificates_are_found_one_by_one() {
        let first = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        let second = "-----BEGIN CERTIFICATE-----\nBB\n-----END CERTIFICATE-----";
        let bundle = format!("# one\n{first}\n# two\n{second}");
        assert_eq!(certificates(&bundle).collect::<Vec<_>>(), [first, second]);
        assert_eq!(certificates("nothing").count(), 0);
        assert_eq!(certificates("-----BEGIN CERTIFICATE-----\nAA\n").count(), 0);
    }
}
