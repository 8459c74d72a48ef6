// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads the operator's certificates for the guests. Other content of the file is ignored, except that a private key is
//! an error, because guests must not see it.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use waggle_protocol::boot::CA_BUNDLE_BYTES_MAX;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A file with certificates could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CaBundleFault {
    #[error("failed to read the certificates in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("invalid certificates in {}: {reason}", path.display())]
    Content { path: PathBuf, reason: &'static str },
}

/// Reads the certificates in a file, as concatenated PEM.
///
/// # Errors
/// [`CaBundleFault`] names the file and the reason.
pub fn read(path: &Path) -> Result<String, CaBundleFault> {
    let fault = |source| CaBundleFault::Read { path: path.to_owned(), source };
    let content = |reason| CaBundleFault::Content { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    let limit = CA_BUNDLE_BYTES_MAX as u64 + 1;
    File::open(path).map_err(fault)?.take(limit).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() > CA_BUNDLE_BYTES_MAX {
        return Err(content("the file must have at most 1 MiB"));
    }
    certificates(&String::from_utf8_lossy(&bytes)).map_err(content)
}

fn certificates(text: &str) -> Result<String, &'static str> {
    if text.contains("PRIVATE KEY-----") {
        return Err("the file contains a private key, which guests must not see");
    }
    let mut found = String::new();
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once(BEGIN) {
        let (body, behind) = behind.split_once(END).ok_or("a certificate has no END line")?;
        let encoded: String = body.split_whitespace().collect();
        let decoded = STANDARD.decode(&encoded).map_err(|_no_base64| "a certificate is not base64")?;
        // In DER, a certificate begins with the tag of a sequence.
        if decoded.first() != Some(&0x30) {
            return Err("a certificate is not DER");
        }
        found.extend([BEGIN, body, END, "\n"]);
        rest = behind;
    }
    if found.is_empty() { Err("the file contains no certificate in PEM format") } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_certificates() {
        let one = format!("{BEGIN}\nMAA=\n{END}\n");
        let file = format!("# comment\n{one}more text\n{one}");
        assert_eq!(certificates(&file).unwrap(), format!("{one}{one}"));
    }

    #[test]
    fn rejects_files_without_valid_certificates() {
        for (text, expected) in [
            ("", "contains no certificate"),
            ("-----BEGIN CERTIFICATE-----\nMAA=", "no END line"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----", "not base64"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "not DER"),
            ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ] {
            let reason = certificates(text).unwrap_err();
            assert!(reason.contains(expected), "{text}: {reason}");
        }
        let fault = read(Path::new("/nowhere.pem")).unwrap_err().to_string();
        assert_eq!(fault, "failed to read the certificates in /nowhere.pem");
    }
}
