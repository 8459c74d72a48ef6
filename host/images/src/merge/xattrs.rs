// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Selects the extended attributes of an entry to keep, and limits their total length.

use std::collections::BTreeMap;

use super::limits::{NAME_BYTES_MAX, XATTR_BYTES_MAX};

/// The namespaces that EROFS stores unchanged. EROFS stores POSIX ACLs (`system.posix_acl_*`) in another binary form,
/// which the writer does not support. ACLs are therefore dropped, like all attributes in `system.`.
const KEPT_NAMESPACES: [&str; 3] = ["user.", "trusted.", "security."];

/// Prefix of overlayfs's internal attributes. In an image, such attributes would control the guest's overlay, for
/// example make folders opaque or redirect them.
const OVERLAY_PREFIX: &str = "trusted.overlay.";

/// Attribute values by name. A name includes the namespace.
pub(super) type Xattrs = BTreeMap<String, Vec<u8>>;

/// The reason why an extended attribute is invalid.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum XattrFlaw {
    /// The name is empty, too long, or not UTF-8.
    #[error("an extended attribute has an invalid name")]
    Name,
    #[error("its extended attributes have {bytes} bytes; at most {XATTR_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
}

/// Returns the attributes to keep. The last of several attributes with the same name wins.
pub(super) fn keep(found: &[(Vec<u8>, Vec<u8>)]) -> Result<Xattrs, XattrFlaw> {
    let mut kept = Xattrs::new();
    for (name, value) in found {
        let name = std::str::from_utf8(name).map_err(|_| XattrFlaw::Name)?;
        let Some(rest) = KEPT_NAMESPACES.iter().find_map(|namespace| name.strip_prefix(namespace)) else { continue };
        if name.starts_with(OVERLAY_PREFIX) {
            continue;
        }
        if rest.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
            return Err(XattrFlaw::Name);
        }
        kept.insert(name.to_owned(), value.clone());
    }
    let bytes = bytes(&kept);
    if bytes > XATTR_BYTES_MAX { Err(XattrFlaw::TooLong { bytes }) } else { Ok(kept) }
}

pub(super) fn bytes(xattrs: &Xattrs) -> usize {
    xattrs.iter().map(|(name, value)| name.len().saturating_add(value.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, value_bytes: usize, expected: &Result<usize, XattrFlaw>) {
        let found = [(name.as_bytes().to_vec(), vec![7; value_bytes])];
        assert_eq!(keep(&found).map(|kept| kept.len()), *expected, "{name}");
    }

    #[test]
    fn drops_acls_and_overlayfs_attributes() {
        check("security.capability", 20, &Ok(1));
        check("user.note", 3, &Ok(1));
        check("trusted.note", 3, &Ok(1));
        check("trusted.overlay.opaque", 1, &Ok(0));
        check("system.posix_acl_access", 28, &Ok(0));
        check("com.apple.quarantine", 5, &Ok(0));
    }

    #[test]
    fn rejects_oversized_attributes() {
        check("user.", 1, &Err(XattrFlaw::Name));
        check(&format!("user.{}", "n".repeat(251)), 1, &Err(XattrFlaw::Name));
        check("user.a", 16 * 1024, &Err(XattrFlaw::TooLong { bytes: 16 * 1024 + 6 }));
    }
}
