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

/// The attributes of an inode, ordered by name.
///
/// They are encoded in one allocation, because an attribute in a map costs more than 100 bytes of memory, however short
/// it is. An encoded attribute consists of the length of the name (1 byte), the length of the value (2 bytes), the name
/// with its namespace, and the value.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Xattrs(Box<[u8]>);

impl Xattrs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of bytes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.0.len()
    }

    /// Returns names and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let ([name_bytes, value_bytes @ ..], after) = rest.split_first_chunk::<3>()?;
            let (name, after) = after.split_at_checked(usize::from(*name_bytes))?;
            let (value, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*value_bytes)))?;
            rest = after;
            Some((name, value))
        })
    }
}

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
    let mut kept = BTreeMap::new();
    for (name, value) in found {
        let name = std::str::from_utf8(name).map_err(|_| XattrFlaw::Name)?;
        let Some(rest) = KEPT_NAMESPACES.iter().find_map(|namespace| name.strip_prefix(namespace)) else { continue };
        if name.starts_with(OVERLAY_PREFIX) {
            continue;
        }
        if rest.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
            return Err(XattrFlaw::Name);
        }
        kept.insert(name, value.as_slice());
    }
    let bytes = kept.iter().map(|(name, value)| name.len().saturating_add(value.len())).sum();
    if bytes > XATTR_BYTES_MAX {
        return Err(XattrFlaw::TooLong { bytes });
    }
    let mut encoded = Vec::new();
    for (name, value) in kept {
        encoded.push(u8::try_from(name.len()).map_err(|_| XattrFlaw::Name)?);
        encoded.extend(u16::try_from(value.len()).map_err(|_| XattrFlaw::TooLong { bytes })?.to_le_bytes());
        encoded.extend_from_slice(name.as_bytes());
        encoded.extend_from_slice(value);
    }
    Ok(Xattrs(encoded.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, value_bytes: usize, expected: &Result<usize, XattrFlaw>) {
        let found = [(name.as_bytes().to_vec(), vec![7; value_bytes])];
        assert_eq!(keep(&found).map(|kept| kept.iter().count()), *expected, "{name}");
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
    fn attributes_are_ordered_and_the_last_of_a_name_wins() {
        let value = [7; XATTR_BYTES_MAX - 255 - 12];
        let name = format!("user.{}", "n".repeat(250));
        let found: [(&[u8], &[u8]); 4] =
            [(b"user.b", b"1"), (name.as_bytes(), &value), (b"user.a", b""), (b"user.b", b"")];
        let kept = keep(&found.map(|(name, value)| (name.to_vec(), value.to_vec()))).unwrap();
        let expected: [(&[u8], &[u8]); 3] = [(b"user.a", b""), (b"user.b", b""), (name.as_bytes(), &value)];
        assert!(kept.iter().eq(expected), "{kept:?}");
        assert!(keep(&[]).unwrap().is_empty());
    }

    #[test]
    fn rejects_oversized_attributes() {
        check("user.", 1, &Err(XattrFlaw::Name));
        check(&format!("user.{}", "n".repeat(251)), 1, &Err(XattrFlaw::Name));
        check("user.a", 16 * 1024, &Err(XattrFlaw::TooLong { bytes: 16 * 1024 + 6 }));
    }
}
