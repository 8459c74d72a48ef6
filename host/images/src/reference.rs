// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! References to images. A reference is parsed once, when it enters the program.
//!
//! A reference has one of three forms: a registry reference (`[REGISTRY/]NAME[:TAG][@DIGEST]`, with the grammar and the
//! short names of distribution/reference), an OCI layout folder (`oci:DIR[:TAG]`) or an OCI layout in a tar file
//! (`oci-archive:FILE[:TAG]`). Parsing only checks the form, not whether the image exists.

use std::{fmt, path::Path, path::PathBuf, str::FromStr};

use oci_spec::distribution::{ParseError, Reference};

/// Maximum bytes of a reference: 4096 for a path (`PATH_MAX`), and 512 for a tag.
const REFERENCE_BYTES_MAX: usize = 4096 + 512;

/// Maximum bytes of a registry reference. Registry and repository have at most 255 bytes each, a tag 128, a digest 137.
const REGISTRY_REFERENCE_BYTES_MAX: usize = 1024;

/// Maximum bytes of a layout's tag. The image specification sets no limit; a tag is often a whole registry reference.
const LAYOUT_TAG_BYTES_MAX: usize = 512;

const LAYOUT_PREFIX: &str = "oci:";
const ARCHIVE_PREFIX: &str = "oci-archive:";

/// The rights with which an image is pulled.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum PullRights {
    /// Those of the server's operator, who has named the image: with credentials, from registries at any address.
    #[default]
    Operator,
    /// Those of everyone on the internet: without credentials, from registries at public addresses.
    Public,
}

/// A reference to an image.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ImageRef {
    /// An image in a registry.
    Registry(RegistryRef),
    /// An OCI layout folder.
    Layout(LocalRef),
    /// An OCI layout in a tar file.
    Archive(LocalRef),
}

/// An image in a registry, with defaults for a missing registry and tag.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RegistryRef(Reference);

impl RegistryRef {
    /// Returns the registry's host name and, if given, its port: `docker.io` for short names.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Returns the repository in the registry: `library/python` for `python`.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// Returns the tag; `latest` if the user gave neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    /// Returns the reference as the type of the library that parsed it.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.0
    }

    /// Returns the digest as `ALGORITHM:HEX`. If there is a digest, the tag has no effect.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }
}

/// An image in the host's file system.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LocalRef {
    path: PathBuf,
    tag: Option<String>,
}

impl LocalRef {
    /// Returns the folder or the tar file, as the user wrote it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the tag of the image in the layout. Without a tag, the layout must contain a single image, or an image
    /// tagged `latest`.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

/// An invalid image reference.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid image reference {reference:?}: {reason}")]
pub struct ImageRefError {
    /// The invalid reference, shortened.
    pub reference: String,
    pub reason: ImageRefFlaw,
}

/// Why an image reference is invalid.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ImageRefFlaw {
    #[error("must not be empty; must be [REGISTRY/]NAME[:TAG][@DIGEST], oci:DIR[:TAG] or oci-archive:FILE[:TAG]")]
    Empty,
    #[error("{bytes} bytes are too many; must be at most {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("must not contain white space or control characters")]
    WhiteSpace,
    /// A reference that starts with a URL scheme, such as `https://` or `docker://`.
    #[error("must not start with {scheme:?}; must start with the registry's name")]
    Scheme {
        /// The scheme with its `://`.
        scheme: String,
    },
    /// `oci:` or `oci-archive:` without a path.
    #[error("missing path after {prefix:?}; must be {prefix}PATH[:TAG]")]
    NoPath {
        /// `oci:` or `oci-archive:`.
        prefix: &'static str,
    },
    /// A layout's tag that the image specification does not allow.
    #[error(
        "invalid tag {tag:?}; must be letters and digits with single '-', '.', '_', ':', '@', '+' or '/' between them, \
         at most {LAYOUT_TAG_BYTES_MAX} bytes (the path must not contain ':')"
    )]
    LayoutTag { tag: String },
    /// A path of the host where only an image in a registry is allowed.
    #[error(
        "must be an image in a registry, for example python:3.13 or ghcr.io/owner/name:1.0; folders and archives of \
             the server's machine cannot be used"
    )]
    Local,
    /// A capital letter in a repository.
    #[error("the repository {repository:?} must be in lower case")]
    UpperCase {
        /// The repository, or its last part.
        repository: String,
    },
    #[error("invalid digest; must be @sha256: and 64 lower-case hexadecimal digits (or sha384, sha512)")]
    Digest,
    #[error("the repository must have at most 255 characters")]
    RepositoryTooLong,
    /// Any other error.
    #[error("must be [REGISTRY[:PORT]/]NAME[:TAG][@DIGEST], for example python:3.13 or ghcr.io/owner/name:1.0")]
    Malformed,
}

