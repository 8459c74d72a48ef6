// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The smallest image: an OCI layout with one empty layer.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

/// Writes the layout of an image with the tag `latest`.
pub(crate) fn write(folder: &Path) {
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    // A tar archive ends with two blocks of zeros.
    let layer = blob(folder, "application/vnd.oci.image.layer.v1.tar", &[0; 1024]);
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(folder, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let mut manifest = blob(folder, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "latest"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// Writes a blob and returns its descriptor.
fn blob(folder: &Path, kind: &str, content: &[u8]) -> serde_json::Value {
    let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join("blobs/sha256").join(&digest), content).unwrap();
    serde_json::json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len()})
}
