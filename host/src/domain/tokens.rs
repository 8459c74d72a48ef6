// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Bearer tokens, and the principal of each.
//!
//! Each line of the list contains a name, and then either a token, or `sha256:` and the token's digest in hexadecimal.
//! Only digests are stored, so no memory dump, log or error contains a token after the list is parsed. A digest without
//! salt or stretching is enough, because tokens are long and random and cannot be guessed.

use std::{collections::HashSet, fmt};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::principal::{Principal, PrincipalFault};

/// Minimum number of characters of a token; a shorter token could be guessed. 16 characters of base64 are 96 bits.
pub const TOKEN_CHARS_MIN: usize = 16;

/// Maximum number of characters of a token. It limits the cost of hashing each presented token.
pub const TOKEN_CHARS_MAX: usize = 1024;

/// Maximum number of tokens. Each presented token is compared with all tokens.
pub const TOKENS_MAX: usize = 1024;

/// The prefix of a digest.
const DIGEST_MARK: &str = "sha256:";

type TokenDigest = [u8; 32];

/// The digests of all tokens, with the principal of each.
#[derive(Clone, Eq, PartialEq)]
pub struct Tokens(Vec<(TokenDigest, Principal)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(_, principal)| principal)).finish()
    }
}

impl Tokens {
    /// Parses a list of tokens; ignores empty lines and lines that start with `#`. A principal may have several tokens.
    ///
    /// # Errors
    /// [`TokensFault`] names the line and never quotes it.
    pub fn parse(text: &str) -> Result<Self, TokensFault> {
        let mut tokens: Vec<(TokenDigest, Principal)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let words: Vec<_> = line.split_whitespace().collect();
            let (name, token) = match words.as_slice() {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                [name, token] => (name, token),
                _ => return Err(TokensFault::Words { line_number }),
            };
            let principal = name.parse().map_err(|source| TokensFault::Name { line_number, source })?;
            let digest = match token.strip_prefix(DIGEST_MARK) {
                Some(digits) => parse_digest(digits).ok_or(TokensFault::Digest { line_number })?,
                None if is_token(token) => digest(token),
                None => return Err(TokensFault::Token { line_number }),
            };
            if tokens.iter().any(|(known, _)| *known == digest) {
                return Err(TokensFault::Twice { line_number });
            }
            if tokens.len() >= TOKENS_MAX {
                return Err(TokensFault::TooMany);
            }
            tokens.push((digest, principal));
        }
        if tokens.is_empty() { Err(TokensFault::None) } else { Ok(Self(tokens)) }
    }

    /// Returns the number of different names.
    #[must_use]
    pub fn names(&self) -> usize {
        let names: HashSet<_> = self.0.iter().map(|(_, principal)| principal).collect();
        names.len()
    }

    /// Whether a principal has a token.
    #[must_use]
    pub fn contains(&self, principal: &Principal) -> bool {
        self.0.iter().any(|(_, known)| known == principal)
    }

    /// Returns the principal of a token. The duration of the lookup does not depend on the content of the tokens.
    #[must_use]
    pub fn principal(&self, token: &str) -> Option<&Principal> {
        if token.len() > TOKEN_CHARS_MAX {
            return None;
        }
        let presented = digest(token);
        let mut found = u32::MAX;
        for (index, (known, _)) in (0_u32..).zip(&self.0) {
            let same: Choice = known.ct_eq(&presented);
            found.conditional_assign(&index, same);
        }
        self.0.get(usize::try_from(found).ok()?).map(|(_, principal)| principal)
    }
}

/// Whether a text is a bearer token (RFC 6750) of a valid length.
fn is_token(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
    (TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

fn digest(token: &str) -> TokenDigest {
    Sha256::digest(token.as_bytes()).into()
}

fn parse_digest(digits: &str) -> Option<TokenDigest> {
    let mut digest = TokenDigest::default();
    if digits.len() != digest.len() * 2 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// An invalid list of tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokensFault {
    /// A line without exactly two words.
    #[error("line {line_number} must be a name and a token, separated by a space")]
    Words {
        /// Counted from 1.
        line_number: usize,
    },
    #[error("line {line_number} starts with an invalid name")]
    Name {
        /// Counted from 1.
        line_number: usize,
        source: PrincipalFault,
    },
    #[error(
        "line {line_number} has an invalid token; must be {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} letters, digits or \
         any of -._~+/="
    )]
    Token {
        /// Counted from 1.
        line_number: usize,
    },
    #[error("line {line_number} has an invalid digest; must be {DIGEST_MARK} and 64 hexadecimal digits")]
    Digest {
        /// Counted from 1.
        line_number: usize,
    },
    /// A token that is on an earlier line as well.
    #[error("line {line_number} repeats a token of an earlier line")]
    Twice {
        /// Counted from 1.
        line_number: usize,
    },
    #[error("too many tokens; must be at most {TOKENS_MAX}")]
    TooMany,
    /// An empty list.
    #[error("no token found")]
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: &str = "ada-has-this-token-1";
    const BOB: &str = "bob-has-this-token-1";

    fn named(name: &str) -> Principal {
        name.parse().unwrap()
    }

    #[test]
    fn token_belongs_to_the_name_on_its_line() {
        let hashed = digest(BOB).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = format!("# who may\n\nada {ADA}\n bob\tsha256:{hashed}\nada another-of-her-tokens\n");
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.principal(ADA), Some(&named("ada")));
        assert_eq!(tokens.principal("another-of-her-tokens"), Some(&named("ada")));
        assert_eq!(tokens.principal(BOB), Some(&named("bob")));
        assert_eq!(tokens.names(), 2);
        for wrong in ["", "ada-has-this-token-2", &hashed, &format!("sha256:{hashed}"), &ADA.repeat(1000)] {
            assert_eq!(tokens.principal(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn faults_name_the_line_and_never_quote_it() {
        let line_number = 1;
        for (text, fault) in [
            ("ada", TokensFault::Words { line_number }),
            ("ada secret secret-secret-secret", TokensFault::Words { line_number }),
            ("a/da secret-secret-secret", TokensFault::Name { line_number, source: PrincipalFault::Invalid }),
            ("local secret-secret-secret", TokensFault::Name { line_number, source: PrincipalFault::Reserved }),
            ("anonymous secret-secret-secret", TokensFault::Name { line_number, source: PrincipalFault::Reserved }),
            ("ada secret", TokensFault::Token { line_number }),
            ("ada secret-secret-secret\u{7f}", TokensFault::Token { line_number }),
            ("ada sha256:secret", TokensFault::Digest { line_number }),
            ("# only this", TokensFault::None),
        ] {
            assert_eq!(Tokens::parse(text), Err(fault), "{text}");
            assert!(!fault.to_string().contains("secret"), "{fault}");
        }
        let twice = format!("ada {ADA}\nbob {ADA}");
        assert_eq!(Tokens::parse(&twice), Err(TokensFault::Twice { line_number: 2 }));
        let many: String = (0..=TOKENS_MAX).map(|n| format!("ada {ADA}-{n}\n")).collect();
        assert_eq!(Tokens::parse(&many), Err(TokensFault::TooMany));
    }

    #[test]
    fn debug_shows_names_only() {
        let tokens = Tokens::parse(&format!("ada {ADA}")).unwrap();
        assert_eq!(format!("{tokens:?}"), "[Principal(\"ada\")]");
    }
}