impl FromStr for RegistryRef {
    type Err = ImageRefError;

    /// Parses a reference from a client, which cannot name images in the host's folders.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_local = text.starts_with(['/', '.'])
            || [LAYOUT_PREFIX, ARCHIVE_PREFIX].iter().any(|prefix| text.starts_with(prefix));
        let parsed = if is_local { Err(ImageRefFlaw::Local) } else { parse_registry(text) };
        parsed.map_err(|reason| ImageRefError { reference: shorten(text), reason })
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ImageRefError { reference: shorten(text), reason })
    }
}

impl ImageRef {
    /// Returns the reference with only the last part of a path, for clients, which must not learn the host's folders.
    #[must_use]
    pub fn short_name(&self) -> String {
        let (prefix, local) = match self {
            Self::Registry(registry) => return registry.0.to_string(),
            Self::Layout(local) => (LAYOUT_PREFIX, local),
            Self::Archive(local) => (ARCHIVE_PREFIX, local),
        };
        let name = local.path.file_name().unwrap_or_default().display();
        local.tag.as_ref().map_or_else(|| format!("{prefix}{name}"), |tag| format!("{prefix}{name}:{tag}"))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, local) = match self {
            Self::Registry(registry) => return registry.0.fmt(f),
            Self::Layout(local) => (LAYOUT_PREFIX, local),
            Self::Archive(local) => (ARCHIVE_PREFIX, local),
        };
        write!(f, "{prefix}{}", local.path.display())?;
        match &local.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn parse(text: &str) -> Result<ImageRef, ImageRefFlaw> {
    if text.is_empty() {
        return Err(ImageRefFlaw::Empty);
    }
    check_length(text, REFERENCE_BYTES_MAX)?;
    if let Some(rest) = text.strip_prefix(ARCHIVE_PREFIX) {
        return Ok(ImageRef::Archive(parse_local(rest, ARCHIVE_PREFIX)?));
    }
    if let Some(rest) = text.strip_prefix(LAYOUT_PREFIX) {
        return Ok(ImageRef::Layout(parse_local(rest, LAYOUT_PREFIX)?));
    }
    parse_registry(text).map(ImageRef::Registry)
}

/// Parses a path and an optional tag. As in skopeo, the first colon ends the path, so a path cannot contain a colon.
fn parse_local(rest: &str, prefix: &'static str) -> Result<LocalRef, ImageRefFlaw> {
    if rest.chars().any(char::is_control) {
        return Err(ImageRefFlaw::WhiteSpace);
    }
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ImageRefFlaw::NoPath { prefix });
    }
    if let Some(tag) = tag
        && !is_layout_tag(tag)
    {
        return Err(ImageRefFlaw::LayoutTag { tag: shorten(tag) });
    }
    Ok(LocalRef { path: PathBuf::from(path), tag: tag.map(str::to_owned) })
}

/// Whether a tag follows the grammar of `org.opencontainers.image.ref.name` in the image specification's annotations.
fn is_layout_tag(tag: &str) -> bool {
    let is_component = |component: &str| {
        let without_double = component.replace("--", "-");
        without_double
            .split(['-', '.', '_', ':', '@', '+'])
            .all(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric()))
    };
    tag.len() <= LAYOUT_TAG_BYTES_MAX && tag.split('/').all(is_component)
}

