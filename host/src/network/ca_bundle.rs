// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the operator's certificates for the guests, and takes nothing else of the file: guests must not see a key.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use waggle_protocol::boot::CA_BUNDLE_BYTES_MAX;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A file with certificates does not do.
#[derive(Debug, thiserror::Error)]
pub enum CaBundleFault {
    /// It cannot be read.
    #[error("failed to read the certificates in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("failed to find certificates in {}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
}

/// The certificates in a file, in PEM, one behind the other.
///
/// # Errors
/// [`CaBundleFault`] names the file and what is wrong with it.
pub fn read(path: &Path) -> Result<String, CaBundleFault> {
    let fault = |source| CaBundleFault::Read { path: path.to_owned(), source };
    let content = |reason| CaBundleFault::Content { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    let limit = CA_BUNDLE_BYTES_MAX as u64 + 1;
    File::open(path).map_err(fault)?.take(limit).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() > CA_BUNDLE_BYTES_MAX {
        return Err(content("it is larger than 1 MiB"));
    }
    certificates(&String::from_utf8_lossy(&bytes)).map_err(content)
}

fn certificates(text: &str) -> Result<String, &'static str> {
    if text.contains("PRIVATE KEY-----") {
        return Err("it holds a private key, which guests must not see");
    }
    let mut found = String::new();
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once(BEGIN) {
        let (body, behind) = behind.split_once(END).ok_or("a certificate in it has no end")?;
        let encoded: String = body.split_whitespace().collect();
        let decoded = STANDARD.decode(&encoded).map_err(|_no_base64| "a certificate in it is not base64")?;
        // DER has a sequence here.
        if decoded.first() != Some(&0x30) {
            return Err("what should be a certificate in it is none");
        }
        found.extend([BEGIN, body, END, "\n"]);
        rest = behind;
    }
    if found.is_empty() { Err("there are none; they have to be in PEM") } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken() {
        let one = format!("{BEGIN}\nMAA=\n{END}\n");
        let file = format!("# comment\n{one}more text\n{one}");
        assert_eq!(certificates(&file).unwrap(), format!("{one}{one}"));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        for (text, expected) in [
            ("", "there are none"),
            ("-----BEGIN CERTIFICATE-----\nMAA=", "has no end"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----", "not base64"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "none"),
            ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ] {
            let reason = certificates(text).unwrap_err();
            assert!(reason.contains(expected), "{text}: {reason}");
        }
        let fault = read(Path::new("/nowhere.pem")).unwrap_err().to_string();
        assert_eq!(fault, "failed to read the certificates in /nowhere.pem");
    }
}
