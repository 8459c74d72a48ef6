// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The images that clients may choose for their environments.
//!
//! A pattern is a reference to an image in which `*` stands for any characters of the repository or of the tag. It
//! names its registry, so that the operator's credentials go to no registry that a client has chosen. Without a tag it
//! allows all tags and digests; with a tag it allows no digest, because a reference with a digest ignores its tag.

use std::{fmt, str::FromStr};

use waggle_images::reference::{ImageRef, PullRights, RegistryRef};

use super::runtime::ByRuntime;

/// Maximum number of patterns that an error shows to a client.
const SHOWN_MAX: usize = 10;

/// The images that clients may choose, besides those of the runtimes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AllowedImages {
    /// Whether all images are allowed. Those that no pattern names are pulled without the operator's rights.
    any: bool,
    patterns: Vec<Pattern>,
}

impl AllowedImages {
    /// Every image of a public registry.
    #[must_use]
    pub fn any() -> Self {
        Self { any: true, patterns: Vec::new() }
    }

    /// No image except those of the runtimes.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns the rights with which an image is pulled that a client has chosen.
    ///
    /// # Errors
    /// [`ImageNotAllowed`].
    pub fn rights(
        &self,
        image: &RegistryRef,
        of_runtimes: &ByRuntime<ImageRef>,
    ) -> Result<PullRights, ImageNotAllowed> {
        let ByRuntime { python, node, shell } = of_runtimes;
        let of_runtimes = [python, node, shell].into_iter().filter_map(|image| match image {
            ImageRef::Registry(image) => Some(image),
            ImageRef::Layout(_) | ImageRef::Archive(_) => None,
        });
        if of_runtimes.clone().any(|other| other == image) || self.patterns.iter().any(|pattern| pattern.matches(image))
        {
            return Ok(PullRights::Operator);
        }
        if self.any {
            return Ok(PullRights::Public);
        }
        let runtimes = of_runtimes.map(|image| image.reference().to_string());
        let mut allowed: Vec<_> = runtimes.chain(self.patterns.iter().map(ToString::to_string)).collect();
        allowed.dedup();
        let left_out = allowed.len().saturating_sub(SHOWN_MAX);
        allowed.truncate(SHOWN_MAX);
        Err(ImageNotAllowed { image: image.reference().to_string(), allowed, left_out })
    }
}

impl FromStr for AllowedImages {
    type Err = AllowedImagesFault;

    fn from_str(text: &str) -> Result<Self, AllowedImagesFault> {
        let mut allowed = Self::none();
        let words: Vec<_> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        for word in &words {
            match *word {
                "any" => allowed.any = true,
                "none" if words.len() == 1 => {}
                "none" => return Err(AllowedImagesFault::NoneAndOthers),
                pattern => allowed.patterns.push(pattern.parse()?),
            }
        }
        if words.is_empty() { Err(AllowedImagesFault::Empty) } else { Ok(allowed) }
    }
}

/// An invalid list of allowed images.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AllowedImagesFault {
    #[error("must be any, none, or patterns separated by commas, such as ghcr.io/owner/*")]
    Empty,
    #[error("none cannot be combined with other images")]
    NoneAndOthers,
    #[error(
        "invalid pattern {pattern:?}; must be REGISTRY/REPOSITORY[:TAG] or NAME[:TAG], with * for any characters of \
         repository and tag, such as ghcr.io/owner/*, python:3.* or registry.lan:5000/*; any allows all images"
    )]
    Pattern { pattern: String },
}

/// An image that the server's operator does not allow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageNotAllowed {
    image: String,
    allowed: Vec<String>,
    left_out: usize,
}

impl fmt::Display for ImageNotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, allowed, left_out } = self;
        write!(f, "{image} is not allowed on this server; ")?;
        match (allowed.is_empty(), left_out) {
            (true, _) => f.write_str("omit the argument to get the image of the language"),
            (false, 0) => write!(f, "allowed: {}", allowed.join(", ")),
            (false, more) => write!(f, "allowed: {}, and {more} more", allowed.join(", ")),
        }
    }
}

/// A pattern of images.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Pattern {
    registry: String,
    repository: String,
    version: Version,
}

/// The part of a pattern after the repository.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Version {
    Any,
    Tag(String),
    Digest(String),
}

impl Pattern {
    fn matches(&self, image: &RegistryRef) -> bool {
        let version = match &self.version {
            Version::Any => true,
            Version::Tag(pattern) => image.digest().is_none() && image.tag().is_some_and(|tag| fits(pattern, tag)),
            Version::Digest(digest) => image.digest() == Some(digest),
        };
        version && image.registry() == self.registry && fits(&self.repository, image.repository())
    }
}

impl FromStr for Pattern {
    type Err = AllowedImagesFault;