fn parse_registry(text: &str) -> Result<RegistryRef, ImageRefFlaw> {
    check_length(text, REGISTRY_REFERENCE_BYTES_MAX)?;
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(ImageRefFlaw::WhiteSpace);
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(ImageRefFlaw::Scheme { scheme: format!("{scheme}://") });
    }
    let reference: Reference = text.parse().map_err(|error| explain(text, &error))?;
    // The library accepts a first component with a capital letter as a registry, but then adds it to the repository.
    if has_upper_case(reference.repository()) {
        return Err(ImageRefFlaw::UpperCase { repository: reference.repository().to_owned() });
    }
    if reference.digest().is_some_and(has_upper_case) {
        return Err(ImageRefFlaw::Digest);
    }
    Ok(RegistryRef(reference))
}

/// Finds the mistake in an invalid reference. The library reports most mistakes only as "invalid reference format".
fn explain(text: &str, error: &ParseError) -> ImageRefFlaw {
    match error {
        ParseError::NameEmpty => ImageRefFlaw::Malformed,
        ParseError::NameTooLong => ImageRefFlaw::RepositoryTooLong,
        ParseError::DigestInvalidFormat | ParseError::DigestInvalidLength | ParseError::DigestUnsupported => {
            ImageRefFlaw::Digest
        }
        ParseError::NameContainsUppercase | ParseError::ReferenceInvalidFormat | ParseError::TagInvalidFormat => {
            let (name, digest) = match text.split_once('@') {
                Some((name, digest)) => (name, Some(digest)),
                None => (text, None),
            };
            let path = name.rsplit_once('/').map_or(name, |(_, last)| last);
            let repository = path.split_once(':').map_or(path, |(repository, _)| repository);
            if has_upper_case(repository) {
                ImageRefFlaw::UpperCase { repository: repository.to_owned() }
            } else if digest.is_some() && name.parse::<Reference>().is_ok() {
                ImageRefFlaw::Digest
            } else {
                ImageRefFlaw::Malformed
            }
        }
    }
}

fn has_upper_case(text: &str) -> bool {
    text.chars().any(char::is_uppercase)
}

fn check_length(text: &str, bytes_max: usize) -> Result<(), ImageRefFlaw> {
    if text.len() > bytes_max {
        return Err(ImageRefFlaw::TooLong { bytes: text.len(), bytes_max });
    }
    Ok(())
}

/// Maximum number of characters of an invalid reference that an error quotes.
const SHOWN_CHARS_MAX: usize = 200;

fn shorten(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_name_has_no_folders() {
        for (reference, expected) in [
            ("oci:/srv/images/shell:v1", "oci:shell:v1"),
            ("oci:/srv/images/shell", "oci:shell"),
            ("oci-archive:/srv/shell.tar", "oci-archive:shell.tar"),
            ("registry.test/a/b:1", "registry.test/a/b:1"),
        ] {
            assert_eq!(reference.parse::<ImageRef>().unwrap().short_name(), expected);
        }
    }

    const HEX: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    #[track_caller]
    fn check(input: &str, expected: Result<&str, ImageRefFlaw>) {
        let parsed = input.parse::<ImageRef>();
        assert_eq!(parsed.map(|image| image.to_string()).map_err(|error| error.reason), expected.map(str::to_owned));
    }

    #[test]
    fn short_names_get_a_registry_and_tag() {
        check("python", Ok("docker.io/library/python:latest"));
        check("python:3.13-slim", Ok("docker.io/library/python:3.13-slim"));
        check("opensuse/leap:15.3", Ok("docker.io/opensuse/leap:15.3"));
        check("ghcr.io/owner/name", Ok("ghcr.io/owner/name:latest"));
        check("localhost/x", Ok("localhost/x:latest"));
        check("registry:5000/x", Ok("registry:5000/x:latest"));
        check("registry:5000", Ok("docker.io/library/registry:5000"));
        check("index.docker.io/library/node:22", Ok("docker.io/library/node:22"));
    }

    #[test]
    fn digest_needs_no_tag() {
        let input = format!("quay.io/a/b@sha256:{HEX}");
        check(&input, Ok(&input));
        let both = format!("quay.io/a/b:1.0@sha256:{HEX}");
        check(&both, Ok(&both));
    }

    #[test]
    fn layouts_and_archives_keep_path_and_tag() {
        check("oci:target/images/python", Ok("oci:target/images/python"));
        check("oci:/srv/images:latest", Ok("oci:/srv/images:latest"));
        check("oci:/srv/my images:v1.2", Ok("oci:/srv/my images:v1.2"));
        check("oci:/srv/x:docker.io/library/python:3.13", Ok("oci:/srv/x:docker.io/library/python:3.13"));
        check("oci-archive:x.tar:latest", Ok("oci-archive:x.tar:latest"));
        let parsed: ImageRef = "oci:/srv/x:v1".parse().unwrap();
        let ImageRef::Layout(local) = parsed else { panic!("{parsed:?}") };
        assert_eq!((local.path(), local.tag()), (Path::new("/srv/x"), Some("v1")));
    }

    #[test]
    fn each_mistake_has_its_own_reason() {
        check("", Err(ImageRefFlaw::Empty));
        check("a b", Err(ImageRefFlaw::WhiteSpace));
        check("a\n", Err(ImageRefFlaw::WhiteSpace));
        check("oci:/a\0b", Err(ImageRefFlaw::WhiteSpace));
        check("docker://python", Err(ImageRefFlaw::Scheme { scheme: "docker://".to_owned() }));
        check("oci:", Err(ImageRefFlaw::NoPath { prefix: "oci:" }));
        check("oci-archive::x", Err(ImageRefFlaw::NoPath { prefix: "oci-archive:" }));
        check("oci:/x:", Err(ImageRefFlaw::LayoutTag { tag: String::new() }));
        check("oci:/x:-a", Err(ImageRefFlaw::LayoutTag { tag: "-a".to_owned() }));
        check("Python", Err(ImageRefFlaw::UpperCase { repository: "Python".to_owned() }));
        check("Owner/name", Err(ImageRefFlaw::UpperCase { repository: "Owner/name".to_owned() }));
        check("ghcr.io/x/Name:1", Err(ImageRefFlaw::UpperCase { repository: "Name".to_owned() }));
        check("x@sha256:12", Err(ImageRefFlaw::Digest));
        check(&format!("x@sha256:{}", HEX.to_uppercase()), Err(ImageRefFlaw::Digest));
        check(&format!("x@md5:{HEX}"), Err(ImageRefFlaw::Digest));
        check("x:", Err(ImageRefFlaw::Malformed));
        check(":tag", Err(ImageRefFlaw::Malformed));
        check("a//b", Err(ImageRefFlaw::Malformed));
        check(&format!("r.io/{}", "a".repeat(256)), Err(ImageRefFlaw::RepositoryTooLong));
        check(&"a".repeat(1025), Err(ImageRefFlaw::TooLong { bytes: 1025, bytes_max: 1024 }));
    }

    #[test]
    fn reference_from_a_client_names_no_path_of_the_host() {
        let reason = |text: &str| text.parse::<RegistryRef>().unwrap_err().reason;
        for text in ["oci:/srv/images", "oci:images", "oci-archive:/x.tar:v1", "oci-archive:x", "/srv/x", "./x", "../x"]
        {
            assert_eq!(reason(text), ImageRefFlaw::Local, "{text}");
        }
        assert_eq!(reason(""), ImageRefFlaw::Malformed);
        assert!(matches!(reason("file:///srv/x"), ImageRefFlaw::Scheme { .. }));
        assert!(matches!(reason("docker-archive:/x.tar"), ImageRefFlaw::Malformed));
        assert_eq!("python:3.13".parse::<RegistryRef>().unwrap().repository(), "library/python");
    }

    #[test]
    fn error_quotes_the_reference() {
        let error = "docker://python".parse::<ImageRef>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid image reference \"docker://python\": must not start with \"docker://\"; must start with the \
             registry's name"
        );
    }

    proptest! {
        #[test]
        fn valid_references_survive_a_round_trip(
            text in r"(oci:|oci-archive:)?[a-zA-Z0-9._/-]{0,12}(:[a-zA-Z0-9._:/-]{0,8})?(@sha256:[0-9a-f]{64})?"
        ) {
            if let Ok(image) = text.parse::<ImageRef>() {
                prop_assert_eq!(image.to_string().parse::<ImageRef>(), Ok(image));
            }
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text in any::<String>()) {
            if let Ok(image) = text.parse::<ImageRef>() {
                prop_assert_eq!(image.to_string().parse::<ImageRef>(), Ok(image));
            }
        }
    }
}