    fn from_str(text: &str) -> Result<Self, AllowedImagesFault> {
        let fault = || AllowedImagesFault::Pattern { pattern: text.to_owned() };
        // A `*` in the registry is not replaced, and then no reference parses.
        let (registry, rest) = text.split_once('/').map_or(("", text), |(first, rest)| (first, rest));
        let starts_with_registry = registry.contains(['.', ':']) || registry == "localhost";
        let rest = if starts_with_registry { rest } else { text };
        let registry = if starts_with_registry { registry } else { "docker.io" };
        if registry.contains('*') || rest.starts_with('*') && !starts_with_registry {
            return Err(fault());
        }
        let (rest, digest) = rest.split_once('@').map_or((rest, None), |(rest, digest)| (rest, Some(digest)));
        let (repository, tag) = rest.split_once(':').map_or((rest, None), |(name, tag)| (name, Some(tag)));
        // A repository or tag in which `*` stands for a letter must be valid.
        let sample = |part: &str| part.replace('*', "x");
        let version = match (tag, digest) {
            (None, None) => Version::Any,
            (Some(tag), None) => Version::Tag(tag.to_owned()),
            (_, Some(digest)) => Version::Digest(digest.to_owned()),
        };
        let suffix = match &version {
            Version::Any => String::new(),
            Version::Tag(tag) => format!(":{}", sample(tag)),
            Version::Digest(digest) => format!("@{digest}"),
        };
        let parsed: RegistryRef =
            format!("{registry}/{}{suffix}", sample(repository)).parse().map_err(|_invalid| fault())?;
        // docker.io has repositories without a slash below `library/`.
        let is_short = parsed.registry() == "docker.io" && !repository.contains('/');
        let repository = if is_short { format!("library/{repository}") } else { repository.to_owned() };
        Ok(Self { registry: parsed.registry().to_owned(), repository, version })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Any => Ok(()),
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// Whether a text is the pattern with some characters in place of each `*`.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    // The earliest place of each part leaves the most text for the others.
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = text.get(at + part.len()..).unwrap_or_default();
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(allowed: &str, image: &str) -> Option<PullRights> {
        let of_runtimes = ByRuntime {
            python: "python:3-slim".parse().unwrap(),
            node: "oci:/srv/images/node".parse().unwrap(),
            shell: "registry.lan:5000/tools/shell:v1".parse().unwrap(),
        };
        allowed.parse::<AllowedImages>().unwrap().rights(&image.parse().unwrap(), &of_runtimes).ok()
    }

    const DIGEST: &str = "@sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    #[test]
    fn images_of_the_runtimes_are_always_allowed_and_others_only_if_the_operator_says_so() {
        for image in ["docker.io/library/python:3-slim", "registry.lan:5000/tools/shell:v1"] {
            assert_eq!(rights("none", image), Some(PullRights::Operator), "{image}");
        }
        for image in ["python", "python:3", "node", "registry.lan:5000/tools/shell:v2", "ghcr.io/a/b"] {
            assert_eq!((rights("none", image), rights("any", image)), (None, Some(PullRights::Public)), "{image}");
        }
    }

    #[test]
    fn operators_rights_are_only_for_images_that_a_pattern_names() {
        for (pattern, image, matches) in [
            ("ghcr.io/me/*", "ghcr.io/me/tool:1", true),
            ("ghcr.io/me/*", "ghcr.io/me/a/b", true),
            ("ghcr.io/me/*", &format!("ghcr.io/me/tool{DIGEST}"), true),
            ("ghcr.io/me/*", "ghcr.io/mexico/tool", false),
            ("ghcr.io/me/*", "ghcr.io:443/me/tool", false),
            ("ghcr.io/me/*", "evil.example/ghcr.io/me/tool", false),
            ("ghcr.io/me/*", "me/tool", false),
            ("registry.lan:5000/*", "registry.lan:5000/x", true),
            ("registry.lan:5000/*", "registry.lan:5001/x", false),
            ("python:3.*", "python:3.13", true),
            ("python:3.*", "docker.io/library/python:3.13-slim", true),
            ("python:3.*", "python:2.7", false),
            ("python:3.*", &format!("python:3.13{DIGEST}"), false),
            ("python:3.*", "ghcr.io/library/python:3.13", false),
            ("python", "python:2.7", true),
            ("python", "pythons:2.7", false),
            ("owner/*-*:v*", "owner/a-b:v1", true),
            ("owner/*-*:v*", "owner/ab:v1", false),
            (&format!("python{DIGEST}"), &format!("python{DIGEST}"), true),
            (&format!("python{DIGEST}"), "python", false),
            ("localhost/x", "localhost/x:1", true),
        ] {
            let expected = if matches { PullRights::Operator } else { PullRights::Public };
            assert_eq!(rights(&format!("{pattern}, any"), image), Some(expected), "{pattern} {image}");
            assert_eq!(rights(pattern, image), matches.then_some(PullRights::Operator), "{pattern} {image}");
        }
    }

    #[test]
    fn pattern_names_its_registry() {
        for pattern in
            ["*", "*/x", "*.example/x", "ghcr.*/x", "*:1", "oci:/srv/x", "/srv/x", "https://a/b", "A/b", "a b"]
        {
            let fault = AllowedImagesFault::Pattern { pattern: pattern.to_owned() };
            assert_eq!(pattern.parse::<AllowedImages>(), Err(fault), "{pattern}");
        }
        assert_eq!(" ".parse::<AllowedImages>(), Err(AllowedImagesFault::Empty));
        assert_eq!("none, any".parse::<AllowedImages>(), Err(AllowedImagesFault::NoneAndOthers));
    }

    #[test]
    fn error_lists_the_allowed_images() {
        let runtime: ImageRef = "oci:/srv/x".parse().unwrap();
        let of_runtimes = ByRuntime { python: runtime.clone(), node: runtime.clone(), shell: runtime };
        let error = |allowed: &str| {
            let allowed = allowed.parse::<AllowedImages>().unwrap();
            allowed.rights(&"a.example/b".parse().unwrap(), &of_runtimes).unwrap_err().to_string()
        };
        let begin = "a.example/b:latest is not allowed on this server; ";
        assert_eq!(error("none"), format!("{begin}omit the argument to get the image of the language"));
        assert_eq!(
            error("ghcr.io/me/*,python:3.*"),
            format!("{begin}allowed: ghcr.io/me/*, docker.io/library/python:3.*")
        );
        let many: Vec<_> = (0..12).map(|number| format!("me/image-{number}")).collect();
        assert!(error(&many.join(",")).ends_with("docker.io/me/image-9, and 2 more"));
    }
}
